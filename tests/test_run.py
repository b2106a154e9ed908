"""What a run notes of itself, by a clock that a test moves."""

import warnings

from vaelib import run
from vaelib.data import load
from vaelib.models import VAE
from vaelib.recipes import TrainConfig
from vaelib.training import fit


def test_speed_is_images_over_seconds_without_the_evaluation(monkeypatch):
    # each look at the clock is a second later: training takes one, with the evaluation two
    now = [0.0]

    def look():
        now[0] += 1
        return now[0]

    data = {split: load("mnist-5k", split).subset(40) for split in ("train", "val")}
    model = VAE(latent_dim=2, backbone="mlp", hidden=4)
    monkeypatch.setattr(run, "time", type("Clock", (), {"perf_counter": staticmethod(look)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = fit(model, data, TrainConfig(steps=9, batch_size=8, eval_every=5)).rows
    assert [row["images_per_s"] for row in rows] == [5 * 8, 4 * 8]
    assert [row["seconds"] for row in rows] == [2.0, 4.0]

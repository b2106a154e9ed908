"""What a run notes and says of itself."""

import io
import json
import os
import re
import signal
import sys
import warnings

import pytest

from vaelib import files, recipes, run
from vaelib.data import load
from vaelib.diagnosis import Stopped
from vaelib.models import VAE
from vaelib.recipes import TrainConfig
from vaelib.training import fit


@pytest.fixture
def fitted(monkeypatch):
    """Fits a small model; each look at the clock is a second later."""
    now = [0.0]

    def look():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(run, "time", type("Clock", (), {"perf_counter": staticmethod(look)}))
    data = {split: load("mnist-5k", split).subset(40) for split in ("train", "val")}

    def fitted(folder=None):
        model = VAE(latent_dim=2, backbone="mlp", hidden=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fit(model, data, TrainConfig(steps=9, batch_size=8, eval_every=5), folder).rows

    return fitted


def test_speed_is_images_over_seconds_without_the_evaluation(fitted):
    rows = fitted()  # training takes a second, with the evaluation two
    assert [row["images_per_s"] for row in rows] == [5 * 8, 4 * 8]
    assert [row["seconds"] for row in rows] == [2.0, 4.0]


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_stopped_run_counts_the_time_since_its_last_evaluation(fitted, tmp_path, monkeypatch):
    def interrupts(step, config):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return recipes.kl_weight(step, config)

    monkeypatch.setattr("vaelib.training.kl_weight", interrupts)
    with pytest.raises(Stopped, match="stopped at step 8"):
        fitted(tmp_path)
    state = json.loads(files.read_tensors(tmp_path / files.STATE)[1]["run"])
    assert (state["step"], state["evaluated"], state["elapsed"]) == (8, 5, 2 + 1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def forty():
    return {split: load("mnist-5k", split).subset(40) for split in ("train", "val")}


def test_a_collapse_is_said_once_and_beside_the_bar(forty, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    config = TrainConfig(steps=60, batch_size=16, eval_every=10, beta=1000.0, lr=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda m, *_, **__: print(f"warning: {m}", file=sys.stderr)
        )
        rows = fit(VAE(latent_dim=2, backbone="mlp", hidden=4), forty, config).rows
    assert sum(row["active_units"] == 0 for row in rows) > 1
    text = sys.stderr.getvalue()
    (before,) = re.findall(r"([^\r\n]*)warning: step \d+: the whole", text)
    assert before == ""
    assert text.count("warning") == 1


@pytest.mark.parametrize("compiles", [True, False])
def test_a_run_says_that_it_compiles(compiles, forty, monkeypatch, capsys):
    if compiles:
        monkeypatch.setattr(run, "compiled", lambda objective: lambda *a, **k: objective(*a, **k))
    config = TrainConfig(steps=3, batch_size=8, eval_every=3, compile=compiles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(VAE(latent_dim=2, backbone="mlp", hidden=4), forty, config)
    first, *_, last = capsys.readouterr().err.splitlines()
    notice = ", compiling, about a minute the first time" if compiles else ""
    assert first == f"0 of 3 steps in 00:00{notice}"
    assert "val" in last
    assert "compiling" not in last

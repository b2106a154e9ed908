"""Training: it learns, repeats itself to the bit, resumes to the bit, and says what is wrong."""

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from vaelib import recipes, training
from vaelib.data import Images, load
from vaelib.models import VAE, CheckpointError
from vaelib.recipes import HUNDREDTHS, moments
from vaelib.training import TrainConfig, TrainingError, fit


@pytest.fixture(scope="module")
def splits():
    return {"train": load("mnist-5k", "train").subset(300), "val": load("mnist-5k", "val")}


def small(seed: int = 0, **kwargs) -> VAE:
    torch.manual_seed(seed)
    return VAE(**({"latent_dim": 4, "widths": (8, 16)} | kwargs))


def quiet_fit(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(*args, **kwargs)


def same_weights(a: VAE, b: VAE) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_overfits_four_images_to_a_fraction_of_their_nats():
    four = load("mnist-5k", "train").images[[0, 1, 2, 3]]
    four = torch.where(four > 127, 255, 0).to(torch.uint8)  # black and white: nothing to draw
    data = {"train": Images("four", "train", four), "val": Images("four", "val", four)}
    config = TrainConfig(steps=300, batch_size=8, lr=5e-3, eval_every=300, precision="fp32")
    history = quiet_fit(small(), data, config)
    # four equally likely images can be coded in log 4 = 1.4 nats; an untrained model takes 543
    assert history.rows[-1]["val_elbo"] > -25


def test_images_of_128_pixels_are_learned():
    at = torch.linspace(-1, 1, 128)
    centres = torch.rand(40, 2, 1, 1, generator=torch.Generator().manual_seed(0)) - 0.5
    distance = (at - centres[:, 0]) ** 2 + (at.unsqueeze(1) - centres[:, 1]) ** 2  # (40, 128, 128)
    discs = torch.where(distance < 0.1, 220, 30).to(torch.uint8).unsqueeze(1).repeat(1, 3, 1, 1)
    data = {
        "train": Images("discs", "train", discs[:32]),
        "val": Images("discs", "val", discs[32:]),
    }
    model = small(image_shape=(3, 128, 128), widths=(8, 8, 16), likelihood="gaussian", sigma=0.1)
    history = quiet_fit(model, data, TrainConfig(steps=60, batch_size=8, lr=5e-3, eval_every=60))
    # better than the best picture that is the same for all: errors^2 / (2 sigma^2) + constant
    x = discs / 255.0
    errors = (x[32:] - x[:32].mean(0)).square().sum((1, 2, 3)).mean()
    constant = 3 * 128 * 128 * math.log(0.1 * math.sqrt(2 * math.pi))
    assert -history.rows[-1]["val_elbo"] < 0.7 * errors / (2 * 0.1**2) + constant


def test_one_seed_one_result(splits):
    config = TrainConfig(steps=12, batch_size=32, eval_every=6)
    models = [small(), small(), small()]
    histories = [quiet_fit(m, splits, config) for m in models[:2]]
    quiet_fit(models[2], splits, TrainConfig(steps=12, batch_size=32, eval_every=6, seed=1))
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])
    assert histories[0].column("val_elbo") == histories[1].column("val_elbo")


class Killed(BaseException):
    """As sudden as a signal: nothing in `fit` catches it."""


@pytest.mark.parametrize("killed_after", [1, 2])
def test_resumed_run_ends_with_the_very_same_weights(splits, tmp_path, killed_after):
    config = TrainConfig(steps=20, batch_size=32, eval_every=5, kl_warmup=10)
    unbroken, broken = small(), small()
    whole = quiet_fit(unbroken, splits, config, tmp_path / "a")

    def kill(history):
        if len(history.rows) == killed_after:
            raise Killed

    with pytest.raises(Killed):
        quiet_fit(broken, splits, config, tmp_path / "b", on_eval=kill)
    resumed = small(seed=9)  # other weights: all must come from the state
    history = quiet_fit(resumed, splits, config, tmp_path / "b", resume=True)
    assert same_weights(unbroken, resumed)
    assert history.column("val_elbo") == whole.column("val_elbo")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_resume_of_nothing_and_of_another_recipe(splits, tmp_path):
    config = TrainConfig(steps=4, batch_size=32, eval_every=2)
    with pytest.raises((TrainingError, CheckpointError), match="is not there"):
        fit(small(), splits, config, tmp_path, resume=True)
    quiet_fit(small(), splits, config, tmp_path)
    with pytest.raises(TrainingError, match="started with another lr"):
        fit(
            small(),
            splits,
            TrainConfig(steps=4, batch_size=32, eval_every=2, lr=1.0),
            tmp_path,
            True,
        )
    with pytest.raises(TrainingError, match="planned for 4 steps; give at least"):
        fit(small(), splits, TrainConfig(steps=2, batch_size=32, eval_every=2), tmp_path, True)
    longer = TrainConfig(steps=8, batch_size=32, eval_every=2)
    assert quiet_fit(small(), splits, longer, tmp_path, resume=True).column("step") == [2, 4, 6, 8]
    state = tmp_path / training.STATE
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="truncated"):
        fit(small(), splits, config, tmp_path, resume=True)


def test_accumulated_gradients_are_the_whole_batch_s(splits):
    config = TrainConfig(steps=6, batch_size=32, eval_every=3, precision="fp32")
    whole, parts = small(), small()
    a = quiet_fit(whole, splits, config)
    b = quiet_fit(parts, splits, replace(config, accumulate=4))
    assert a.column("train_elbo") == pytest.approx(b.column("train_elbo"), abs=0.02)
    with pytest.raises(TrainingError, match="give a multiple of 5"):
        fit(small(), splits, replace(config, accumulate=5))


def test_flips_mirror_half_of_the_images(splits, monkeypatch):
    # images whose left half is black: what the model is shown tells whether they were mirrored
    images = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    images[..., 14:] = 255
    shown, real = [], training.seen_by

    def spy(model, images, generator):
        shown.append(images)
        return real(model, images, generator)

    monkeypatch.setattr(training, "seen_by", spy)
    data = {"train": Images("halves", "train", images), "val": splits["val"].subset(20)}
    quiet_fit(small(), data, TrainConfig(steps=20, batch_size=64, eval_every=20, flip=True))
    mirrored = torch.cat(shown)[:, 0, 0, 0] == 255
    assert 0.45 < mirrored.float().mean() < 0.55
    assert all(bool((x.sum((1, 2, 3)) == 255 * 14 * 28).all()) for x in shown)


def test_best_on_val_is_what_is_kept(splits, tmp_path, monkeypatch):
    # a run whose val ELBO falls at the end keeps the earlier weights
    values, saved = iter([-200.0, -150.0, -180.0]), []
    row = {"val_log_px_z": 0.0, "val_elbo": 0.0, "val_kl": 1.0, "active_units": 4}
    monkeypatch.setattr(training, "validate", lambda *_: row | {"val_objective": next(values)})
    monkeypatch.setattr(training.checkpoints, "save", lambda *_: saved.append(len(saved)))
    rows = fit(small(), splits, TrainConfig(steps=6, eval_every=2, batch_size=8), tmp_path).rows
    assert [r["val_objective"] for r in rows] == [-200.0, -150.0, -180.0]
    assert len(saved) == 2


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (7, 7), (5, 12)])
def test_every_image_comes_once_an_epoch(n, batch_size):
    config = TrainConfig(batch_size=batch_size)
    steps = math.lcm(n, batch_size) // batch_size
    stream = torch.cat([training.batch_indices(t, n, config) for t in range(steps)])
    for epoch in stream.reshape(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))
    if len(stream) > n:
        assert stream[:n].tolist() != stream[n : 2 * n].tolist()


def test_schedules():
    config = TrainConfig(steps=1000, lr=1.0, beta=4.0, kl_warmup=100)
    rates = [training.learning_rate(m.done, config) for m in moments(config, 0, [], 0.0)]
    assert rates[49] == pytest.approx(0.5)
    assert max(rates) == rates[99] == pytest.approx(1.0)
    assert rates[549] == pytest.approx(0.5)  # half-way down the cosine
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    weights = [training.kl_weight(t, config) for t in (0, 49, 99, 500)]
    assert weights == pytest.approx([0.04, 2.0, 4.0, 4.0])
    assert training.kl_weight(0, TrainConfig()) == 1.0


def test_a_clocked_run_ends_in_time_and_its_recipe_replays_it(splits):
    clocked, replayed = small(), small()
    history = quiet_fit(clocked, splits, TrainConfig(minutes=0.05, batch_size=8))
    assert len(history.pace) == HUNDREDTHS
    assert len(history.rows) <= 10
    steps = history.rows[-1]["step"]
    again = quiet_fit(replayed, splits, TrainConfig(steps=steps, pace=history.pace, batch_size=8))
    assert again.column("val_elbo") == history.column("val_elbo")
    assert same_weights(clocked, replayed)


def test_the_clock_moves_the_schedule(monkeypatch):
    # a compile of 30 s, then half a second a step, one second after half of the steps
    now = [0.0]
    monkeypatch.setattr(recipes.time, "perf_counter", lambda: now[0])
    pace, seen = [], []
    for moment in moments(TrainConfig(minutes=1.5), 0, pace, 0.0):
        seen.append(moment)
        now[0] += 30 if moment.step == 0 else 0.5 if moment.step <= 60 else 1.0
    assert now[0] <= 90 + 1
    assert seen[30].done == pytest.approx(0.25, abs=0.02)  # 15 of 60 s
    assert seen[60].done == pytest.approx(0.5, abs=0.02)
    assert seen[75].done == pytest.approx(0.75, abs=0.03)
    assert seen[-1].done == 1.0
    assert [m.step for m in seen] == list(range(len(seen)))
    replay = moments(TrainConfig(steps=len(seen), pace=pace), 0, [], 0.0)
    assert list(replay) == seen


def test_a_killed_clocked_run_goes_on_for_the_rest_of_its_time(splits, tmp_path):
    config = TrainConfig(minutes=0.05, batch_size=8)

    def kill(history):
        if len(history.rows) == 2:
            raise Killed

    with pytest.raises(Killed):
        quiet_fit(small(), splits, config, tmp_path, on_eval=kill)
    resumed, replayed = small(seed=9), small()
    history = quiet_fit(resumed, splits, config, tmp_path, resume=True)
    assert len(history.pace) == HUNDREDTHS
    steps = history.rows[-1]["step"]
    quiet_fit(replayed, splits, TrainConfig(steps=steps, pace=history.pace, batch_size=8))
    assert same_weights(resumed, replayed)


def test_collapse_is_said(splits):
    config = TrainConfig(steps=60, batch_size=32, eval_every=60, beta=1000.0)
    with pytest.warns(UserWarning, match="whole posterior has collapsed"):
        fit(small(), splits, config)
    row = {"step": 5, "beta": 1.0, "active_units": 1, "val_kl": 3.0}
    with pytest.warns(UserWarning, match="3 of 4 latent dimensions"):
        training.warn_of_collapse(row, small(), TrainConfig(), last=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.warn_of_collapse(row | {"active_units": 4}, small(), TrainConfig(), last=True)


def test_divergence_is_diagnosed(splits, tmp_path):
    model = small()
    model.decoder.conv_out.conv.bias.data.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"log_px_z not finite.*Lower lr"):
        fit(model, splits, TrainConfig(steps=2, eval_every=1, batch_size=8), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_bad_settings_are_refused():
    for bad in (
        {"steps": 0},
        {"lr": -1.0},
        {"batch_size": 0},
        {"beta": -0.1},
        {"lr": math.nan},
        {"n_importance": 5},
        {"minutes": 0},
        {"minutes": math.nan},
        {"pace": [3, 2, 1]},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainConfig(**bad)


def test_run_folder_has_everything(splits, tmp_path):
    config = TrainConfig(steps=4, batch_size=32, eval_every=2, tensorboard=True)
    history = quiet_fit(small(), splits, config, tmp_path)
    assert json.loads((tmp_path / "history.json").read_text()) == history.rows
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")}
    assert names == {"samples/0000002.png", "samples/0000004.png"}
    assert list((tmp_path / "tensorboard").iterdir())
    loaded = VAE.from_pretrained(tmp_path)
    x = torch.rand(2, 1, 28, 28)
    assert torch.isfinite(loaded.encode(x).loc).all()


TWO = """
import sys, torch, warnings
from vaelib.data import load
from vaelib.models import VAE
from vaelib.training import TrainConfig, fit
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
digits = {name: load("mnist-5k", name) for name in ("train", "val")}
splits = {name: images.subset(300) for name, images in digits.items()}
more = dict(batch_size=32, eval_every=4, precision="fp32", flip=True, accumulate=2)
steps, resume = int(sys.argv[2]), len(sys.argv) > 3
config = TrainConfig(steps=steps, **more)
fit(VAE(latent_dim=4, widths=(8, 16)), splits, config, sys.argv[1], resume)
"""


def test_two_processes_compute_what_one_does_and_resume_what_one_began(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def rows(command, name, *arguments):
        line = [*command, str(script), str(tmp_path / name), *arguments]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads((tmp_path / name / "history.json").read_text())

    one, two = rows([sys.executable], "one", "8"), rows(torchrun, "two", "8")
    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    one_on = rows([sys.executable], "one", "16", "resume")
    two_on = rows(torchrun, "resumed", "16", "resume")
    assert [row["step"] for row in two_on] == [4, 8, 12, 16]
    for a, b in [*zip(one, two, strict=True), *zip(one_on, two_on, strict=True)]:
        assert a["train_elbo"] == pytest.approx(b["train_elbo"], abs=0.05)
        assert a["val_elbo"] == pytest.approx(b["val_elbo"], abs=0.05)

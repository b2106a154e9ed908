"""Training: it learns, repeats itself to the bit, resumes to the bit, and says what is wrong."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vaelib import checkpoints, diagnosis, files, objectives, recipes, run, stream
from vaelib.data import Images, load
from vaelib.evaluation import active_units, elbo_terms
from vaelib.files import CheckpointError
from vaelib.models import VAE
from vaelib.recipes import HUNDREDTHS, TrainConfig
from vaelib.training import TrainingError, fit


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
    state = tmp_path / files.STATE
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
    shown, real = [], stream.seen_by

    def spy(model, images, generator):
        shown.append(images)
        return real(model, images, generator)

    monkeypatch.setattr(stream, "seen_by", spy)
    data = {"train": Images("halves", "train", images), "val": splits["val"].subset(20)}
    quiet_fit(small(), data, TrainConfig(steps=20, batch_size=64, eval_every=20, flip=True))
    mirrored = torch.cat(shown)[:, 0, 0, 0] == 255
    assert 0.45 < mirrored.float().mean() < 0.55
    assert all(bool((x.sum((1, 2, 3)) == 255 * 14 * 28).all()) for x in shown)


def scripted(monkeypatch, values) -> list[int]:
    """Val objectives as given, one an evaluation; returns the list of saves."""
    values, saved = iter(values), []
    row = {"val_log_px_z": 0.0, "val_elbo": 0.0, "val_kl": 1.0, "active_units": 4}
    monkeypatch.setattr(run.Run, "validate", lambda *_: row | {"val_objective": next(values)})
    monkeypatch.setattr(checkpoints, "save", lambda *_: saved.append(len(saved)))
    return saved


def test_best_on_val_is_what_is_kept(splits, tmp_path, monkeypatch):
    # a run whose val objective falls at the end keeps the earlier weights
    saved = scripted(monkeypatch, [-200.0, -150.0, -180.0])
    config = TrainConfig(steps=6, eval_every=2, batch_size=8)
    rows = fit(small(), splits, config, tmp_path).rows
    assert [r["val_objective"] for r in rows] == [-200.0, -150.0, -180.0]
    assert len(saved) == 2


def test_a_resumed_run_remembers_its_best(splits, tmp_path, monkeypatch):
    saved = scripted(monkeypatch, [-200.0, -150.0, -180.0, -149.0])
    config = TrainConfig(steps=4, eval_every=2, batch_size=8)
    fit(small(), splits, config, tmp_path)
    assert len(saved) == 2
    fit(small(), splits, replace(config, steps=8), tmp_path, resume=True)
    assert len(saved) == 3  # -180 is worse than what the first part reached, -149 is better


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (7, 7), (5, 12)])
def test_every_image_comes_once_an_epoch(n, batch_size):
    config = TrainConfig(batch_size=batch_size)
    steps = math.lcm(n, batch_size) // batch_size
    seen = torch.cat([stream.batch_indices(t, n, config) for t in range(steps)])
    for epoch in seen.reshape(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))
    if len(seen) > n:
        assert seen[:n].tolist() != seen[n : 2 * n].tolist()


def rates_of(config: TrainConfig, n_train: int = 1000) -> list[float]:
    steps = recipes.steps(config, 0, [], 0.0)
    at = [(s.progress, recipes.epoch(s.number, n_train, config)) for s in steps]
    return [recipes.learning_rate(progress, config, epoch) for progress, epoch in at]


def test_schedules():
    config = TrainConfig(steps=1000, lr=1.0, beta=4.0, kl_warmup=100)
    rates = rates_of(config)
    assert rates[49] == pytest.approx(0.5)
    assert max(rates) == rates[99] == pytest.approx(1.0)
    assert rates[549] == pytest.approx(0.5)  # half-way down the cosine
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    weights = [recipes.kl_weight(t, config) for t in (0, 49, 99, 500)]
    assert weights == pytest.approx([0.04, 2.0, 4.0, 4.0])
    assert recipes.kl_weight(0, TrainConfig()) == 1.0
    assert set(rates_of(replace(config, schedule="constant"))) == {1.0}
    # 1,000 images in batches of 100: ten steps an epoch, so epochs 1 and 3 begin at 10 and 30
    by_epoch = {"schedule": "steps", "lr_epochs": [1, 3], "lr_factor": 0.1}
    rates = rates_of(TrainConfig(steps=40, batch_size=100, lr=1.0, **by_epoch))
    expected = [1.0] * 10 + [0.1] * 20 + [0.01] * 10
    assert rates == pytest.approx(expected)


class Clock:
    """A clock that moves by what each step takes, in place of the machine's."""

    def __init__(self, monkeypatch, seconds: float):
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(recipes.time, "perf_counter", self)

    def __call__(self) -> float:
        self.now += self.seconds  # every look at it counts
        return self.now


def test_a_clocked_run_is_replayed_by_its_recipe(splits, monkeypatch):
    clocked, replayed = small(), small()
    Clock(monkeypatch, 0.05)
    history = quiet_fit(clocked, splits, TrainConfig(minutes=0.05, batch_size=8))
    monkeypatch.undo()
    assert len(history.clock_steps) == HUNDREDTHS
    assert 1 < len(history.rows) <= 10
    steps = history.rows[-1]["step"]
    config = TrainConfig(steps=steps, clock_steps=history.clock_steps, batch_size=8)
    again = quiet_fit(replayed, splits, config)
    assert again.column("val_elbo") == history.column("val_elbo")
    assert same_weights(clocked, replayed)


def test_the_clock_moves_the_schedule(monkeypatch):
    # a compile of 30 s, then half a second a step, one second after half of the steps
    now = [0.0]
    monkeypatch.setattr(recipes.time, "perf_counter", lambda: now[0])
    clock, seen = [], []
    for step in recipes.steps(TrainConfig(minutes=1.5), 0, clock, 0.0):
        seen.append(step)
        now[0] += 30 if step.number == 0 else 0.5 if step.number <= 60 else 1.0
    assert now[0] <= 90 + 1
    assert seen[30].progress == pytest.approx(0.25, abs=0.02)  # 15 of 60 s
    assert seen[60].progress == pytest.approx(0.5, abs=0.02)
    assert seen[75].progress == pytest.approx(0.75, abs=0.03)
    assert seen[-1].progress == 1.0
    assert [step.number for step in seen] == list(range(len(seen)))
    replay = recipes.steps(TrainConfig(steps=len(seen), clock_steps=clock), 0, [], 0.0)
    assert list(replay) == seen


def test_a_killed_clocked_run_goes_on_for_the_rest_of_its_time(splits, tmp_path, monkeypatch):
    config = TrainConfig(minutes=0.05, batch_size=8)
    Clock(monkeypatch, 0.02)

    def kill(history):
        if len(history.rows) == 2:
            raise Killed

    with pytest.raises(Killed):
        quiet_fit(small(), splits, config, tmp_path, on_eval=kill)
    resumed, replayed = small(seed=9), small()
    history = quiet_fit(resumed, splits, config, tmp_path, resume=True)
    monkeypatch.undo()
    assert history.rows[-1]["seconds"] == pytest.approx(60 * 0.05, abs=0.2)
    assert len(history.clock_steps) == HUNDREDTHS
    steps = history.rows[-1]["step"]
    config = TrainConfig(steps=steps, clock_steps=history.clock_steps, batch_size=8)
    quiet_fit(replayed, splits, config)
    assert same_weights(resumed, replayed)


def test_a_clocked_run_is_not_made_longer(splits, tmp_path):
    config = TrainConfig(steps=2, clock_steps=[1] * HUNDREDTHS, batch_size=8)
    quiet_fit(small(), splits, config, tmp_path)
    with pytest.raises(TrainingError, match="steps; only steps may change, and not of a clocked"):
        fit(small(), splits, replace(config, steps=3), tmp_path, resume=True)


def test_a_run_in_a_thread_can_not_be_stopped_but_runs(splits, tmp_path):
    config = TrainConfig(steps=2, batch_size=8, eval_every=2)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    arguments = (small(), splits, config, tmp_path)
    with ThreadPoolExecutor() as pool:
        assert len(pool.submit(quiet_fit, *arguments).result().rows) == 1
    if os.name != "nt":  # a signal in the last step stops nothing
        last = quiet_fit(*arguments, on_eval=lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert last.column("step") == [2]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_made_longer_is_replayed_by_its_recipe(splits, tmp_path):
    config = TrainConfig(steps=6, batch_size=32, eval_every=3)
    quiet_fit(small(), splits, config, tmp_path)
    longer, replayed, planned = small(), small(), small()
    history = quiet_fit(longer, splits, replace(config, steps=12), tmp_path, resume=True)
    assert history.plans == [[6, 6]]
    assert history.column("step") == [3, 6, 9, 12]
    again = quiet_fit(replayed, splits, replace(config, steps=12, plans=history.plans))
    assert same_weights(longer, replayed)
    assert again.column("step") == [3, 6, 9, 12]
    quiet_fit(planned, splits, replace(config, steps=12))
    assert not same_weights(longer, planned)  # what a recipe without its plans would give


def said(row: dict, config: TrainConfig, last: bool = True) -> list[str]:
    found = diagnosis.collapse(row, small(), config, last)
    return [found[1]] if found else []


def test_collapse_is_said(splits):
    config = TrainConfig(steps=60, batch_size=32, eval_every=60, beta=1000.0)
    with pytest.warns(UserWarning, match="whole posterior has collapsed"):
        fit(small(), splits, config)
    row = {"step": 5, "beta": 1.0, "active_units": 1, "val_kl": 3.0}
    (message,) = said(row, TrainConfig())
    assert "3 of 4 latent dimensions" in message
    assert said(row | {"active_units": 4}, TrainConfig()) == []
    assert said(row, TrainConfig(), last=False) == []


@pytest.mark.parametrize("beta", [0.7, 0.9, 0.1, 1 / 3])
def test_collapse_is_said_whatever_beta_is(beta, splits):
    # 0.7 is no float32: compared after rounding, the warm-up would never end
    config = TrainConfig(steps=2, batch_size=8, eval_every=2, beta=beta)
    row = quiet_fit(small(), splits, config).rows[-1]
    assert row["beta"] == beta
    (message,) = said(row | {"active_units": 0, "val_kl": 0.01}, config)
    assert "whole posterior has collapsed" in message
    warming_up = replace(config, kl_warmup=10)
    row = quiet_fit(small(), splits, warming_up).rows[-1]
    assert said(row | {"active_units": 0, "val_kl": 0.01}, warming_up) == []


def test_divergence_is_not_called_collapse():
    row = {"step": 5, "beta": 1.0, "active_units": 0, "val_kl": 2983.0}
    (message,) = said(row, TrainConfig())
    assert "diverging" in message
    assert "collapsed" not in message


@pytest.mark.parametrize(("latent_dim", "kl"), [(4, 1.1), (4, 9.0), (128, 100.0)])
def test_collapse_is_not_called_divergence(latent_dim, kl):
    # less than a nat a dimension, the same for every image: near the prior, and z is ignored
    row = {"step": 5, "beta": 1.0, "active_units": 0, "val_kl": kl}
    case, said = diagnosis.collapse(row, small(latent_dim=latent_dim), TrainConfig(), last=True)
    assert case == "whole"
    assert "whole posterior has collapsed" in said


def test_one_image_says_nothing_of_collapse(splits):
    one = splits | {"val": splits["val"][:1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = fit(small(), one, TrainConfig(steps=2, batch_size=8, eval_every=1)).rows
    assert not any("active_units" in row for row in rows)


def test_divergence_on_val_is_diagnosed(splits, tmp_path, monkeypatch):
    # the last step before an evaluation breaks the weights: the loss was finite
    real = torch.optim.AdamW.step

    def step(optimizer, *rest, **options):
        real(optimizer, *rest, **options)
        optimizer.param_groups[0]["params"][0].data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    config = TrainConfig(steps=1, eval_every=1, batch_size=8)
    with pytest.raises(TrainingError, match=r"val_elbo.*not finite.*Lower lr") as caught:
        fit(small(), splits, config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


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
        {"n_importance": 0},
        {"init_std": 0.0},
        {"lr_epochs": [3]},
        {"schedule": "steps"},
        {"minutes": 0},
        {"minutes": math.nan},
        {"clock_steps": [3, 2, 1]},
    ):
        with pytest.raises(ValueError, match=next(iter(bad)).replace("schedule", "lr_epochs")):
            TrainConfig(**bad)


def test_run_folder_has_everything(splits, tmp_path):
    config = TrainConfig(steps=4, batch_size=32, eval_every=2, tensorboard=True)
    history = quiet_fit(small(), splits, config, tmp_path)
    assert json.loads((tmp_path / "history.json").read_text()) == history.rows
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")}
    assert names == {"samples/0000002.png", "samples/0000004.png"}
    with Image.open(tmp_path / "samples" / "0000002.png") as picture:
        assert picture.size == (8 * 30 + 2, 8 * 30 + 2)  # 8 x 8 of 28 pixels, gaps of 2
    assert list((tmp_path / "tensorboard").iterdir())
    quiet_fit(small(), splits, replace(config, lr=1e-9, tensorboard=False), tmp_path / "still")
    assert not (tmp_path / "still" / "tensorboard").exists()
    first, last = (
        np.asarray(Image.open(path)).astype(int)
        for path in (tmp_path / "still" / "samples").iterdir()
    )
    assert np.abs(first - last).max() <= 1  # the same z, and a model that hardly moved
    loaded = VAE.from_pretrained(tmp_path)
    x = torch.rand(2, 1, 28, 28)
    assert torch.isfinite(loaded.encode(x).loc).all()


@pytest.mark.parametrize(
    ("likelihood", "chosen"),
    [
        ("bernoulli", {}),
        ("learned_gaussian", {"decay_vectors": True}),
        ("bernoulli", {"optimizer": "adagrad", "schedule": "constant", "weight_decay": 0.0}),
        ("bernoulli", {"optimizer": "adam", "optimizer_args": {"eps": 1e-4, "betas": [0.5, 0.9]}}),
        ("bernoulli", {"schedule": "steps", "lr_epochs": [1], "lr_factor": 0.2}),
    ],
)
def test_fit_is_the_loop_written_out_by_hand(splits, likelihood, chosen):
    """Warm-up of the KL, schedule, clipping, decay and optimiser, each in its own words here."""
    n, batch, lr = 12, 32, 2e-2
    config = TrainConfig(
        steps=n, batch_size=batch, lr=lr, beta=2.0, kl_warmup=6, clip=30.0, eval_every=n,
        precision="fp32", **chosen,
    )  # fmt: skip
    ours, theirs = small(likelihood=likelihood), small(likelihood=likelihood)
    quiet_fit(ours, splits, config)
    theirs.to(memory_format=torch.channels_last)
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    matrices = [p for p in theirs.parameters() if p.dim() > 1]
    decay = config.weight_decay if config.decay_vectors else 0.0
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": decay}]
    optimizer = {
        "adamw": lambda: torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.05),
        "adagrad": lambda: torch.optim.Adagrad(groups),
        "adam": lambda: torch.optim.Adam(groups, betas=(0.5, 0.9), eps=1e-4, weight_decay=0.05),
    }[config.optimizer]()
    batches = stream.Stream(theirs, splits["train"], config)
    for t in range(n):
        for group in optimizer.param_groups:
            share = (t + 1) / n
            rise_and_fall = share / 0.1 if share < 0.1 else (1 + math.cos(
                math.pi * (share - 0.1) / 0.9)) / 2  # fmt: skip
            dropped = 0.2 if 32 * t >= 300 else 1.0  # an epoch is 300 images
            rate = {"constant": 1.0, "cosine": rise_and_fall, "steps": dropped}
            group["lr"] = lr * rate[config.schedule]
        x, eps, _ = batches.batch(t)
        beta = 2.0 * min(1.0, (t + 1) / 6)
        q_z = theirs.encode(x)
        p_x = theirs.decode(q_z.loc + q_z.scale * eps[0])
        kl = (q_z.loc**2 + q_z.scale**2 - 1 - 2 * q_z.scale.log()).sum(1) / 2
        loss = (beta * kl - p_x.log_prob(x).sum((1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in theirs.parameters()])
        scale = min(1.0, 30.0 / gradients.norm().item())
        for p in theirs.parameters():
            p.grad.mul_(scale)
        optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_val_is_scored_as_evaluation_scores_a_trained_model(splits):
    model = small()
    config = TrainConfig(steps=2, batch_size=8, eval_every=2, n_importance=3, precision="fp32")
    row = quiet_fit(model, splits, config).rows[-1]
    terms, q_z = elbo_terms(model, splits["val"], n_importance=3)
    assert row["val_elbo"] == pytest.approx(terms.elbo.mean().item(), abs=1e-3)
    assert row["active_units"] == active_units(q_z)
    clocked = TrainConfig(steps=2, batch_size=8, clock_steps=[1] * HUNDREDTHS)
    many = {"train": splits["train"], "val": load("mnist-5k", "train").subset(1100)}
    row = quiet_fit(small(), many, clocked).rows[-1]  # a run by the clock sees a thousand
    assert run.Run(small(), many, clocked).val.images.shape[0] == 1000
    assert run.Run(small(), many, config).val.images.shape[0] == 1100


def test_val_chooses_by_the_recipes_own_objective(splits):
    # beta weighs the KL there too, and is not warming up
    config = TrainConfig(steps=2, batch_size=8, eval_every=2, beta=5.0, kl_warmup=100)
    row = quiet_fit(small(), splits, config).rows[-1]
    assert row["val_objective"] == pytest.approx(row["val_log_px_z"] - 5 * row["val_kl"], abs=1e-2)
    assert row["val_elbo"] == pytest.approx(row["val_log_px_z"] - row["val_kl"], abs=1e-2)


def test_initial_weights_have_the_scale_that_was_asked_for():
    model = small(widths=(16, 32))
    norms = [p.clone() for name, p in model.named_parameters() if "norm" in name]
    model.initialise(0.01)
    drawn = [p for name, p in model.named_parameters() if "conv" in name or "latent" in name]
    values = torch.cat([p.flatten() for p in drawn])
    assert values.std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(values.mean().item()) < 1e-3
    after = [p for name, p in model.named_parameters() if "norm" in name]
    assert all(torch.equal(a, b) for a, b in zip(norms, after, strict=True))


def test_sigma_is_not_decayed_unless_a_recipe_says_so(splits):
    # a gradient of zero (nothing is learned at this rate): only decay can move log sigma
    def log_sigma(decay_vectors: bool) -> float:
        model = small(likelihood="learned_gaussian", sigma=0.1)
        for p in model.parameters():
            p.register_hook(torch.zeros_like)
        config = TrainConfig(
            steps=20, batch_size=8, lr=0.1, weight_decay=0.5, eval_every=20, precision="fp32",
            decay_vectors=decay_vectors,
        )  # fmt: skip
        quiet_fit(model, splits, config)
        return model.likelihood.log_sigma.item()

    assert log_sigma(False) == pytest.approx(math.log(0.1), abs=1e-6)
    assert abs(log_sigma(True)) < 0.9 * abs(math.log(0.1))  # decay pulls sigma towards 1


@objectives.scores_batch
def whole_batch(model, x, eps, beta, *, noise, progress, n_train, strength: float = 2.0):
    """A made-up objective that scores a batch, asks for all there is, and has no ELBO."""
    q_z, _, p_x = model(x, eps)
    log_px_z = p_x.log_prob(x).sum((-3, -2, -1)).mean(0)
    distance = (q_z.loc.mean(0) - noise.mean(0)).square().sum()
    ASKED.append((noise.clone(), progress.item(), n_train, strength, len(x)))
    extras = {"distance": distance}
    objective = log_px_z.mean() - strength * distance
    return objectives.Terms(objective, log_px_z, None, q_z.loc, q_z.scale, extras=extras)


ASKED: list = []


@pytest.fixture
def toy(monkeypatch):
    ASKED.clear()
    monkeypatch.setitem(objectives.OBJECTIVES, "whole_batch", whole_batch)
    return {"objective": "whole_batch", "objective_args": {"strength": 3.0}, "batch_size": 32}


def test_an_objective_gets_what_it_asks_for(splits, toy):
    config = TrainConfig(steps=4, eval_every=4, precision="fp32", **toy)
    row = quiet_fit(small(), splits, config).rows[-1]
    training = [asked for asked in ASKED if asked[1] < 1 or asked is ASKED[3]][:4]
    assert [asked[1] for asked in training] == [0.25, 0.5, 0.75, 1.0]
    assert {asked[2:] for asked in ASKED} == {(300, 3.0, 32)}  # val in whole batches, too
    assert len(ASKED) == 4 + len(splits["val"]) // 32
    assert "val_elbo" not in row
    assert "val_kl" not in row
    assert row["val_objective"] == pytest.approx(
        row["val_log_px_z"] - 3 * row["val_distance"], 1e-3
    )
    assert row["train_distance"] > 0
    # its noise is new at each step, none of it eps, and none of it global
    eps = [stream.Stream(small(), splits["train"], config).batch(t).eps[0] for t in range(4)]
    noises = [asked[0] for asked in training]
    drawn = [tensor.flatten()[0].item() for tensor in noises + eps]
    assert len(set(drawn)) == 8
    ASKED.clear()
    torch.manual_seed(77)
    quiet_fit(small(), splits, config)
    assert torch.equal(ASKED[0][0], noises[0])


def test_a_resumed_run_draws_the_objectives_noise_again(splits, toy, tmp_path):
    config = TrainConfig(steps=8, eval_every=4, **toy)
    whole, resumed = small(), small(seed=9)
    quiet_fit(whole, splits, config, tmp_path / "a")

    def kill(history):
        raise Killed

    with pytest.raises(Killed):
        quiet_fit(small(), splits, config, tmp_path / "b", on_eval=kill)
    quiet_fit(resumed, splits, config, tmp_path / "b", resume=True)
    assert same_weights(whole, resumed)


def test_what_a_batch_objective_can_not_do_is_one_line(splits, toy):
    config = TrainConfig(steps=4, accumulate=2, **toy)
    with pytest.raises(TrainingError, match="scores a batch as a whole: give accumulate 1"):
        fit(small(), splits, config)
    for changed, message in (
        ({"objective_args": {"strenght": 1.0}}, "'strenght', did you mean strength"),
        ({"objective_args": {"noise": 1.0}}, "has no parameter 'noise'"),
        ({"objective_args": {"strength": "much"}}, "give one like its default, 2.0"),
        ({"objective": "elbo"}, "objective elbo has no parameter 'strength'.*it has none"),
        ({"objective": "kl_terms"}, "objective 'kl_terms'.*choose one of elbo, iwae"),
        ({"objective": "ebo", "objective_args": {}}, "did you mean elbo"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(small(), splits, replace(config, accumulate=1, **changed))


def test_images_that_a_model_can_not_take_are_refused(splits):
    config = TrainConfig(steps=1)
    empty = splits["val"][:0]
    for data, message in (
        (splits | {"val": empty}, "the val split has no images"),
        (splits | {"train": empty}, "the train split has no images"),
        (splits | {"val": Images("other", "val", torch.zeros(3, 3, 28, 28, dtype=torch.uint8))},
         r"images of val have shape \(3, 28, 28\), the model takes \(1, 28, 28\)"),
    ):  # fmt: skip
        with pytest.raises(TrainingError, match=message):
            fit(small(), data, config)


def test_resuming_on_other_images_is_refused(splits, tmp_path):
    config = TrainConfig(steps=4, batch_size=32, eval_every=2)
    quiet_fit(small(), splits, config, tmp_path)
    for split in ("train", "val"):
        inverted = replace(splits[split], images=255 - splits[split].images)
        with pytest.raises(TrainingError, match=f"started on other {split} images"):
            fit(small(), splits | {split: inverted}, config, tmp_path, resume=True)


def test_resuming_another_model_is_refused(splits, tmp_path):
    config = TrainConfig(steps=4, batch_size=32, eval_every=2)
    gaussian = {"likelihood": "gaussian", "sigma": 0.5}
    quiet_fit(small(**gaussian), splits, config, tmp_path)
    # of the same weights by name and shape, or not
    for other in ({"sigma": 0.1}, {"likelihood": "continuous_bernoulli"}, {"latent_dim": 5}):
        with pytest.raises((TrainingError, CheckpointError), match="another model") as caught:
            fit(small(**gaussian | other), splits, config, tmp_path, resume=True)
        assert "\n" not in str(caught.value)
    fit(small(**gaussian), splits, config, tmp_path, resume=True)


def test_numbers_of_other_libraries_are_saved_and_resumed(splits, tmp_path):
    config = TrainConfig(
        steps=np.int64(2), batch_size=np.int64(8), eval_every=2, lr=np.float32(0.001),
        optimizer_args={"betas": (0.5, 0.9)},
    )  # fmt: skip
    quiet_fit(small(), splits, config, tmp_path)
    again = replace(config, steps=4)
    assert quiet_fit(small(), splits, again, tmp_path, resume=True).column("step") == [2, 4]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_refused(kind, splits):
    with pytest.raises(TrainingError, match=f"weights are {kind}; give float32 ones"):
        fit(small().to(kind), splits, TrainConfig(steps=1, batch_size=8))


def alternating(model, data, config, run_dir=None, resume=False, on_eval=None):
    """A way to train of its own: encoder and decoder take turns, each with its optimiser.

    As another file would have it: batches, evaluation steps, saving and resuming are the run's.
    """
    parts = [list(part.parameters()) for part in (model.encoder, model.decoder)]
    optimizers = [run.make_optimizer(part, config) for part in parts]
    turns = run.Run(model, data, config, run_dir, resume, on_eval, optimizers)
    counted = turns.extra.setdefault("turns", torch.zeros(2))
    for step in turns.steps():
        beta = torch.tensor(recipes.kl_weight(step.number, config))
        for micro_batch in turns.micro_batches(step):
            terms = turns.objective_terms(micro_batch, beta, step)
            turns.accelerator.backward(-terms.objective.mean() / config.accumulate)
            turns.note(terms)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizers[step.number % 2].step()
        counted[step.number % 2] += 1
        for optimizer in optimizers:
            optimizer.zero_grad()
        if step.evaluates:
            turns.eval_step(step, terms, norm)
    return turns


def test_another_way_to_train_is_another_loop_over_a_run(splits, tmp_path):
    config = TrainConfig(steps=10, batch_size=16, eval_every=5)
    whole, resumed = small(), small(seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alternating(whole, splits, config, tmp_path / "a")

        def kill(history):
            raise Killed

        with pytest.raises(Killed):
            alternating(small(), splits, config, tmp_path / "b", on_eval=kill)
        turns = alternating(resumed, splits, config, tmp_path / "b", resume=True)
    assert same_weights(whole, resumed)
    assert turns.extra["turns"].tolist() == [5, 5]
    assert turns.history.column("step") == [5, 10]


def test_evaluation_turns_few_images_into_floats_at_a_time(monkeypatch):
    # however many there are: what is held as floats at once is one batch
    from vaelib import evaluation

    at_once, real = [], evaluation.seen_by

    def spy(model, images, generator):
        at_once.append(len(images))
        return real(model, images, generator)

    monkeypatch.setattr(evaluation, "seen_by", spy)
    images = torch.zeros(430, 1, 28, 28, dtype=torch.uint8)
    evaluation.evaluate(small(likelihood="gaussian").eval(), Images("many", "val", images), 2, 3)
    assert max(at_once) <= 100
    assert sum(at_once) >= 2 * 430


TWO = """
import sys, torch
from vaelib.data import load
from vaelib.models import VAE
from vaelib.training import TrainConfig, fit


def two_fits(first, second):
    digits = {name: load("mnist-5k", name).subset(100) for name in ("train", "val")}
    more = dict(batch_size=16, eval_every=4, precision="fp32", flip=True, accumulate=2, lr=0.02)
    for steps, folder, resume in ((4, first, False), (8, second, True)):
        torch.manual_seed(0)
        model = VAE(latent_dim=4, backbone="mlp", hidden=20)
        fit(model, digits, TrainConfig(steps=steps, **more), folder, resume)
"""


def test_two_processes_compute_what_one_does_and_resume_what_one_began(tmp_path):
    space = {}
    exec(TWO, space)
    one = tmp_path / "one"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space["two_fits"](one, one)
        began = files.read_tensors(one / files.STATE)[0]  # at step 8
        shutil.rmtree(one)
        real = space["fit"]
        space["fit"] = lambda model, digits, config, folder, resume: (
            None if resume else real(model, digits, config, folder, resume)
        )
        space["two_fits"](one, one)  # at step 4
    script = tmp_path / "two.py"
    script.write_text(TWO + "\n\ntorch.set_num_threads(1)\ntwo_fits(*sys.argv[1:])\n")
    shutil.copytree(one, tmp_path / "resumed")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    line += [str(script), str(tmp_path / "two"), str(tmp_path / "resumed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    states = {name: files.read_tensors(tmp_path / name / files.STATE)[0]
              for name in ("one", "two", "resumed")}  # fmt: skip
    for a, b in ((states["one"], states["two"]), (began, states["resumed"])):
        assert a.keys() == b.keys()
        for name in a:  # weights and the optimiser's moments
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    moved = [(a - began[k]).abs().max().item() for k, a in states["one"].items() if "model" in k]
    assert max(moved) > 0.01  # far more than the tolerance

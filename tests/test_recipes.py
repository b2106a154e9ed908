"""Recipes: which settings there can be, and what is left of a clocked run's time."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from vaelib import files, recipes
from vaelib.recipes import TrainConfig


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"init_std": 0.01}, {"init_std": math.inf}),
        ({"init_std": 1e-9}, {"init_std": -0.01}),
        ({"minutes": 0.5}, {"minutes": math.inf}),
        ({"minutes": 90}, {"minutes": -1}),
        ({"beta": 0.0}, {"beta": math.nan}),
        ({"plans": [[6, 6], [8, 12]]}, {"plans": [[2, 0]]}),
        ({"plans": [[1, 2]]}, {"plans": [[3, 1]]}),
        ({"plans": []}, {"plans": [[6, 6], [6, 12]]}),
        ({"kl_warmup": 0, "weight_decay": 0.0}, {"weight_decay": -1e-9}),
        ({"lr": 1e-9, "clip": 0.1}, {"clip": 0.0}),
        (
            {"schedule": "steps", "lr_epochs": [1, 3]},
            {"schedule": "steps", "lr_epochs": [3, 1]},
        ),
    ],
)
def test_settings_at_their_limits(good, bad):
    config = TrainConfig(**good)
    assert {key: getattr(config, key) for key in good} == good
    with pytest.raises(ValueError, match=next(iter(bad.keys() - {"schedule"}))):
        TrainConfig(**bad)


@pytest.mark.parametrize(("elapsed", "left"), [(0.0, 60), (45.0, 15)])
def test_a_clocked_run_takes_its_minutes_and_no_more(monkeypatch, elapsed, left):
    # a second a step: what was spent before it was stopped counts
    now = [1000.0]
    monkeypatch.setattr(recipes.time, "perf_counter", lambda: now[0])
    clock = [0] * 75 if elapsed else []
    progress = []
    for step in recipes.steps(TrainConfig(minutes=1), 7, clock, elapsed):
        progress.append(step.progress)
        now[0] += 1
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert now[0] - 1000 == pytest.approx(left, abs=2)
    assert len(clock) == recipes.HUNDREDTHS


def test_the_last_evaluation_is_within_the_minutes(monkeypatch):
    # a second a step, evaluations of five: the steps end five seconds before the minute does
    now, spare = [0.0], [0.0]
    monkeypatch.setattr(recipes.time, "perf_counter", lambda: now[0])
    progress = []
    for step in recipes.steps(TrainConfig(minutes=1), 0, [], 0.0, spare=lambda: spare[0]):
        progress.append(step.progress)
        now[0] += 1
        if step.evaluates:
            now[0] += 5
            spare[0] = 5.0
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert now[0] == pytest.approx(60, abs=1.5)


def test_numbers_of_other_libraries_become_pythons(tmp_path):
    config = TrainConfig(
        steps=np.int64(7), lr=torch.tensor(0.5), beta=np.float32(0.25), flip=np.bool_(True),
        optimizer_args={"betas": (np.float64(0.5), 0.9)}, schedule="steps", lr_epochs=np.arange(2),
    )  # fmt: skip
    files.write_recipe(tmp_path, asdict(config))
    read = files.read_recipe(tmp_path)
    assert read == asdict(config)
    found = [read[key] for key in ("steps", "lr", "beta", "flip", "optimizer_args", "lr_epochs")]
    assert found == [7, 0.5, 0.25, True, {"betas": [0.5, 0.9]}, [0, 1]]
    assert read["flip"] is True

"""Recipes: which settings there can be, and what is left of a clocked run's time."""

import math

import pytest

from vaelib import recipes
from vaelib.recipes import TrainConfig


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"init_std": 0.01}, {"init_std": math.inf}),
        ({"init_std": 1e-9}, {"init_std": -0.01}),
        ({"minutes": 0.5}, {"minutes": math.inf}),
        ({"minutes": 90}, {"minutes": -1}),
        ({"beta": 0.0}, {"beta": math.nan}),
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


def test_recipes_for_little_time_have_what_the_run_can_use():
    # shorter runs: smaller batches, and a compiler only where its time comes in again
    seconds, minute, hour = (recipes.best_for(m) for m in (0.1, 1, 60))
    assert not seconds["compile"]
    assert minute["compile"]
    assert minute["batch_size"] < hour["batch_size"]
    for found in (seconds, minute, hour):
        TrainConfig(**found)

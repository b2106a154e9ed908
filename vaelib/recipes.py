"""A run's recipe, and what it asks of each step: how far along, which rate, which images.

Every random number of step t comes from a generator seeded by (seed, t), so a run that was
killed and resumed draws what it would have drawn, and two processes draw the global batch's
numbers and take their slices of it.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

HUNDREDTHS = 100  # into which a clocked run divides its time


@dataclass
class TrainConfig:
    """How to train. These are the keys of a recipe, beside the data's and the model's.

    objective : what is maximised, a function of `vaelib.objectives`.
    n_importance : draws of z per image, for objectives that take several.
    beta : weight of the KL; 1 is the ELBO.
    kl_warmup : steps over which that weight rises linearly from 0.
    steps : optimiser steps.
    minutes : of wall clock, in place of `steps`: the schedule follows the clock.
    pace : the step at which each hundredth of a clocked run began, to replay it exactly.
    batch_size : images per step, over all processes together.
    accumulate : parts into which a process cuts its share of a batch, one after the other, to
        fit in memory: the gradient is the whole batch's.
    lr : peak learning rate of AdamW: linear warm-up over 10 % of the run, then cosine to 0.
    weight_decay : AdamW's.
    clip : largest norm of the gradient, in nats per parameter unit.
    precision : bf16 or fp32 for the networks (the loss is always fp32); auto takes bf16
        where the processor computes in it.
    flip : mirror each image left to right with probability 1/2, anew in every batch.
    compile : use torch.compile where there is a compiler.
    eval_every : steps between looks at the validation split; a clocked run looks at each
        tenth of its time, at 1,000 images.
    seed : of everything random.
    tensorboard : also write TensorBoard files into the run folder.
    """

    objective: Literal["elbo", "iwae"] = "elbo"
    n_importance: int = 1
    beta: float = 1.0
    kl_warmup: int = 0
    steps: int = 2000
    minutes: float | None = None
    pace: list[int] | None = None
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 4e-3
    weight_decay: float = 0.05
    clip: float = 200.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    flip: bool = False
    compile: bool = False
    eval_every: int = 500
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        if self.objective == "elbo" and self.n_importance != 1:
            raise ValueError(f"n_importance is {self.n_importance}; the objective elbo takes 1")
        above_0 = ("steps", "batch_size", "accumulate", "lr", "eval_every", "clip", "n_importance")
        for name in above_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes is {self.minutes}; give a number above 0, or steps")
        if self.pace is not None and (
            self.minutes or len(self.pace) != HUNDREDTHS or sorted(self.pace) != self.pace
        ):
            raise ValueError(
                f"pace is for a run of given steps: {HUNDREDTHS} of them in rising order"
            )
        for name in ("beta", "kl_warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")


def best_for(minutes: float) -> dict:
    """The fields of a TrainConfig that suit so little time, as benchmarks/ found them.

    Short runs take small batches at a high rate; the shortest have no time to compile.
    """
    short = minutes < 4
    return {
        "batch_size": 64 if short else 128,
        "lr": 5e-3 if short else 4e-3,
        "kl_warmup": 100 if short else 0,
        "compile": minutes >= 0.5,
    }


class Moment(NamedTuple):
    """One step of a run: its number, how far the run is (0 to 1), whether to look at val."""

    step: int
    done: float
    look: bool


def moments(config: TrainConfig, start: int, pace: list[int], seconds: float) -> Iterator[Moment]:
    """The steps of a run from `start` on; by the clock when the recipe gives minutes.

    A clocked run of which `seconds` have passed divides what is left, once its first step has
    compiled, into hundredths; the step at which each began is appended to `pace`. A recipe
    of given steps with that pace takes the same way.
    """
    if not config.minutes:
        for step in range(start, config.steps):
            done, look = (step + 1) / config.steps, (step + 1) % config.eval_every == 0
            if config.pace:
                done = bisect_right(config.pace, step) / HUNDREDTHS
                look = step in config.pace[10::10]
            yield Moment(step, done, look or step + 1 == config.steps)
        return
    end = time.perf_counter() + 60 * config.minutes - seconds
    step, before, hundredth, first = start, len(pace), len(pace) + 1, None
    while hundredth <= HUNDREDTHS:
        pace += [step] * (hundredth - len(pace))
        yield Moment(step, hundredth / HUNDREDTHS, step in pace[10::10])
        now = time.perf_counter()
        first = first or now
        passed = (now - first) / (end - first) if now < end else 1.0
        hundredth = before + 1 + int((HUNDREDTHS - before) * passed)
        step += 1
    pace += [step] * (HUNDREDTHS - len(pace))
    yield Moment(step, 1.0, True)


def learning_rate(done: float, config: TrainConfig) -> float:
    """Linear warm-up over the first tenth of the run, then a cosine down to 0."""
    warmup = 0.1
    if done < warmup:
        return config.lr * done / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def kl_weight(step: int, config: TrainConfig) -> float:
    """beta, or less of it while the KL is warming up."""
    return config.beta * min(1.0, (step + 1) / config.kl_warmup if config.kl_warmup else 1.0)


def batch_indices(step: int, n_images: int, config: TrainConfig) -> torch.Tensor:
    """Which images step `step` sees: the next `batch_size` of a fresh shuffle per epoch.

    Shapes: -> (batch_size,) int64. Every image comes once an epoch, whatever the batch size.
    """
    first = step * config.batch_size
    indices = []
    for epoch in range(first // n_images, (first + config.batch_size - 1) // n_images + 1):
        start = max(first - epoch * n_images, 0)
        stop = first + config.batch_size - epoch * n_images
        indices.append(_shuffle(n_images, _seed(config.seed, 1, epoch))[start:stop])
    return torch.cat(indices)


@lru_cache(maxsize=2)
def _shuffle(n_images: int, seed: int) -> torch.Tensor:
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))


def step_seed(seed: int, step: int) -> int:
    """The seed of all noise of one step."""
    return _seed(seed, 2, step)


def _seed(*parts: int) -> int:
    """One 63-bit seed from several small numbers (a multiplicative hash, so none repeat)."""
    value = 0
    for part in parts:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return value

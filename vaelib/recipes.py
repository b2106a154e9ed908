"""A recipe: the data, the model and the run, by key; and what follows from it at each step.

No torch here: the command line reads this to explain itself.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from vaelib import files

HUNDREDTHS = 100  # into which a clocked run divides its time
# what a key meant when recipes did not have it yet
WHEN_ABSENT = {"decay_vectors": True}
RENAMED = {"pace": "clock_steps"}

Arguments = dict[str, bool | int | float | list | str]  # by name, as a recipe gives them


@dataclass
class DataConfig:
    """Data: what to train on, and from which weights.

    data : a data set's name, or images:FOLDER.
    image_size : of celeba and images:FOLDER, the side of a square, or [height, width].
    channels : of celeba and images:FOLDER, 3 for colour or 1 for grey.
    init : checkpoint whose weights to start from; its prior may be another one.
    """

    data: str = "mnist"
    image_size: int | list[int] = 64
    channels: int = 3
    init: str | None = None


@dataclass
class ModelConfig:
    """Model: the arguments of `vaelib.VAE`, but for the image's shape, which the data has.

    latent_dim : D, the number of latent dimensions.
    backbone : unet (convolutional, no skips) or mlp (tanh hidden layers).
    widths : channels at 1/2, 1/4, ... of the image size (unet).
    n_res_blocks : residual blocks at the bottleneck of each side (unet).
    hidden : units of a hidden layer (mlp).
    n_hidden : hidden layers of each side (mlp).
    likelihood : of a pixel: bernoulli, continuous_bernoulli, gaussian (fixed sigma),
        learned_gaussian (one sigma, learned), pixel_gaussian (a sigma for each pixel) or
        sigmoid_gaussian (the same, its mean through a sigmoid).
    sigma : standard deviation of gaussian, and where learned_gaussian starts; pixels go from 0
        to 1.
    likelihood_args : further parameters of the likelihood, by name.
    prior : p(z): standard for N(0, I), or learned: vamp (a mixture of posteriors) or flow.
    prior_args : parameters of the prior, by name.
    posterior : q(z | x): normal with a diagonal covariance, or iaf (inverse autoregressive flow).
    posterior_args : parameters of the posterior, by name.
    """

    latent_dim: int = 2
    backbone: str = "unet"
    widths: tuple[int, ...] = (32, 64)
    n_res_blocks: int = 1
    hidden: int = 500
    n_hidden: int = 1
    likelihood: str = "bernoulli"
    sigma: float = 0.5
    likelihood_args: Arguments | None = None
    prior: str = "standard"
    prior_args: Arguments | None = None
    posterior: str = "normal"
    posterior_args: Arguments | None = None


@dataclass
class TrainConfig:
    """How to train. These are the keys of a recipe, beside the data's and the model's.

    Objective: what is maximised.

    objective : one of `vaelib.objectives.OBJECTIVES`: elbo, iwae (importance-weighted), free_bits,
        capacity, beta_tcvae, mmd_vae, or autoencoder (no noise, no KL, no bound).
    objective_args : its own parameters, by name.
    n_importance : draws of z per image, K.
    beta : weight of the KL; 1 is the ELBO.
    kl_warmup : steps over which that weight rises linearly from 0.
    two_stage : keep encoder and decoder as init has them, and train a learned prior alone.

    Schedule: how long, and how fast.

    steps : optimiser steps.
    minutes : of wall clock, in place of steps: the schedule follows the clock. Typed, it also has
        batch_size, lr, kl_warmup, compile and (without -c) the network and its prior
        chosen to suit the time and the machine, where they are not typed.
    clock_steps : the step at which each hundredth of a clocked run began, to replay it exactly.
    plans : of a run that was made longer: [until, steps] of each earlier plan, in order; up to
        that step the schedule was the one for so many steps.
    batch_size : images per step, over all processes together.
    accumulate : parts into which a process cuts its share of a batch, one after the other, to
        fit in memory; the gradient is the whole batch's.
    optimizer : which one.
    optimizer_args : its further arguments as torch.optim names them, betas say.
    lr : peak learning rate.
    schedule : of the learning rate: cosine (a linear warm-up over 10 % of the run, then down to
        0), constant, or steps (times lr_factor at each epoch of lr_epochs).
    lr_epochs : see schedule.
    lr_factor : see schedule.
    weight_decay : the optimiser's.
    decay_vectors : let weight decay shrink norms, biases and sigmas too (tensors of fewer than
        two dimensions).
    init_std : draw the initial weights and biases from N(0, init_std^2); null: each layer's own.
    clip : largest norm of the gradient, in nats per parameter unit.
    flip : mirror each image left to right with probability 1/2, anew in every batch.

    Run: precision, evaluation, seed.

    precision : of the networks (the loss is always fp32); auto takes bf16 where the hardware
        computes in it, on a processor only if it is compiled.
    compile : use torch.compile where there is a compiler.
    eval_every : steps between evaluations on the validation split; a clocked run is evaluated
        at each tenth of its time, on 1,000 images.
    seed : of everything random.
    tensorboard : also write TensorBoard files into the run folder.
    """

    objective: str = "elbo"
    objective_args: Arguments = field(default_factory=dict)
    n_importance: int = 1
    beta: float = 1.0
    kl_warmup: int = 0
    two_stage: bool = False
    steps: int = 2000
    minutes: float | None = None
    clock_steps: list[int] | None = None
    plans: list[list[int]] = field(default_factory=list)
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adamw", "adam", "adagrad"] = "adamw"
    optimizer_args: Arguments = field(default_factory=dict)
    lr: float = 4e-3
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    lr_epochs: list[int] = field(default_factory=list)
    lr_factor: float = 0.1
    weight_decay: float = 0.05
    decay_vectors: bool = False
    init_std: float | None = None
    clip: float = 200.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    flip: bool = False
    compile: bool = False
    eval_every: int = 500
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        for name, value in vars(self).items():  # so that it can be written and read again
            setattr(self, name, files.plain(value))
        above_0 = (
            "steps", "batch_size", "accumulate", "lr", "lr_factor", "eval_every", "clip",
            "n_importance",
        )  # fmt: skip
        for name in above_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes is {self.minutes}; give a number above 0, or steps")
        if self.init_std is not None and not 0 < self.init_std < math.inf:
            raise ValueError(f"init_std is {self.init_std}; give a number above 0, or null")
        clock = self.clock_steps
        if clock is not None and (
            self.minutes or len(clock) != HUNDREDTHS or sorted(clock) != list(clock)
        ):
            raise ValueError(
                f"clock_steps is for a run of given steps: {HUNDREDTHS} of them in rising order"
            )
        for (before, fewer), (until, steps) in pairwise([[0, 0], *self.plans]):
            if not (before < until <= steps and fewer < steps):
                raise ValueError(
                    f"plans {self.plans}: give pairs [until, steps], both rising, until <= steps"
                )
        if bool(self.lr_epochs) != (self.schedule == "steps") or (
            sorted(self.lr_epochs) != list(self.lr_epochs)
        ):
            raise ValueError(
                f"lr_epochs {self.lr_epochs}: the schedule steps takes epochs in rising order, "
                f"the others none; it is {self.schedule}"
            )
        for name in ("beta", "kl_warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")


def read(path: Path) -> dict:
    """The recipe in a file or folder; a key that it does not have means what it meant then."""
    recipe = {RENAMED.get(key, key): value for key, value in files.read_recipe(path).items()}
    return WHEN_ABSENT | recipe


def n_eval(config: TrainConfig) -> int:
    """Images of val to evaluate on, at most; ten evaluations of a clocked run must fit its time."""
    return 1000 if config.minutes or config.clock_steps else 5000


class Step(NamedTuple):
    """One step of a run: its number, how far the run is (0 to 1), whether to evaluate after it."""

    number: int
    progress: float
    evaluates: bool


def steps(
    config: TrainConfig,
    start: int,
    clock: list[int],
    elapsed: float,
    seconds: Callable[[], float] = lambda: time.perf_counter(),
    spare: Callable[[], float] = lambda: 0.0,
) -> Iterator[Step]:
    """The steps of a run from `start` on; by the clock `seconds` when the recipe gives minutes.

    A clocked run of which `elapsed` seconds have passed divides what is left, once its first
    step has compiled, into hundredths; the step at which each began is appended to `clock`. The
    last `spare()` seconds are kept for the evaluation at the end. A recipe of given steps with
    those `clock_steps` takes the same way.
    """
    if not config.minutes:
        for number in range(start, config.steps):
            planned = next((steps for until, steps in config.plans if number < until), config.steps)
            progress, evaluates = (number + 1) / planned, (number + 1) % config.eval_every == 0
            evaluates = evaluates or number + 1 == planned
            if config.clock_steps:
                progress = bisect_right(config.clock_steps, number) / HUNDREDTHS
                evaluates = number in config.clock_steps[10::10]
            yield Step(number, progress, evaluates or number + 1 == config.steps)
        return
    end = seconds() + 60 * config.minutes - elapsed
    number, before, hundredth, first = start, len(clock), len(clock) + 1, None
    while hundredth <= HUNDREDTHS:
        clock += [number] * (hundredth - len(clock))
        yield Step(number, hundredth / HUNDREDTHS, number in clock[10::10])
        now = seconds()
        first = first or now
        last = end - spare()
        passed = (now - first) / (last - first) if now < last else 1.0
        hundredth = max(hundredth, before + 1 + int((HUNDREDTHS - before) * passed))
        number += 1
    clock += [number] * (HUNDREDTHS - len(clock))
    yield Step(number, 1.0, True)


def epoch(step: int, n_train: int, config: TrainConfig) -> float:
    """How many times the run has seen each training image before this step."""
    return step * config.batch_size / n_train


def learning_rate(progress: float, config: TrainConfig, epoch: float = 0.0) -> float:
    """The rate when the run is so far (0 to 1), by the recipe's schedule."""
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "steps":
        return config.lr * config.lr_factor ** bisect_right(config.lr_epochs, epoch)
    warmup = 0.1  # linear over the first tenth of the run, then a cosine down to 0
    if progress < warmup:
        return config.lr * progress / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def kl_weight(step: int, config: TrainConfig) -> float:
    """beta, or less of it while the KL is warming up."""
    return config.beta * min(1.0, (step + 1) / config.kl_warmup if config.kl_warmup else 1.0)

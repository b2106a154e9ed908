"""The stream of batches and noise that every way to train draws from.

Every random number of step t comes from a generator seeded by (seed, t), so a run that was
killed and resumed draws what it would have drawn, and two processes draw the global batch's
numbers and take their slices of it.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vaelib.data import Images, seen_by
from vaelib.recipes import TrainConfig


class Batch(NamedTuple):
    """What one step sees: pixels, and standard normal noise for z and for the objective."""

    x: Tensor  # (B, C, H, W), as the likelihood takes them
    eps: Tensor  # (K, B, D)
    noise: Tensor | None  # (B, D), where it was asked for

    def part(self, images: slice) -> "Batch":
        """The same of some of the images."""
        noise = None if self.noise is None else self.noise[images]
        return Batch(self.x[images], self.eps[:, images], noise)


class Stream:
    """Batches by the number of the step. `train` lies on the device, its images as bytes."""

    def __init__(self, model, train: Images, config: TrainConfig, with_noise: bool = False):
        self.model, self.train, self.config, self.with_noise = model, train, config, with_noise
        self.generator = torch.Generator(train.images.device)

    def batch(self, step: int) -> Batch:
        """The images of a step, flipped, binarised or dequantised, and its noise."""
        config, generator, device = self.config, self.generator, self.train.images.device
        generator.manual_seed(step_seed(config.seed, step))
        indices = batch_indices(step, len(self.train), config).to(device)
        images = self.train.images[indices]  # (B, C, H, W) uint8
        if config.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        x = seen_by(self.model, images, generator)  # (B, C, H, W) float
        shape = (config.n_importance, len(images), self.model.latent_dim)
        eps, noise = torch.randn(shape, generator=generator, device=device), None  # (K, B, D)
        if self.with_noise:
            generator.manual_seed(_seed(config.seed, 3, step))
            noise = torch.randn(shape[1:], generator=generator, device=device)  # (B, D)
        return Batch(x, eps, noise)


def batch_indices(step: int, n_images: int, config: TrainConfig) -> Tensor:
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
def _shuffle(n_images: int, seed: int) -> Tensor:
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))


def step_seed(seed: int, step: int) -> int:
    """The seed of all noise of one step."""
    return _seed(seed, 2, step)


def dream_seed(seed: int, step: int) -> int:
    """The seed of what the model itself draws at a step, as in wake-sleep."""
    return _seed(seed, 4, step)


def _seed(*parts: int) -> int:
    """One 63-bit seed from several small numbers (a multiplicative hash, so none repeat)."""
    value = 0
    for part in parts:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return value

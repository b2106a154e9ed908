"""Sprites: one shape on black, 64x64, made in memory from exact factors, as in dSprites.

3 shapes (square, ellipse, heart), 6 scales, 40 orientations, 32 places along x and 32 along y:
737,280 images, numbered with y changing fastest. Each place is a whole pixel from the next, so an
image is one of 720 patches, copied. `sprites` has 60,000 of them at random; any other is one call
of `at` away. A square looks the same after every 10 orientations, an ellipse after every 20.
Source: after dSprites (Matthey et al. 2017); own renderings, so results differ from dSprites'.
"""

from collections.abc import Iterable
from colorsys import hsv_to_rgb
from functools import lru_cache, partial
from math import pi, prod

import numpy as np
import torch
from torch import Tensor

from vaelib.data.images import DataError, Images, Source

SIZES = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
COLOURS = {"colour": 8} | SIZES  # hues, evenly around the circle
SPLIT_SIZES = {"train": 50_000, "val": 5_000, "test": 5_000}
SIDE, PATCH = 64, 33  # pixels; centres lie 16 to 47 pixels from the corner


def at(indices: Iterable[int], colour: bool = False, smooth: bool = False) -> Images:
    """The images of these numbers, with their factors; DataError for a number that is none.

    colour : in one of 8 hues, the slowest factor (5,898,240 images).
    smooth : with grey edges, a pixel's level being the share of it that is covered.
    """
    name = "sprites" + "-colour" * colour + "-smooth" * smooth
    sizes = COLOURS if colour else SIZES
    indices, n = torch.as_tensor(indices).cpu().flatten(), prod(sizes.values())
    whole = not indices.is_floating_point() or not len(indices)
    if not whole or (len(indices) and (indices.min() < 0 or indices.max() >= n)):
        raise DataError(f"{name}: numbers are whole and go from 0 to {n - 1:,}")
    values = np.unravel_index(indices.long().numpy(), tuple(sizes.values()))
    factors = {k: torch.from_numpy(v) for k, v in zip(sizes, values, strict=True)}
    return Images(name, "any", render(factors, smooth), factors=factors, things="sprites")


def number(factors: dict[str, Tensor]) -> Tensor:
    """The numbers of images by their factors, the inverse of `at`. Shapes: of (N,) -> (N,)."""
    sizes = COLOURS if "colour" in factors else SIZES
    values = [factors[name].numpy() for name in sizes]
    return torch.from_numpy(np.ravel_multi_index(values, tuple(sizes.values())))


def render(factors: dict[str, Tensor], smooth: bool = False) -> Tensor:
    """The images of some factors, in colour where there is one.

    Shapes: of (N,) int64 -> (N, 1, 64, 64) or (N, 3, 64, 64) uint8.
    """
    shape, scale, orientation, x, y = (factors[name].numpy() for name in SIZES)
    colour = factors["colour"].numpy() if "colour" in factors else None
    patches = _patches(smooth)[shape, scale, orientation][:, None]  # (N, 1, 33, 33)
    if colour is not None:
        patches = _coloured(smooth)[colour, shape, scale, orientation]  # (N, 3, 33, 33)
    canvas = np.zeros((*patches.shape[:2], SIDE, SIDE), np.uint8)
    # every place of a patch in each image, without a copy: (N, C, 32, 32, 33, 33)
    places = np.lib.stride_tricks.sliding_window_view(
        canvas, (PATCH, PATCH), axis=(2, 3), writeable=True
    )
    places[np.arange(len(x)), :, y, x] = patches
    return torch.from_numpy(canvas)


@lru_cache(maxsize=2)
def _patches(smooth: bool) -> np.ndarray:
    """Each shape, scale and orientation, in the middle of a patch. -> (3, 6, 40, 33, 33) uint8."""
    n = 8 if smooth else 1  # points along a side of a pixel
    ticks = (torch.arange(PATCH * n) + 0.5) / n - PATCH / 2  # pixels from the middle
    v, u = torch.meshgrid(ticks, ticks, indexing="ij")  # down, right
    angle = 2 * pi * torch.arange(40)[:, None, None] / 40
    a, b = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()  # turned back
    patches = np.empty((3, 6, 40, PATCH, PATCH), np.uint8)
    for i in range(6):
        half = 10.75 * (0.5 + i / 10)  # pixels: half a square's side
        s, t = a / half, b / half
        square = torch.maximum(s.abs(), t.abs())
        ellipse = (s / 1.4).square() + (t / 0.7).square()
        heart = s.square() + (0.46 - 1.25 * t - 0.75 * s.abs().sqrt()).square()
        for k, shape in enumerate((square, ellipse, heart)):
            share = (shape <= 1).float().reshape(40, PATCH, n, PATCH, n).mean((2, 4))
            patches[k, i] = (255 * share).round().byte().numpy()
    return patches


@lru_cache(maxsize=2)
def _coloured(smooth: bool) -> np.ndarray:
    """The patches in 8 hues. Shapes: -> (8, 3, 6, 40, 3, 33, 33) uint8."""
    hues = np.array([hsv_to_rgb(i / 8, 0.8, 1.0) for i in range(8)])  # (8, 3)
    levels = _patches(smooth)[None, :, :, :, None] * hues[:, None, None, None, :, None, None]
    return levels.round().astype(np.uint8)


@lru_cache(maxsize=2)
def _order(n: int) -> np.ndarray:
    return np.random.RandomState(0).permutation(n)


def load(split: str, colour: bool = False, smooth: bool = False, **_) -> Images:
    """One split of 60,000 images, drawn from all of them at random, always the same."""
    names, sizes = list(SPLIT_SIZES), list(SPLIT_SIZES.values())
    first = sum(sizes[: names.index(split)])
    n = prod((COLOURS if colour else SIZES).values())
    found = at(_order(n)[first : first + SPLIT_SIZES[split]], colour, smooth)
    return Images(found.name, split, found.images, factors=found.factors)


ALIKE = {"things": "sprites", "assets": "Sprites", "size": (64, 64)}
ALIKE |= {"n_train": SPLIT_SIZES["train"]}
SPRITES, SPRITES_COLOUR, SPRITES_SMOOTH = (
    Source(name, partial(load, **options), **ALIKE)
    for name, options in (
        ("sprites", {}),
        ("sprites-colour", {"colour": True}),
        ("sprites-smooth", {"smooth": True}),
    )
)

"""Images as one uint8 tensor, what a data set is, and how pixels become a model's floats."""

import hashlib
import operator
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vaelib.files import UserError

SPLITS = ("train", "val", "test")


class DataError(UserError):
    """A data set is unknown, missing, damaged or can't be fetched; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """One split of one data set. Raises DataError where a tensor is not as promised here.

    images : (N, C, H, W) uint8 of 1 or 3 channels, on any device.
    labels : (N,) int64, or None where there are none.
    attributes : by name, whether each image has it, (N,) bool; None where nobody noted any.
    factors : by name, a number for each image, (N,): what it was made from; None where unknown.
    note : what else to say of where they come from, for the record.
    things : what a caption calls the pictures.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor | None = None
    attributes: dict[str, Tensor] | None = None
    factors: dict[str, Tensor] | None = None
    note: str = ""
    things: str = "images"

    def __post_init__(self):
        x = self.images
        plain = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
        if not plain or x.dtype != torch.uint8:
            kind = (x.dtype if plain else x.layout) if isinstance(x, Tensor) else type(x).__name__
            raise DataError(
                f"{self.name}: images are {kind}; give a uint8 tensor, 0 to 255 "
                "(of floats in [0, 1]: (255 * x).round().to(torch.uint8))"
            )
        if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[1:]:
            raise DataError(
                f"{self.name}: images have shape {tuple(x.shape)}; give (N, C, H, W) "
                "with C = 1 or 3 and at least one pixel"
            )
        columns = {} if self.labels is None else {"labels": self.labels}
        columns |= {f"attribute {k!r}": v for k, v in (self.attributes or {}).items()}
        columns |= {f"factor {k!r}": v for k, v in (self.factors or {}).items()}
        for column, values in columns.items():
            dtype = {"labels": torch.int64, "attribute": torch.bool}.get(column.split()[0])
            fits = isinstance(values, Tensor) and values.shape == (len(x),)
            if not fits or (dtype and values.dtype != dtype):
                found = type(values).__name__
                if isinstance(values, Tensor):
                    found = f"{values.dtype} {tuple(values.shape)}"
                wanted = f"{dtype} " if dtype else ""
                raise DataError(
                    f"{self.name}: {column} is {found}; give a {wanted}tensor of {(len(x),)}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device) -> "Images":
        """The same split on another device."""
        return replace(self, images=self.images.to(device))

    def subset(self, n: int) -> "Images":
        """The first `n` images (all of them when there are fewer)."""
        if n < 0:
            raise DataError(f"{self.name}: no subset of {n} images; give 0 or more")
        return self[:n]

    def __getitem__(self, index) -> "Images":
        """The images at a slice, a mask, indices or one index, with what is known of them."""
        with suppress(TypeError):  # one index, of whatever library
            index = [operator.index(index)]
        labels = None if self.labels is None else self.labels[index]
        attributes = self.attributes and {k: v[index] for k, v in self.attributes.items()}
        factors = self.factors and {k: v[index] for k, v in self.factors.items()}
        known = {"labels": labels, "attributes": attributes, "factors": factors}
        return replace(self, images=self.images[index], **known)

    @property
    def sha256(self) -> str:
        """SHA-256 of the pixels, in order: what metrics.json means by the data's hash."""
        return hashlib.sha256(self.images.cpu().contiguous().numpy()).hexdigest()

    def noise(self, binary: bool) -> str:
        """For the record, how pixels are drawn for a likelihood: of coin flips, or of densities."""
        if not binary:
            return "none; dequantised"
        drawn = ((self.images == 0) | (self.images == 255)).all()
        return "none; black or white as they come" if drawn else "dynamic"

    @property
    def title(self) -> str:
        """How a figure's caption names it; what is no text in a folder's name is escaped."""
        name = Path(self.name).name.encode("utf-8", "backslashreplace").decode("utf-8")
        return f"{name} {self.split}"


@dataclass(frozen=True)
class Source:
    """A data set: one file under data/, one line in `SOURCES`.

    load : (split, *, folder, image_size, channels) -> Images; `image_size` is (height, width).
        A source of one fixed size takes the three and ignores them.
    splits : the splits it has.
    things : what captions call its pictures.
    terms : terms of use, shown with anything made of it.
    shareable : whether its images may be passed on inside a page.
    assets : its folder under readme-assets.
    size : (height, width) of its images, where that is always the same.
    n_train : how many training images it has, where that is always the same.
    fallback : the source to go on with when it can't be had and the caller allows.
    at_hand : whether all of it is here; where it is not, val falls back as train does.
    """

    name: str
    load: Callable[..., Images]
    splits: tuple[str, ...] = SPLITS
    things: str = "images"
    terms: str = ""
    shareable: bool = True
    assets: str = ""
    size: tuple[int, int] | None = None
    n_train: int | None = None
    fallback: str | None = None
    at_hand: Callable[[], bool] = lambda: True


def to_unit(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) in 0..255 -> float in [0, 1]."""
    return images.float().div_(255)


def binarise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One Bernoulli draw per pixel, its grey value / 255 being the probability of a 1.

    Shapes: uint8 (B, C, H, W) -> float of 0s and 1s. Drawn anew at every call ("dynamic
    binarisation", Salakhutdinov & Murray 2008), unless `generator` is seeded to repeat it.
    The noise is drawn on the generator's device.
    """
    device = generator.device if generator else images.device
    # x_i = 1 with probability g_i / 255: u < g for u uniform on {0, ..., 254}
    noise = torch.randint(
        0, 255, images.shape, dtype=torch.uint8, generator=generator, device=device
    )
    return (noise.to(images.device) < images).float()


def dequantise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Grey levels spread over their cells: (g + u) / 256 with u uniform on [0, 1).

    Shapes: uint8 (B, C, H, W) -> float in [0, 1). A density is only a likelihood of 8-bit
    pixels when it is scored on these (Uria et al. 2013; Theis et al. 2016, section 3.1).
    """
    device = generator.device if generator else images.device
    noise = torch.rand(images.shape, generator=generator, device=device)
    return (images + noise.to(images.device)) / 256


def seen_by(model, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The pixels as the model's likelihood takes them: binarised, or dequantised into [0, 1].

    Shapes: uint8 (B, C, H, W) -> float (B, C, H, W).
    """
    prepare = binarise if model.likelihood.binary else dequantise
    return prepare(images, generator)


def as_picture(pixels: Tensor):
    """As a PIL image. Shapes: (C, H, W), uint8 or float in [0, 1], C = 1 or 3."""
    from PIL import Image

    if pixels.is_floating_point():
        pixels = (255 * pixels.clamp(0, 1)).round()
    array = pixels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)

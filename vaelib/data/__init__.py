"""Data sets, each a source of its own; nothing is fetched until `load`.

To add one, write a file beside this one that makes a `Source` and list it in `SOURCES`.
"""

from dataclasses import replace
from numbers import Integral

from vaelib.choices import nearest
from vaelib.data.celeba import CELEBA
from vaelib.data.download import root
from vaelib.data.frey import FREY, FREY_TIME
from vaelib.data.images import (
    SPLITS,
    DataError,
    Images,
    Source,
    as_picture,
    binarise,
    dequantise,
    seen_by,
    to_unit,
)
from vaelib.data.mnist import MNIST, MNIST_5K, MNIST_FIXED
from vaelib.data.own import FOLDER, PREFIX, folder_of, from_array
from vaelib.data.sprites import SPRITES, SPRITES_COLOUR, SPRITES_SMOOTH

SOURCES = (
    MNIST, MNIST_5K, MNIST_FIXED, FREY, FREY_TIME, CELEBA, SPRITES, SPRITES_COLOUR, SPRITES_SMOOTH,
    FOLDER,
)  # fmt: skip
NAMES = tuple(source.name for source in SOURCES)

__all__ = [
    "NAMES",
    "SOURCES",
    "SPLITS",
    "DataError",
    "Images",
    "Source",
    "absolute",
    "as_picture",
    "binarise",
    "dequantise",
    "from_array",
    "load",
    "root",
    "seen_by",
    "source",
    "to_unit",
]


def source(name: str) -> Source:
    """The source of this name; of "images:photos" that of any folder."""
    if str(name).startswith(PREFIX):
        return FOLDER
    found = {source.name: source for source in SOURCES}.get(name)
    if found is None:
        there = ", ".join(NAMES)
        raise DataError(f"no data set {name!r}; there are: {there}{nearest(name, NAMES)}")
    return found


def absolute(name: str) -> str:
    """The name as it holds from any folder: "images:photos" with the whole path of photos."""
    return PREFIX + folder_of(name) if source(name) is FOLDER else name


def load(
    name: str,
    split: str = "train",
    *,
    fallback: bool = False,
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
) -> Images:
    """Load one split of a data set, downloading it where it is missing.

    With `fallback`, `mnist` that can't be had becomes `mnist-5k`, with one printed line for
    train and test (its val split stands in for test). `image_size`, the side of a square or
    (height, width), and `channels`, 3 for colour and 1 for grey, are those to which `celeba`
    and the images of a folder are brought. Raises DataError with what to do otherwise.
    """
    found = source(name)
    if split not in found.splits:
        choices = ", ".join(found.splits)
        raise DataError(f"no split {split!r} of {name}; choose one of {choices}")
    arguments = {"folder": folder_of(name) if found is FOLDER else ""}
    arguments |= {"image_size": _size(image_size), "channels": channels}
    if channels not in (1, 3):
        raise DataError(f"channels {channels!r}: give 3 for colour or 1 for grey")
    other = found.fallback if fallback else None
    if other and split == "val" and not found.at_hand():
        return load(other, split)  # train falls back too, and must not meet its own images
    try:
        images = found.load(split, **arguments)
    except DataError as error:
        if not other:
            raise
        images = load(other, split if split in source(other).splits else "val")
        print(f"{error} Going on with {other} ({images.split}: {len(images):,} {images.things}).")
        return images
    return replace(images, things=found.things)


def _size(image_size) -> tuple[int, int]:
    """(height, width) of a side or a pair."""
    sides = image_size if isinstance(image_size, list | tuple) else (image_size, image_size)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or min(sides) < 1:
        raise DataError(f"image_size {image_size!r}: give at least 1, or [height, width]")
    return tuple(map(int, sides))

"""A user's own pictures: the images of a folder, or an array of them."""

import hashlib
import os
import warnings
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaelib.data import folders
from vaelib.data.images import SPLITS, DataError, Images, Source

PREFIX = "images:"


def folder_of(name: str) -> str:
    """The absolute folder of "images:FOLDER"."""
    folder = name.removeprefix(PREFIX)
    if not folder.strip():
        raise DataError("images: names no folder; give images:FOLDER with a folder of images")
    return os.path.abspath(os.path.expanduser(folder))


def place(name: str) -> float:
    """Where an image belongs, in [0, 1): a hash of its name, so that it stays as others come."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2**48


def load(split: str, *, folder: str, image_size: tuple[int, int], channels: int) -> Images:
    """Any folder's images: about a tenth for val, a tenth for test, the rest for train.

    Copies of one picture count once, so that no split has a picture of another.
    """
    if not os.path.isdir(folder):
        raise DataError(f"no folder {folder!r}; give images:FOLDER with a folder of images")
    files, left_out = folders.image_files(Path(folder))
    files.sort(key=place)
    pixels, names = folders.cached_array(
        Path(folder), files, left_out, image_size, channels, once=True
    )
    if len(names) < 3:
        raise DataError(
            f"{folder} has {len(names)} readable images; give a folder with at least 3, "
            "one for each split"
        )
    part = dict(zip(("val", "test", "train"), _parts(names), strict=True))[split]
    return Images(PREFIX + folder, split, pixels[part])


def _parts(names: list[str]) -> list[slice]:
    """The val, test and train slices of names in the order of their places."""
    n = len(names)
    ends = np.searchsorted([place(name) for name in names], (0.1, 0.2)).tolist()
    if min(ends[0], ends[1] - ends[0], n - ends[1]) < 2:  # few images: by rank, not by place
        each = max(round(n / 10), 1)
        ends = [each, 2 * each]
    return [slice(0, ends[0]), slice(*ends), slice(ends[1], n)]


def from_array(
    array, labels=None, *, name: str = "own", val: float = 0.1, test: float = 0.1, seed: int = 0
) -> dict[str, Images]:
    """Splits of an array or tensor of uint8, drawn at random with `seed`.

    Shapes: (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3; labels (N,) of integers.
    `val` and `test` are shares of N, or numbers of images where they are integers; a split of
    no images is left out. Warns of pictures that are there twice: splits may then share them.
    Raises DataError where the array is something else.
    """
    images = _channels_first(_tensor(array, f"{name}: the array"), name)
    if labels is not None:
        labels = _tensor(labels, f"{name}: labels")
        if labels.is_floating_point() or labels.is_complex():
            raise DataError(f"{name}: labels are {labels.dtype}; give integers")
        labels = labels.long()
    whole, n = Images(name, "all", images, labels), len(images)
    for share in (val, test):
        if not (isinstance(share, Real) and share >= 0 and (_whole(share) or share < 1)):
            raise DataError(f"{name}: val and test are shares in [0, 1) or numbers of images")
    # a share that is not 0 has at least one image
    sizes = [int(s) if _whole(s) else max(round(s * n), int(s > 0)) for s in (val, test)]
    if sum(sizes) >= n:
        raise DataError(f"{name}: {n} images are too few for {sizes[0]} val, {sizes[1]} test ones")
    prints = {hashlib.sha256(image.cpu().contiguous().numpy()).digest() for image in images}
    if len(prints) < n:
        warnings.warn(
            f"{name}: {n - len(prints):,} of {n:,} images are copies of others, and splits may "
            "share them; take them out (numpy.unique with axis=0)",
            stacklevel=2,
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    parts = order.split([n - sum(sizes), *sizes])
    splits = {s: whole[part.sort().values] for s, part in zip(SPLITS, parts, strict=True)}
    return {s: Images(name, s, x.images, x.labels) for s, x in splits.items() if len(x)}


def _whole(number) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _tensor(values, what: str) -> Tensor:
    """An array, a tensor or a list as a tensor of its own memory."""
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is no array of numbers ({error}); give uint8") from None


def _channels_first(images: Tensor, name: str) -> Tensor:
    """(N, H, W) or (N, H, W, C) as (N, C, H, W)."""
    if images.ndim == 3:
        return images.unsqueeze(1)  # (N, 1, H, W)
    if images.ndim == 4 and images.shape[3] in (1, 3):
        if images.shape[1] in (1, 3):
            raise DataError(
                f"{name}: {tuple(images.shape)} may be (N, H, W, C) or (N, C, H, W); make Images"
            )
        return images.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    return images


FOLDER = Source(f"{PREFIX}FOLDER", load)

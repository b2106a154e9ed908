"""Folders of image files, CelebA among them, each decoded once into a memory-mapped array.

The array lies in the user's cache, keyed by folder, size and what is in the folder; it is
built beside its place and moved there whole. Splits are slices of it, so that training
streams from the disk: the operating system keeps in memory what fits.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

SPLITS = ("train", "val", "test")
CELEBA_SIZE = 202_599
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class DataError(RuntimeError):
    """A data set is unknown, missing, damaged or can't be fetched; the message says what to do."""


def own_images(folder: Path, split: str, image_size: int) -> Tensor:
    """Any folder's images: a tenth for val, a tenth for test (at most 1,000 each), by their names.

    A file's place follows from a hash of its name, so it stays where it is as others come.
    Shapes: -> (N, 3, image_size, image_size) uint8.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}; give images:FOLDER with a folder of images")
    files = sorted(image_files(folder), key=lambda p: hashlib.sha256(p.name.encode()).digest())
    pixels, names = cached_array(folder, files, image_size)
    if len(names) < 10:
        raise DataError(f"{folder} has {len(names)} readable images; give a folder of 10 or more")
    n = min(len(names) // 10, 1000)
    parts = {"val": slice(0, n), "test": slice(n, 2 * n), "train": slice(2 * n, None)}
    return pixels[parts[split]]


def celeba(folder: Path, split: str, image_size: int) -> dict:
    """The fields `images` and `attributes` of one split of CelebA, or of what part is there.

    Whole, it has its official partition; otherwise 85, 5 and 10 % in order of number.
    """
    files = image_files(folder / "img_align_celeba")
    # the usual square around the face: 148 of 178 pixels, or 74 of 89
    pixels, names = cached_array(folder / "img_align_celeba", files, image_size, crop=148 / 178)
    if len(names) < 20:
        raise DataError(f"{folder} has {len(names)} readable images; fetch them again")
    partition = folder / "list_eval_partition.txt"
    ends = [int(share * len(names)) for share in (0, 0.85, 0.9, 1)]
    if len(names) == CELEBA_SIZE and partition.exists():
        of = [int(line.split()[1]) for line in partition.read_text().splitlines()]
        ends = [sum(part < i for part in of) for i in range(4)]  # they come one after the other
    part = slice(*ends[SPLITS.index(split) :][:2])
    table = celeba_attributes(folder / "list_attr_celeba.txt", names[part])
    return {"images": pixels[part], "attributes": table}


def celeba_attributes(path: Path, names: list[str]) -> dict[str, Tensor] | None:
    """The 40 attributes of these images, by attribute, (N,) bool each; None without the file."""
    if not path.exists():
        return None
    _, header, *lines = path.read_text().splitlines()
    has = {line.split()[0]: line.split()[1:] for line in lines}
    try:
        table = torch.tensor([[value == "1" for value in has[name]] for name in names])
        return dict(zip(header.split(), table.T, strict=True))
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} does not fit the images beside it; fetch it again") from error


def decode(path: Path, image_size: int, crop: float) -> np.ndarray | None:
    """One file as (3, S, S) uint8: upright, RGB, centre crop, resized; None if it is no image.

    `crop` is the side of the square that is cut out, over the image's shorter side. What is
    transparent becomes white.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "I;16", "F"):  # 16 bits and more: spread over 8
                levels = np.asarray(image, dtype=np.float64)
                span = max(levels.max() - levels.min(), 1e-12)
                image = Image.fromarray(np.uint8(255 * (levels - levels.min()) / span))
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                page = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(page, image)
            image = image.convert("RGB")
            side = max(round(crop * min(image.size)), 1)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (round(left), round(top), round(left) + side, round(top) + side)
            size = (image_size, image_size)
            image = image.crop(box).resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
            return np.asarray(image).transpose(2, 0, 1)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def image_files(folder: Path) -> list[Path]:
    """The files in a folder and below it that look like images, sorted by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def cache() -> Path:
    """Where decoded folders are kept."""
    import pooch

    return Path(pooch.os_cache("vaelib")) / "images"


def cached_array(
    folder: Path, files: list[Path], image_size: int, crop: float = 1.0
) -> tuple[Tensor, list[str]]:
    """The images in `files` as a memory map (N, 3, S, S) uint8, and their names, in that order.

    Decoded by several threads with a progress bar the first time, and again when a file
    came, went or changed; files that are no images are named and left out.
    """
    stamp = hashlib.sha256(f"{image_size} {crop}".encode())
    for path in files:
        about = path.stat()
        stamp.update(f"{path.relative_to(folder)}\0{about.st_size} {about.st_mtime_ns}\n".encode())
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    stem = f"{folder.name}-{place}-{image_size}"
    target = cache() / f"{stem}-{stamp.hexdigest()[:12]}.bin"
    listing = target.with_suffix(".json")
    if not listing.exists():
        cache().mkdir(parents=True, exist_ok=True)
        older = [p for p in cache().glob(f"{stem}-*") if p.suffix in (".bin", ".json")]
        partial = target.with_suffix(f".{os.getpid()}.partial")
        try:
            names = _decode_all(partial, folder, files, image_size, crop)
            os.replace(partial, target)
            partial.write_text(json.dumps(names))
            os.replace(partial, listing)
        finally:
            partial.unlink(missing_ok=True)
        for path in older:
            path.unlink(missing_ok=True)
    names = json.loads(listing.read_text())
    shape = (len(names), 3, image_size, image_size)
    if not names:
        return torch.zeros(shape, dtype=torch.uint8), names
    # copy on write: nothing done to the tensor reaches the file
    return torch.from_numpy(np.memmap(target, np.uint8, "c", shape=shape)), names


def _decode_all(target: Path, folder: Path, files: list[Path], image_size: int, crop: float):
    """Write every image's pixels into a new file; returns the names of those written."""
    names, skipped = [], []
    with ThreadPoolExecutor() as pool, open(target, "wb") as file:
        decoded = pool.map(lambda path: decode(path, image_size, crop), files)
        for path, pixels in zip(tqdm(files, folder.name, unit="image"), decoded, strict=True):
            name = str(path.relative_to(folder))
            if pixels is None:
                skipped.append(name)
            else:
                file.write(pixels.tobytes())
                names.append(name)
    if skipped:
        more = f" and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        print(f"left out, no readable images: {', '.join(skipped[:5])}{more}")
    return names

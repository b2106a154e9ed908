"""Folders of image files, CelebA among them, each decoded once into a memory-mapped array.

The array lies in the user's cache, keyed by folder, size and what is in the folder; it is
built beside its place and moved there whole. Splits are slices of it, so that training
streams from the disk: the operating system keeps in memory what fits.
"""

import contextlib
import glob
import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

SPLITS = ("train", "val", "test")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class DataError(RuntimeError):
    """A data set is unknown, missing, damaged or can't be fetched; the message says what to do."""


def own_images(folder: Path, split: str, image_size: int) -> Tensor:
    """Any folder's images: about a tenth for val, a tenth for test, the rest for train.

    Where an image belongs follows from a hash of its name, so that it stays there as others
    come and go. Shapes: -> (N, 3, image_size, image_size) uint8.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}; give images:FOLDER with a folder of images")

    def place(path: Path) -> float:
        name = os.fsencode(path.relative_to(folder).as_posix())
        return int.from_bytes(hashlib.sha256(name).digest()[:6], "big") / 2**48  # in [0, 1)

    files = sorted(image_files(folder), key=place)
    pixels, names = cached_array(folder, files, image_size)
    places = np.array([place(folder / name) for name in names])
    ends = dict(zip(("val", "test", "train"), np.searchsorted(places, (0.1, 0.2, 1)), strict=True))
    if min(ends["val"], ends["test"] - ends["val"], ends["train"] - ends["test"]) < 2:
        raise DataError(
            f"{folder} has {len(names)} readable images, too few to split; give a folder with more"
        )
    start = {"val": 0, "test": ends["val"], "train": ends["test"]}[split]
    return pixels[start : ends[split]]


def celeba(folder: Path, split: str, image_size: int) -> dict:
    """The fields of `data.Images` for one split of CelebA, or of what part is there.

    The official partition where its file is there and no split of it is empty; else 85, 5 and
    10 % in order of number.
    """
    files = image_files(folder / "img_align_celeba")
    # the usual square around the face: 148 of 178 pixels, or 74 of 89
    pixels, names = cached_array(folder / "img_align_celeba", files, image_size, crop=148 / 178)
    if len(names) < 20:
        raise DataError(f"{folder} has {len(names)} readable images; fetch them again")
    stems = [Path(name).stem for name in names]
    of = {stem: values[0] for stem, values in _table(folder / "list_eval_partition.txt").items()}
    sizes = [sum(of.get(stem) == str(i) for stem in stems) for i in range(3)]
    ends = [int(share * len(names)) for share in (0, 0.85, 0.9, 1)]
    official = min(sizes) > 0 and sum(sizes) == len(names)
    if official:
        ends = [0, sizes[0], sizes[0] + sizes[1], len(names)]  # they come one after the other
    part = slice(*ends[SPLITS.index(split) :][:2])
    with Image.open(folder / "img_align_celeba" / names[0]) as first:
        size = "x".join(map(str, first.size))
    note = (
        f"of {len(names):,} images, files of {size}, {'official' if official else '85:5:10'} split"
    )
    table = celeba_attributes(folder, stems[part])
    return {"images": pixels[part], "attributes": table, "note": note}


def celeba_attributes(folder: Path, stems: list[str]) -> dict[str, Tensor] | None:
    """The 40 attributes of these images, by attribute, (N,) bool each; None without the file."""
    path = folder / "list_attr_celeba.txt"
    has = _table(path)
    if not has:
        return None
    try:
        header = path.read_text().splitlines()[1].split()
        table = torch.tensor([[value == "1" for value in has[stem]] for stem in stems])
        return dict(zip(header, table.T, strict=True))
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path} does not fit the images beside it; fetch it again") from error


def _table(path: Path) -> dict[str, list[str]]:
    """The lines of one of CelebA's lists by the number of the image; empty without the file."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split() for line in lines if ".jpg" in line or ".png" in line]
    return {Path(row[0]).stem: row[1:] for row in rows}


def decode(path: Path, image_size: int, crop: float) -> np.ndarray | None:
    """One file as (3, S, S) uint8: upright, RGB, centre crop, resized; None if it is no image.

    `crop` is the side of the square that is cut out, over the image's shorter side. What is
    transparent becomes white.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (4 * image_size, 4 * image_size))  # large JPEGs: decode less
            with contextlib.suppress(Exception):  # damaged EXIF: take the image as it lies
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                image = Image.fromarray(np.uint8(np.asarray(image) // 256))
            elif image.mode in ("I", "F"):  # of no known range
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
    except Exception:  # Pillow raises some ten kinds of it for files that are damaged or foreign
        return None


def image_files(folder: Path) -> list[Path]:
    """The files in a folder and below it that look like images, sorted by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def cache() -> Path:
    """Where downloads and decoded folders are kept."""
    import pooch

    return Path(pooch.os_cache("vaelib"))


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
        stamp.update(os.fsencode(path.relative_to(folder)))
        stamp.update(f"\0{about.st_size} {about.st_mtime_ns}\n".encode())
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    target_folder, stem = cache() / "images", f"{folder.name}-{place}-{image_size}"
    target = target_folder / f"{stem}-{stamp.hexdigest()[:12]}.bin"
    listing = target.with_suffix(".json")
    if not (target.exists() and listing.exists()):
        target_folder.mkdir(parents=True, exist_ok=True)
        older = set(target_folder.glob(f"{glob.escape(stem)}-*.*")) - {target, listing}
        with tempfile.TemporaryDirectory(dir=target_folder, prefix="partial-") as partial:
            names = _decode_all(Path(partial) / "pixels", folder, files, image_size, crop)
            (Path(partial) / "names").write_text(json.dumps(names))
            os.replace(Path(partial) / "pixels", target)
            os.replace(Path(partial) / "names", listing)
        for path in older:
            with contextlib.suppress(OSError):  # somebody still reads it
                path.unlink()
    names = json.loads(listing.read_text())
    shape = (len(names), 3, image_size, image_size)
    if not names:
        return torch.zeros(shape, dtype=torch.uint8), names
    # copy on write: nothing done to the tensor reaches the file
    return torch.from_numpy(np.memmap(target, np.uint8, "c", shape=shape)), names


def _decode_all(target: Path, folder: Path, files: list[Path], image_size: int, crop: float):
    """Write every image's pixels into a new file; returns the names of those written."""
    names, skipped = [], []
    bar = tqdm(total=len(files), desc=folder.name, unit="image")
    with ThreadPoolExecutor() as pool, open(target, "wb") as file, bar:
        for start in range(0, len(files), 1000):  # so that an error ends it soon
            block = files[start : start + 1000]
            decoded = pool.map(lambda path: decode(path, image_size, crop), block)
            for path, pixels in zip(block, decoded, strict=True):
                name = path.relative_to(folder).as_posix()
                if pixels is None:
                    skipped.append(name)
                else:
                    file.write(pixels.tobytes())
                    names.append(name)
                bar.update()
    if skipped:
        listed = ", ".join(ascii(name)[1:-1] for name in skipped[:20])
        more = f" and {len(skipped) - 20:,} more" if len(skipped) > 20 else ""
        print(f"{len(skipped):,} left out, no readable images: {listed}{more}")
    return names

"""Folders of image files, each decoded once into a memory-mapped array.

The array lies in the user's cache, keyed by all that it depends on: the folder, what is in it,
the size, channels and crop, and the versions of what decodes. It is built beside its place and
moved there whole. Splits are slices of it, so that training streams from the disk: the
operating system keeps in memory what fits.
"""

import contextlib
import glob
import hashlib
import json
import os
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaelib.data.decoding import VERSION, Unreadable, any_size, decode
from vaelib.data.download import workspace
from vaelib.data.images import DataError
from vaelib.files import cache, write_text
from vaelib.progress import progress

HIDDEN = {"@eadir", "__macosx", "thumbs", "_thumbs", "thumbnails"}
HIDDEN |= {"#recycle", "@recycle", "$recycle.bin", "lost+found"}
BY_ENDING = "of endings that Pillow does not know"
_building = threading.Lock()

LeftOut = dict[str, list[str]]  # the names of files by why they are left out


def image_files(folder: Path) -> tuple[list[str], LeftOut]:
    """The files in and below a folder that may be images, by name, and what is left out.

    Tried are the endings that Pillow knows, and files without one. Linked folders are followed,
    each folder once; what is hidden or a thumbnail is no picture.
    """
    from PIL import Image

    known = {"", *Image.registered_extensions()}
    files, left_out = [], defaultdict(list)
    seen, waiting, linked = set(), [""], []
    while waiting or linked:
        below = waiting.pop() if waiting else linked.pop(0)
        try:
            about = os.stat(folder / below)
            entries = sorted(os.scandir(folder / below), key=lambda entry: entry.name)
        except OSError as error:
            left_out[f"folders that can't be opened ({error.strerror})"].append(below or ".")
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in entries:
            name, ending = below + entry.name, os.path.splitext(entry.name)[1].lower()
            hidden = entry.name.startswith(".") or entry.name.lower() in HIDDEN
            if _is(entry.is_dir):
                if hidden:
                    left_out["hidden folders or thumbnails"].append(name)
                else:
                    (linked if entry.is_symlink() else waiting).append(f"{name}/")
            elif hidden:
                if ending in known - {""}:
                    left_out["hidden files"].append(name)
            elif ending not in known:
                left_out[BY_ENDING].append(name)
            elif _is(entry.is_file):
                files.append(name)
            else:
                left_out["links to nothing, or no files"].append(name)
    return sorted(files), left_out


def _is(question) -> bool:
    try:
        return question()
    except OSError:  # a link to itself, say
        return False


def cached_array(
    folder: Path,
    files: list[str],
    left_out: LeftOut,
    size: tuple[int, int],
    channels: int = 3,
    crop: float = 1.0,
    once: bool = False,
) -> tuple[Tensor, list[str]]:
    """The images in `files` as a memory map (N, C, H, W) uint8, and their names, in that order.

    Decoded by several threads with a progress bar the first time, and again when a file came,
    went, changed or can be opened at last; what can't be read is named and left out, and
    with `once` the copies of a picture too.
    """
    from PIL import __version__ as pillow
    from PIL import features

    folder = folder.resolve()
    what = repr((str(folder), *size, channels, crop, once))
    libraries = ("libjpeg_turbo", "jpg", "jpg_2000", "libtiff", "webp", "avif")
    stamp = hashlib.sha256(repr((VERSION, pillow, *map(features.version, libraries))).encode())
    for name in files:
        stamp.update(os.fsencode(name) + b"\0")
        with contextlib.suppress(OSError):
            about = os.stat(folder / name)
            stamp.update(f"{about.st_size} {about.st_mtime_ns}\n".encode())
    stem = f"{folder.name[:40]}-{'x'.join(map(str, (*size, channels)))}"
    stem += f"-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    target = cache() / "images" / f"{stem}-{stamp.hexdigest()[:12]}.bin"
    one = channels * size[0] * size[1]  # bytes of an image
    of_now = hashlib.sha256(repr(sorted(left_out.items())).encode()).hexdigest()
    names, again, said = _kept(target, one) or ([], None, "")
    if again is None or any(_opens(folder / name) for name in again):
        older = set(target.parent.glob(f"{glob.escape(stem)}-*.*"))
        names = _build(target, folder, files, left_out, (size, channels, crop), once, of_now)
        for path in older - {target, target.with_suffix(".json")}:
            with contextlib.suppress(OSError):  # somebody still reads it
                path.unlink()
        _say(folder, left_out)
    elif said != of_now:  # more is left out than the last time, or less
        with contextlib.suppress(OSError):
            _list(target, names, again, of_now)
        _say(folder, left_out)
    shape = (len(names), channels, *size)
    if not names:
        return torch.zeros(shape, dtype=torch.uint8), names
    # copy on write: nothing done to the tensor reaches the file
    return torch.from_numpy(np.memmap(target, np.uint8, "c", shape=shape)), names


def _list(target: Path, names: list[str], again: list[str], said: str) -> None:
    """Write what an array's file needs beside it: its names, those to try again, what was said."""
    listing = json.dumps({"names": names, "again": again, "said": said})
    write_text(target.with_suffix(".json"), listing)


def _kept(target: Path, one: int) -> tuple[list[str], list[str], str] | None:
    """What `_list` wrote of an array of images of `one` byte count.

    None where there is no such array, or not all of it.
    """
    try:
        kept = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        names = kept["names"]
        whole = target.stat().st_size == one * len(names)
        return (names, kept["again"], kept["said"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _opens(path: Path) -> bool:
    """Whether the system gives all of a file."""
    try:
        return path.read_bytes() is not None
    except OSError:
        return False


def _build(
    target: Path, folder: Path, files: list[str], left_out: LeftOut, form, once, said: str
) -> list[str]:
    """Decode into a new array and its listing, each whole or not at all; returns its names."""
    try:
        with _building, workspace(target.parent, "partial-") as partial, any_size():
            pixels = partial / "pixels"
            names, prints, again = _decode_all(pixels, folder, files, left_out, form)
            if once:
                names = _without_copies(pixels, names, prints, left_out)
            os.replace(pixels, target)
            _list(target, names, again, said)
            return names
    except OSError as error:
        reason = error.strerror or error
        advice = "make room, or set XDG_CACHE_HOME to a folder with room"
        raise DataError(f"{target.parent} can't be written ({reason}); {advice}") from error


def _decode_all(target: Path, folder: Path, files: list[str], left_out: LeftOut, form):
    """Write every image's pixels into a new file.

    Returns the names and fingerprints of those written, and the names of those to try again.
    """

    def attempt(name: str):
        try:
            return decode(folder / name, *form)
        except (Unreadable, OSError) as error:
            return error

    names, prints, again = [], [], []
    bar = progress(total=len(files), desc=_printable(folder.name), unit="image")
    with ThreadPoolExecutor() as pool, open(target, "wb") as file, bar:
        step = max(min(1000, 2**28 // np.prod((form[1], *form[0]))), 1)  # images held at once
        for start in range(0, len(files), step):
            block = files[start : start + step]
            for name, pixels in zip(block, pool.map(attempt, block), strict=True):
                bar.update()
                if isinstance(pixels, Unreadable):
                    left_out[str(pixels)].append(name)
                elif isinstance(pixels, OSError):
                    reason = f"not to be opened now ({pixels.strerror}), tried again next time"
                    left_out[reason].append(name)
                    again.append(name)
                else:
                    file.write(content := pixels.tobytes())
                    names.append(name)
                    prints.append(hashlib.sha256(content).digest())
    return names, prints, again


def _without_copies(
    path: Path, names: list[str], prints: list[bytes], left_out: LeftOut
) -> list[str]:
    """Take the copies of pictures out of a new array; of each, the shortest name stays."""
    first = {}
    for name, mark in sorted(zip(names, prints, strict=True), key=lambda n: (len(n[0]), n[0])):
        first.setdefault(mark, name)
    rows = [i for i, (n, mark) in enumerate(zip(names, prints, strict=True)) if first[mark] == n]
    if len(rows) < len(names):
        pixels = np.memmap(path, np.uint8, "r+").reshape(len(names), -1)
        for new, old in enumerate(rows):
            pixels[new] = pixels[old]
        size = len(rows) * pixels.shape[1]
        del pixels
        os.truncate(path, size)
        left_out["copies of others"].extend(set(names) - set(first.values()))
    return [names[i] for i in rows]


def _say(folder: Path, left_out: LeftOut) -> None:
    """One line for each reason; by ending where there are many, or where that is the reason."""
    for reason, names in left_out.items():
        names = sorted(names)
        listed = ", ".join(names[:20])
        if len(names) > 20 or reason == BY_ENDING:
            endings = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in names)
            listed = ", ".join(f"{n:,} {ending}" for ending, n in endings.most_common(10))
            listed += f" (as {names[0]})"
        print(_printable(f"{folder.name}: {len(names):,} left out, {reason}: {listed}"))


def _printable(text: str) -> str:
    """The text with what a line or the terminal's encoding lacks escaped."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)

"""One image file as pixels: upright, cut, resized, its brightness by its declared depth."""

import contextlib
import errno
import os
import threading
from pathlib import Path

import numpy as np

VERSION = 3  # of the decoding below; raise it when the pixels that it gives change
LARGE, TOO_LARGE = 2**26, 2**29  # pixels: decoded one at a time, not at all
_large = threading.Lock()


class Unreadable(Exception):
    """A file is no picture that can be used; the message says why, in the plural."""


def decode(path: Path, size: tuple[int, int], channels: int = 3, crop: float = 1.0) -> np.ndarray:
    """One file as (C, H, W) uint8: upright, the centre in the aspect of `size`, resized.

    `crop` is the side of what is cut out, over the largest that fits. What is transparent
    becomes white. Raises Unreadable with the reason, and OSError where the system would not
    give the file (now).
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = image.width * image.height
            if pixels > TOO_LARGE:
                raise Unreadable(f"larger than {TOO_LARGE // 2**20} million pixels")
            with _large if pixels > LARGE else contextlib.nullcontext():
                return _decoded(image, size, channels, crop)
    except Unreadable:
        raise
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except Exception as error:  # Pillow raises some ten kinds of it for damaged or foreign files
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
            raise
        raise Unreadable("no readable images") from error


def _decoded(image, size: tuple[int, int], channels: int, crop: float) -> np.ndarray:
    from PIL import Image, ImageOps

    height, width = size
    image.draft("RGB", (4 * max(size), 4 * max(size)))  # large JPEGs: decode less
    scale = _scale(image)
    with contextlib.suppress(Exception):  # damaged EXIF: take the image as it lies
        image = ImageOps.exif_transpose(image)
    image = scale(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    image = image if image.mode == mode else image.convert(mode)
    across = max(round(crop * min(image.width, image.height * width / height)), 1)
    down = max(round(crop * min(image.height, image.width * height / width)), 1)
    left, top = round((image.width - across) / 2), round((image.height - down) / 2)
    image = image.crop((left, top, left + across, top + down))
    image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    pixels = np.asarray(image)  # (H, W, 3), or (H, W)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _scale(image):
    """What brings an image to 8 bits by its declared depth; Unreadable where none is declared."""
    from PIL import Image

    tags, mode = getattr(image, "tag_v2", {}), image.mode  # the tags of a TIFF
    negative = tags.get(262) == 0  # white is zero: up to 8 bits Pillow turns it itself
    if tags.get(339, (1,))[0] == 2 or (image.format == "FITS" and mode == "I;16"):
        raise Unreadable("signed integers, of no known range")
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        bits = tags.get(258, (16,))[0]  # Pillow brings all but TIFFs to 16 bits
        clear = image.info.get("transparency")  # the level of a PNG that is transparent

        def scaled(image):
            levels = np.asarray(image)
            is_clear = levels == clear
            levels = levels >> (bits - 8)
            return Image.fromarray(
                np.uint8(np.where(is_clear, 255, 255 - levels if negative else levels))
            )

        return scaled
    if mode == "I":
        raise Unreadable("32-bit integers, of no known range")
    if mode == "F":

        def scaled(image):
            levels = np.asarray(image)
            if not np.isfinite(levels).all():
                raise Unreadable("floats that are not all finite")
            if levels.min() < 0 or levels.max() > 1:
                raise Unreadable("floats outside [0, 1]")
            levels = np.uint8(np.rint(255 * levels))
            return Image.fromarray(255 - levels if negative else levels)

        return scaled
    return lambda image: image


@contextlib.contextmanager
def any_size():
    """No limit of Pillow's on the pixels of a picture; `decode` has its own."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit

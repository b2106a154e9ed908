"""Frey Face: 1,965 frames of one face, in the order of the film; 28x20, grey.

`frey` is split at random, `frey-time` by time. Neighbouring frames are nearly the same picture:
at random, test frames have neighbours in train; by time they have none.
Source: Brendan Frey; the file was hosted by Sam Roweis. Its terms of use are not known.
"""

import hashlib
import io

import numpy as np
import torch

from vaelib import files
from vaelib.data.download import root
from vaelib.data.images import DataError, Images, Source

FILE, URL = "frey_rawface.mat", "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"
SHA256 = "265a83a23adb081755cd3de375509828e690324d1d60f076b8ecebc840d59c64"
FOLDERS = ("", "frey", "FreyFace", "freyface")  # under the root
SIZES = {"train": 1365, "val": 200, "test": 400}


def load(split: str, **_) -> Images:
    """One split at random, always the same one."""
    return _load("frey", split, np.random.RandomState(0).permutation(sum(SIZES.values())))


def load_by_time(split: str, **_) -> Images:
    """One split by time: first train, then val, test at the end of the film."""
    return _load("frey-time", split, np.arange(sum(SIZES.values())))


def _load(name: str, split: str, order: np.ndarray) -> Images:
    names, sizes = list(SIZES), list(SIZES.values())
    first = sum(sizes[: names.index(split)])
    frames = _frames()[order[first : first + SIZES[split]]]
    return Images(name, split, torch.from_numpy(frames).unsqueeze(1))  # (N, 1, 28, 20)


def _frames() -> np.ndarray:
    """All frames in the order of the film. Shapes: -> (1965, 28, 20) uint8."""
    from scipy.io import loadmat

    paths = [root() / folder / FILE for folder in FOLDERS]
    path = next((path for path in paths if path.is_file()), paths[0])
    if not path.is_file():
        _download()
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        raise DataError(
            f"{path} is damaged, half-downloaded or another file: it should have SHA-256 "
            f"{SHA256[:12]}...; delete it and try again"
        )
    table = loadmat(io.BytesIO(raw))["ff"]  # (560, 1965): a frame is a column
    return np.ascontiguousarray(table.T.reshape(-1, 28, 20))


def _download() -> None:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(timeout=files.TIMEOUT)
    try:
        pooch.retrieve(URL, f"sha256:{SHA256}", FILE, root(), downloader=downloader)
    except Exception as error:  # of requests, of pooch (another file), of the disk
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"Frey Face can't be downloaded ({reason}). Put {FILE} (1,100,584 bytes) into "
            f"{root()}, or set VAELIB_DATA to a folder that has it."
        ) from error


TERMS = "Frey Face: terms of use unknown; not passed on here."
FACES = {"things": "faces", "terms": TERMS, "shareable": False, "assets": "FreyFace"}
FACES |= {"size": (28, 20), "n_train": SIZES["train"]}
FREY, FREY_TIME = Source("frey", load, **FACES), Source("frey-time", load_by_time, **FACES)

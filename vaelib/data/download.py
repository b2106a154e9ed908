"""Where data sets lie; what is fetched or decoded is built beside its place, moved there whole."""

import contextlib
import glob
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vaelib import files
from vaelib.data.images import DataError


def root() -> Path:
    """Where data sets are looked for and put: $VAELIB_DATA, else ~/.cache/vaelib/data."""
    return Path(os.environ.get("VAELIB_DATA") or Path.home() / ".cache" / "vaelib" / "data")


@contextlib.contextmanager
def workspace(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder in `parent` to build something in, gone at the end.

    Those that killed processes of this machine left behind go first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    mine = f"{prefix}{socket.gethostname()}-"
    for left in parent.glob(f"{glob.escape(mine)}*"):
        number = left.name.removeprefix(mine).split("-")[0]
        if number.isdecimal() and not _running(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{mine}{os.getpid()}-") as folder:
        yield Path(folder)


def _running(process: int) -> bool:
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def download(name: str, advice: str, targets: dict[str, Path]) -> None:
    """Fetch a data set by torchvision, then move each of its files to its place."""
    timeout = socket.getdefaulttimeout()
    try:
        import torchvision

        socket.setdefaulttimeout(files.TIMEOUT)  # torchvision sets none of its own
        with (
            workspace(root(), f"{name}-partial-") as partial,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            getattr(torchvision.datasets, name)(partial, download=True)
            for source, target in targets.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / source, target)
    except Exception as error:  # the downloaders of torchvision raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} can't be downloaded ({reason}). {advice}") from error
    finally:
        socket.setdefaulttimeout(timeout)

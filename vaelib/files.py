"""Every kind of file is read and written here, each in one place, whole or not at all.

A file that is missing, damaged or foreign is a FileError: one line that names it and says what
to do. No pickle is ever read.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path

import yaml

CONFIG, WEIGHTS, RECIPE = "config.json", "model.safetensors", "train.yaml"
HISTORY, METRICS = "history.json", "metrics.json"
LOCK, LOG = ".lock", "log.txt"
STATE = "state.safetensors"  # of a run that can be resumed
LATENTS, ATTRIBUTES, FILM = "latents.safetensors", "attributes.safetensors", "film.safetensors"
TIMEOUT = 10.0  # seconds without a byte before a download is given up
PARTIAL = "test_full.partial.json"  # what an interrupted evaluation has done


class UserError(RuntimeError):
    """Something that the user can mend; the message is one line that says how."""


class FileError(UserError):
    """A file is missing, damaged or foreign; the message names it and says what to do."""


class CheckpointError(FileError):
    """A checkpoint is missing, damaged or foreign; the message says what to do."""


def reason(error: Exception) -> str:
    """What is wrong; of a file, without the number that the operating system gives it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def atomic(path: Path):
    """A temporary path beside `path` that replaces it at the end, or vanishes on an error.

    An OSError, of a full disk say, names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str = LOCK):
    """The only writer of a folder, or of `name` in it; when a process ends, its locks end too."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        what = folder if name == LOCK else folder / name.removesuffix(LOCK).removeprefix(".")
        raise FileError(f"{what} is being written by another run; wait for it") from None
    try:
        yield
    finally:
        lock.release()


def is_temporary(name: str) -> bool:
    """Whether a file is what `atomic` writes before it replaces the old one."""
    return bool(re.fullmatch(r"\..+\.(json|yaml|safetensors|png|txt)-\w{8}", name))


def sweep(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; nobody else writes here now."""
    for path in folder.rglob(".*-*"):
        if is_temporary(path.name):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _read(path: Path, parse, kind: str, wrong: tuple):
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there; name a folder that has it") from None
    except (*wrong, UnicodeDecodeError, OSError) as error:
        reason = f"{path} is no {kind} ({' '.join(str(error).split())})"
        raise CheckpointError(f"{reason}; mend it or fetch it again") from error


def read_json(path: Path):
    """What a JSON file holds: metrics, histories, lists of images."""
    return _read(path, json.loads, "JSON", (ValueError,))


def write_json(path: Path, value) -> None:
    """Write JSON with a stable layout; a value that JSON does not have is a TypeError."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_mapping(path: Path, kind: str = "JSON") -> dict:
    """A file that must hold keys and values: a config (JSON) or a recipe (YAML)."""
    parse = json.loads if kind == "JSON" else yaml.safe_load
    value = _read(path, parse, kind, (ValueError, yaml.YAMLError))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CheckpointError(f"{path} holds no keys and values; mend it or fetch it again")
    return value


def read_recipe(path: Path) -> dict:
    """A recipe: a YAML file, or the one in a run's or checkpoint's folder."""
    path = Path(path) / RECIPE if Path(path).is_dir() else Path(path)
    return read_mapping(path, "YAML")


def write_recipe(folder: Path, recipe: dict) -> None:
    """Write a recipe as YAML into a folder, each list on one line where it fits."""
    text = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=100)
    write_text(Path(folder) / RECIPE, text)


def read_metrics(folder: Path) -> dict:
    """The blocks of a checkpoint's metrics.json by name; empty where it has none yet."""
    path = Path(folder) / METRICS
    return read_mapping(path) if path.exists() else {}


@contextmanager
def _opened(path: Path | str, framework: str):
    """A safetensors file to read from; CheckpointError where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there; name a folder that has it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or no safetensors file ({error}); fetch it again"
        ) from error


def read_tensors(path: Path | str) -> tuple[dict, dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    with _opened(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata alone of a safetensors file, without torch."""
    with _opened(path, "numpy") as file:
        return file.metadata() or {}


def parts(path: Path) -> list[Path]:
    """A file of weights, and before it the file of another model that has the rest, if one has.

    The metadata name that model, `base`, whose folder lies beside, and its file's SHA-256.
    """
    if not (base := (metadata := read_metadata(path)).get("base")):
        return [path]
    other = path.absolute().parent.parent / base / WEIGHTS
    if not other.is_file() or sha256(other) != metadata["base_sha256"]:
        raise CheckpointError(
            f"{path} has only what differs from the published {base}, and {other} is not there or "
            "another file: put that checkpoint beside this one"
        )
    return [other, path]


def read_weights(path: Path) -> dict:
    """All weights of a model by name: see `parts`."""
    return {key: weight for part in parts(path) for key, weight in read_tensors(part)[0].items()}


def read_shapes(folder: Path) -> dict[str, tuple[list[int], int]]:
    """Of each of a checkpoint's weights its shape and how many numbers it has, without torch."""
    shapes = {}
    for part in parts(Path(folder) / WEIGHTS):
        with _opened(part, "numpy") as file:
            shapes |= {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
    return {key: (shape, math.prod(shape)) for key, shape in shapes.items()}


def write_tensors(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name as safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        str(path).encode()  # safetensors can't open a file of another name
        with atomic(path) as temporary:
            try:
                save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
            except SafetensorError as error:  # a full disk, in its own words
                raise OSError(0, str(error).split("I/O error: ")[-1]) from error
    except (RuntimeError, UnicodeEncodeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        advice = "each tensor needs memory of its own, the folder a name in UTF-8"
        raise CheckpointError(f"{path} can't be written: {reason}; {advice}") from error


def plain(value):
    """NumPy's and torch's numbers, lists and tuples as what JSON and YAML have.

    Raises TypeError for anything else, so that nothing is saved that can't be read again.
    """
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, tensors
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is a {type(value).__name__}, which can't be saved; give a number")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache() -> Path:
    """Where downloads and decoded folders are kept."""
    import pooch

    return Path(pooch.os_cache("vaelib"))

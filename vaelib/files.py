"""Every kind of file is read and written here, each in one place, whole or not at all.

A file that is missing, damaged or foreign is a FileError: one line that names it and says what
to do. No pickle is ever read.
"""

import hashlib
import inspect
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


@contextmanager
def atomic(path: Path):
    """A temporary path beside `path` that replaces it at the end, or vanishes on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path):
    """The only writer of a folder; the operating system frees it when the process ends."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileError(f"{folder} is being written by another run; wait for it") from None
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


def read_shapes(folder: Path) -> dict[str, tuple[list[int], int]]:
    """Of each of a checkpoint's weights its shape and how many numbers it has, without torch."""
    with _opened(Path(folder) / WEIGHTS, "numpy") as file:
        shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
    return {key: (shape, math.prod(shape)) for key, shape in shapes.items()}


def write_tensors(path: Path, tensors: dict, metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name as safetensors."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)


def plain(value):
    """NumPy's and torch's numbers and lists as Python's own, which JSON and YAML have.

    Raises TypeError for anything else, so that nothing is saved that can't be read again.
    """
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, tensors
        value = value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} is a {type(value).__name__}, which can't be saved; give a number")


def write_model(model, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, each whole or not at all.

    What torch.compile or DistributedDataParallel has wrapped is written as if it were bare. A
    model that its config could not bring back is refused with a CheckpointError.
    """
    import torch

    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    config, weights = model._hub_mixin_config, model.state_dict()
    with torch.device("meta"):  # shapes alone
        _check_fit(type(model), config, weights, f"what is to be saved in {folder}")
    write_tensors(Path(folder) / WEIGHTS, weights)
    write_json(Path(folder) / CONFIG, config)


def read_model(cls, name_or_path: str | Path, hub: dict):
    """A model of class `cls`, in evaluation mode, from a folder or a Hugging Face hub id."""
    folder = Path(name_or_path)
    parts = [folder / CONFIG, folder / WEIGHTS]
    if not folder.is_dir():
        parts = [_from_hub(str(name_or_path), file.name, hub) for file in parts]
    config_file, weights_file = parts
    config, weights = read_mapping(config_file), read_tensors(weights_file)[0]
    model = _check_fit(cls, config, weights, str(weights_file))
    model.load_state_dict(weights)
    return model.eval()


def _check_fit(cls, config: dict, weights: dict, what: str):
    """A new model of this config, if the weights fit it; else a CheckpointError says how not."""
    unknown = sorted(set(config) - set(inspect.signature(cls).parameters))
    if unknown:
        raise CheckpointError(f"{what}: {CONFIG} has unknown keys: {', '.join(unknown)}")
    try:
        model = cls(**config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{what}: {CONFIG} describes no {cls.__name__}: {error}") from error
    own = model.state_dict()
    odd = {
        "missing": sorted(own.keys() - weights.keys()),
        "extra": sorted(weights.keys() - own.keys()),
        "misshapen": sorted(
            k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape
        ),
    }
    if any(odd.values()):
        found = "; ".join(f"{len(v)} {k} ({v[0]}, ...)" for k, v in odd.items() if v)
        raise CheckpointError(f"{what} does not fit its {CONFIG}: {found}")
    return model


def _from_hub(name: str, file: str, hub: dict) -> Path:
    """One file of a model on the hub; whatever goes wrong is one line."""
    owner_and_name = name.split("/")
    if len(owner_and_name) != 2 or not all(owner_and_name) or Path(name).parent.is_dir():
        raise CheckpointError(
            f"no folder {name!r}; give a folder with {CONFIG} and {WEIGHTS} in it, "
            "or a hub id (owner/name)"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, etag_timeout=5, **hub))
    except Exception as error:  # whatever the hub's client raises, it has no model for us
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"no folder {name!r}, and the hub has no such model or can't be reached "
            f"({reason}); check the name"
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache() -> Path:
    """Where downloads and decoded folders are kept."""
    import pooch

    return Path(pooch.os_cache("vaelib"))

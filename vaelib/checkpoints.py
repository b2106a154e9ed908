"""Checkpoints: a folder with config.json and model.safetensors, never a pickle.

A clone has the published ones under checkpoints/. Elsewhere they are fetched from the
address in $VAELIB_CHECKPOINTS and checked against the SHA-256 sums in manifest.json.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vaelib import choices, files, hub
from vaelib.files import CheckpointError

if TYPE_CHECKING:  # finding a checkpoint does not need torch
    from torch import Tensor

    from vaelib.data import Images
    from vaelib.models import VAE

PUBLISHED = Path(__file__).parent.parent / "checkpoints"  # there in a clone alone
MANIFEST = Path(__file__).parent / "manifest.json"
ADDRESS = ""  # where the published checkpoints are served; $VAELIB_CHECKPOINTS overrides it


def save(model: VAE, folder: Path | str) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, each whole or not at all."""
    hub.write_model(model, Path(folder))


def save_state(path: Path, model: VAE, optimizers: list, extra: dict, metadata: dict) -> None:
    """All that a run needs to go on, as one safetensors file, whole or not at all.

    Weights, optimizers, further tensors by name, and what JSON can hold.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"extra.{k}": v for k, v in extra.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{k}": v for k, v in state.items()}
    files.write_tensors(path, tensors, {"run": json.dumps(metadata)})


def read_run(path: Path) -> dict:
    """What `save_state` was given as metadata: step, history, config; without torch."""
    metadata = files.read_metadata(path)
    if "run" not in metadata:
        raise CheckpointError(f"{path} is of another version of vaelib; start a new run")
    return json.loads(metadata["run"])


def load_state(path: Path, model: VAE, optimizers: list) -> tuple[dict[str, Tensor], dict]:
    """Fill model and optimizers from `save_state`'s file; returns its `extra` and `metadata`."""
    import torch

    run, (tensors, _) = read_run(path), files.read_tensors(path)
    weights, own = {k[6:]: v for k, v in tensors.items() if k[:6] == "model."}, model.state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
        raise CheckpointError(f"{path} is of another model; start a new run, or make that one")
    states: list[dict] = [{} for _ in optimizers]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, index, name = key.split(".")
            groups = optimizers[int(number)].param_groups
            parameter = [p for group in groups for p in group["params"]][int(index)]
            if value.dim():  # the fused optimizer wants the weight's own memory layout
                value = torch.empty_like(parameter).copy_(value)
            states[int(number)].setdefault(int(index), {})[name] = value
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    extra = {k[6:]: v for k, v in tensors.items() if k.startswith("extra.")}
    return extra, run


def halve(folder: Path) -> None:
    """Store a checkpoint's weights as fp16, before its metrics are computed; they load as fp32.

    ValueError where one of them is too large for that.
    """
    weights, metadata = files.read_tensors(folder / files.WEIGHTS)
    weights = {k: w.half() if w.is_floating_point() else w for k, w in weights.items()}
    if large := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise ValueError(f"{large[0]} is too large for fp16; store the weights as they are")
    files.write_tensors(folder / files.WEIGHTS, weights, metadata)


def lean(folder: Path, base: Path) -> None:
    """Leave out of a checkpoint the weights that `base`, the folder beside it, has already.

    ValueError where that has weights which this one lacks, or leaves some out itself.
    """
    (weights, _), (theirs, of_base) = (
        files.read_tensors(p / files.WEIGHTS) for p in (folder, base)
    )
    if "base" in of_base or theirs.keys() - weights.keys():
        raise ValueError(f"{folder} can't leave weights to {base}, which has others")
    theirs = {k: w.to(weights[k].dtype) for k, w in theirs.items()}  # theirs may be stored as fp16
    own = {k: w for k, w in weights.items() if k not in theirs or not (w == theirs[k]).all()}
    metadata = {"base": base.name, "base_sha256": files.sha256(base / files.WEIGHTS)}
    files.write_tensors(folder / files.WEIGHTS, own, metadata)


def keep_tensors(
    folder: Path, file: str, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Keep what was derived from a checkpoint's weights beside them, where that can be written."""
    metadata = metadata | {"weights": files.sha256(folder / files.WEIGHTS)}
    try:
        files.write_tensors(folder / file, tensors, metadata)
    except OSError as error:
        warnings.warn(
            f"{folder / file} can't be kept ({error}); it will be made again", stacklevel=2
        )


def kept_tensors(
    folder: Path, file: str, images: Callable[[], Images] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `keep_tensors` has kept; None where there is nothing, or it is of other weights.

    Or of other images than `images()`, where it says of which, and these are at hand.
    """
    if not (folder / file).exists():
        return None
    tensors, metadata = files.read_tensors(folder / file)
    same = metadata.get("weights") == files.sha256(folder / files.WEIGHTS)
    if same and images and "images" in metadata:
        with suppress(files.UserError):
            same = images().sha256 == metadata["images"]
    return (tensors, metadata) if same else None


def published() -> list[str]:
    """Names of the published checkpoints."""
    return sorted(files.read_mapping(MANIFEST))


def find(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: a path as it is, a published name from the clone or the net."""
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return path
    if name in published():
        in_clone = PUBLISHED / name
        return in_clone if in_clone.is_dir() else _fetch(name)
    near = choices.nearest(name, published())
    raise CheckpointError(
        f"no checkpoint {name!r}{near}: neither a folder nor one of {', '.join(published())}"
    )


def load_checkpoint(name_or_path: str | Path, device: str = "cpu") -> VAE:
    """A trained model, in evaluation mode, by its published name or its folder.

    Raises CheckpointError, with what to do, when there is none or it is not sound.
    """
    from vaelib.models import VAE

    return VAE.from_pretrained(find(name_or_path)).to(device)


def known_kl(folder: Path) -> list[float] | None:
    """KL per dimension as metrics.json has it, where there is one."""
    blocks = files.read_metrics(folder).values()
    return next((block["kl_per_dim"] for block in blocks if "kl_per_dim" in block), None)


def _fetch(name: str) -> Path:
    """Download a published checkpoint into the cache, whole files only, hashes verified."""
    import pooch
    import requests

    address = os.environ.get("VAELIB_CHECKPOINTS") or ADDRESS
    if not address:
        raise CheckpointError(
            f"{name} is not on this machine and the project has no download address yet: work in "
            "a clone of the repository, or set VAELIB_CHECKPOINTS to an address that serves its "
            "checkpoints/"
        )
    folder = files.cache() / "checkpoints" / name
    pooch.get_logger().setLevel("WARNING")
    for file, sha256 in files.read_mapping(MANIFEST)[name].items():
        url = f"{address.rstrip('/')}/{name}/{file}"
        try:
            downloader = pooch.HTTPDownloader(timeout=files.TIMEOUT)
            pooch.retrieve(url, f"sha256:{sha256}", file, folder, downloader=downloader)
        except (requests.RequestException, OSError, ValueError) as error:
            raise CheckpointError(
                f"{url} can't be fetched ({str(error).splitlines()[0]}); check the address and "
                "the network, then try again: what is whole is kept"
            ) from error
    if base := files.read_metadata(folder / files.WEIGHTS).get("base"):  # has the other weights
        _fetch(base)
    return folder

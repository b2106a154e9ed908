"""A model as a folder: its config and its weights, written, read, or fetched from a hub."""

import inspect
from pathlib import Path

from vaelib.files import (
    CONFIG,
    WEIGHTS,
    CheckpointError,
    read_mapping,
    read_weights,
    write_json,
    write_tensors,
)


def write_model(model, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, each whole or not at all.

    What torch.compile or DistributedDataParallel has wrapped is written as if it were bare. A
    model that its config could not bring back is refused with a CheckpointError.
    """
    import torch

    while inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None):
        model = inner
    what = f"what is to be saved in {folder}"
    if not hasattr(model, "_hub_mixin_config"):
        raise CheckpointError(f"{what} is a {type(model).__name__}; give the model itself")
    config, weights = model._hub_mixin_config, model.state_dict()
    with torch.device("meta"):  # shapes alone
        again = _check_fit(type(model), config, weights, what)
    own, brought_back = _settings(model), _settings(again)
    if changed := [n for n in own | brought_back if own.get(n) != brought_back.get(n)]:
        raise CheckpointError(
            f"{what}: {changed[0] or 'the model'} was changed after it was made, and {CONFIG} does "
            "not say so; make a new model with the arguments that you mean"
        )
    write_tensors(Path(folder) / WEIGHTS, weights)
    write_json(Path(folder) / CONFIG, config)


def _settings(model) -> dict[str, tuple]:
    """Of each part of a model its kind and its numbers, beside its weights."""
    kinds, found = bool | int | float | str | tuple, {}
    for name, part in model.named_modules():
        numbers = {k: v for k, v in vars(part).items() if isinstance(v, kinds) and k[0] != "_"}
        found[name] = type(part).__name__, numbers | {"training": None}
    return found


def read_model(cls, name_or_path: str | Path, hub: dict):
    """A model of class `cls`, in evaluation mode, from a folder or a Hugging Face hub id."""
    folder = Path(name_or_path)
    parts = [folder / CONFIG, folder / WEIGHTS]
    if not folder.is_dir():
        parts = [_from_hub(str(name_or_path), file.name, hub) for file in parts]
    config_file, weights_file = parts
    config, weights = read_mapping(config_file), read_weights(weights_file)
    model = _check_fit(cls, config, weights, str(weights_file))
    model.load_state_dict(weights)
    return model.eval()


def _check_fit(cls, config: dict, weights: dict, what: str):
    """A new model of this config, if the weights fit it; else a CheckpointError says how not."""
    if unknown := sorted(set(config) - set(inspect.signature(cls).parameters)):
        raise CheckpointError(f"{what}: {CONFIG} has unknown keys: {', '.join(unknown)}")
    try:
        model = cls(**config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{what}: {CONFIG} describes no {cls.__name__}: {error}") from error
    own = model.state_dict()
    both = own.keys() & weights.keys()
    odd = {
        "missing": sorted(own.keys() - weights.keys()),
        "extra": sorted(weights.keys() - own.keys()),
        "misshapen": sorted(k for k in both if own[k].shape != weights[k].shape),
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
            f"no folder {name!r}; give a folder with {CONFIG} and {WEIGHTS} in it, or a hub id "
            f"(owner/name); of a published checkpoint, vaelib.load_checkpoint({name!r})"
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

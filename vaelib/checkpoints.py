"""Checkpoints: a folder with config.json and model.safetensors, never a pickle.

A clone has the published ones under checkpoints/. Elsewhere they are fetched from the
address in $VAELIB_CHECKPOINTS and checked against the SHA-256 sums in manifest.json.
"""

import hashlib
import json
import os
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from vaelib import evaluation
from vaelib.data import Images
from vaelib.folders import cache
from vaelib.models import CONFIG, VAE, WEIGHTS, CheckpointError, read_safetensors

PUBLISHED = Path(__file__).parent.parent / "checkpoints"  # there in a clone alone
MANIFEST = Path(__file__).parent / "manifest.json"
RECIPE, METRICS = "train.yaml", "metrics.json"
LATENTS, ATTRIBUTES = "latents.safetensors", "attributes.safetensors"
FILM = "film.safetensors"
PARTIAL = "test_full.partial.json"  # what an interrupted evaluation has done
FILES = (CONFIG, WEIGHTS, RECIPE, "history.json", METRICS)  # of every published checkpoint
MORE = (LATENTS, ATTRIBUTES, FILM)  # of some
ADDRESS = ""  # where the published checkpoints are served; $VAELIB_CHECKPOINTS overrides it
TIMEOUT = 10.0  # seconds without a byte before a download is given up


@contextmanager
def atomic(path: Path):
    """A temporary path beside `path` that replaces it at the end, or vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value) -> None:
    """Write JSON with a stable layout, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def save(model: VAE, folder: Path | str) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, each whole or not at all."""
    folder = Path(folder)
    with atomic(folder / WEIGHTS) as temporary:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)
    write_json(folder / CONFIG, model._hub_mixin_config)


def save_state(path: Path, model: VAE, optimizer, about: dict) -> None:
    """Weights, optimizer and `about` (JSON) as one safetensors file, whole or not at all."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in state.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, {"about": json.dumps(about)})


def load_state(path: Path, model: VAE, optimizer) -> dict:
    """Fill model and optimizer from `save_state`'s file; returns its `about`."""
    tensors, metadata = read_safetensors(path)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            if value.dim():  # the fused optimizer wants the weight's own memory layout
                value = torch.empty_like(params[int(index)]).copy_(value)
            state.setdefault(int(index), {})[name] = value
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return json.loads(metadata["about"])


def keep_tensors(
    folder: Path, file: str, tensors: dict[str, Tensor], about: dict[str, str]
) -> None:
    """Keep what was derived from a checkpoint's weights beside them, where that can be written."""
    about = about | {"weights": sha256(folder / WEIGHTS)}
    try:
        with atomic(folder / file) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, about)
    except OSError as error:
        warnings.warn(
            f"{folder / file} can't be kept ({error}); it will be made again", stacklevel=2
        )


def kept_tensors(folder: Path, file: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `keep_tensors` has kept; None where there is nothing, or it is of other weights."""
    if not (folder / file).exists():
        return None
    tensors, about = read_safetensors(folder / file)
    return (tensors, about) if about.get("weights") == sha256(folder / WEIGHTS) else None


def published() -> list[str]:
    """Names of the published checkpoints."""
    return sorted(json.loads(MANIFEST.read_text()))


def find(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: a path as it is, a published name from the clone or the net."""
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if str(name_or_path) in published():
        in_clone = PUBLISHED / name_or_path
        return in_clone if in_clone.is_dir() else _fetch(str(name_or_path))
    raise CheckpointError(
        f"no checkpoint {str(name_or_path)!r}: neither a folder nor one of {', '.join(published())}"
    )


def load_checkpoint(name_or_path: str | Path, device: str = "cpu") -> VAE:
    """A trained model, in evaluation mode, by its published name or its folder.

    Raises CheckpointError, with what to do, when there is none or it is not sound.
    """
    return VAE.from_pretrained(find(name_or_path)).to(device)


def read_json(name_or_path: str | Path, file: str):
    """One of a checkpoint's JSON files, or None where it has none."""
    path = find(name_or_path) / file
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); fetch it again") from error


def read_recipe(folder: Path) -> dict:
    """The recipe in a run's or checkpoint's folder."""
    path = folder / RECIPE
    if not path.exists():
        raise CheckpointError(f"{path} is not there: no run here, nothing to resume or redraw")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def write_recipe(folder: Path, recipe: dict) -> None:
    """Write a recipe as YAML, each list on one line where it fits."""
    text = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=100)
    write_text(folder / RECIPE, text)


def known_kl(folder: Path) -> list[float] | None:
    """KL per dimension as metrics.json has it, where there is one."""
    blocks = read_json(folder, METRICS) or {}
    return next((block["kl_per_dim"] for block in blocks.values()), None)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest() -> None:
    """Note the SHA-256 of every published file in the package's manifest."""
    write_json(
        MANIFEST,
        {
            folder.name: {
                name: sha256(folder / name)
                for name in FILES + MORE
                if name in FILES or (folder / name).exists()
            }
            for folder in sorted(PUBLISHED.iterdir())
            if (folder / WEIGHTS).exists()
        },
    )


def evaluate_fully(model: VAE, images: Images, folder: Path) -> dict:
    """The block test_full; what is done of it is kept in the folder, and gone on with."""
    began, weights = time.perf_counter(), sha256(folder / WEIGHTS)
    so_far = read_json(folder, PARTIAL) or {}
    if so_far.get("weights") != weights:
        so_far = {"weights": weights, "seconds": 0.0, "bounds": []}

    def keep(bounds: torch.Tensor) -> None:
        seconds = so_far["seconds"] + time.perf_counter() - began
        kept = {"weights": weights, "seconds": seconds, "bounds": bounds.tolist()}
        write_json(folder / PARTIAL, kept)

    known = torch.tensor(so_far["bounds"])
    block = evaluation.evaluate(model, images, 5000, None, fast=True, known=known, keep=keep)
    block["made_with"]["seconds"] += round(so_far["seconds"], 1)
    return block


def pm(pair: list[float]) -> str:
    """[mean, standard error] as text."""
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"


def results_table(kind: str, every_block: bool) -> str:
    """The published checkpoints of "digits" or "faces" and their numbers, as Markdown.

    From their metrics.json: every block, or the most thorough one.
    """
    head = "checkpoint | D | MB | block | images | -ELBO | reconstruction | KL | active"
    head += " | bound (samples)" + (" | bits per dim | sigma | PSNR, dB" if kind == "faces" else "")
    rows = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for name in published():
        size = (find(name) / WEIGHTS).stat().st_size / 1e6
        blocks = list(read_json(name, METRICS).items())  # test_full first, where there is one
        for block_name, block in blocks if every_block else blocks[:1]:
            if (kind == "faces") != ("psnr" in block):
                continue
            bound, n = block["bound"], block["n_images"]
            of = ""
            if bound["n_images"] != n:
                there = bound["neg_elbo_same_images"][0]
                of = f"; first {bound['n_images']:,} images, whose -ELBO is {there:.2f}"
            cells = [
                f"`{name}`", len(block["kl_per_dim"]), f"{size:.1f}", block_name,
                f"{n:,} {block['data']} {block['split']}",
                *(pm(block[key]) for key in ("neg_elbo", "reconstruction", "kl")),
                block["active_units"],
                f"{pm(bound['neg_log_px'])} ({bound['n_importance']:,}{of})",
            ]  # fmt: skip
            if kind == "faces":
                cells += [
                    f"{block['bits_per_dim']:.3f}",
                    f"{block['sigma']:.4f}",
                    pm(block["psnr"]),
                ]
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def write_tables() -> None:
    """Put the tables of results between their markers, in README.md and checkpoints/README.md."""
    for path in (PUBLISHED.parent / "README.md", PUBLISHED / "README.md"):
        text = path.read_text(encoding="utf-8")
        for kind in ("digits", "faces"):
            begin, end = f"<!-- {kind}: written by `vaelib figures` -->", f"<!-- end of {kind} -->"
            before, after = text.split(begin)[0], text.split(end)[1]
            table = results_table(kind, path.parent == PUBLISHED)
            text = f"{before}{begin}\n{table}\n{end}{after}"
        write_text(path, text)


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
    folder = cache() / "checkpoints" / name
    pooch.get_logger().setLevel("WARNING")
    for file, sha256 in json.loads(MANIFEST.read_text())[name].items():
        url = f"{address.rstrip('/')}/{name}/{file}"
        try:
            downloader = pooch.HTTPDownloader(timeout=TIMEOUT)
            pooch.retrieve(url, f"sha256:{sha256}", file, folder, downloader=downloader)
        except (requests.RequestException, OSError, ValueError) as error:
            raise CheckpointError(
                f"{url} can't be fetched ({str(error).splitlines()[0]}); check the address and "
                "the network, then try again: what is whole is kept"
            ) from error
    return folder

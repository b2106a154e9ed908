"""The command line: `vaelib train | sample | evaluate | info | figures | data | export`."""

import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from vaelib import checkpoints, data, evaluation, film, gallery, training
from vaelib.export import PUBLISHED_PAGES, export
from vaelib.models import VAE, CheckpointError
from vaelib.recipes import best_for


class UsageError(ValueError):
    """The command can't be carried out as typed; the message says what to type instead."""


def train(run_dir: str | None, resume: bool, **recipe) -> None:
    """Train a recipe into a run folder, which is then a checkpoint like any other."""
    folder = Path(run_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    first = int(os.environ.get("RANK", 0)) == 0  # of several processes, one minds the files
    if resume:
        started = checkpoints.read_recipe(folder)
        recipe = {k: list(v) if isinstance(v, tuple) else v for k, v in recipe.items()}  # as YAML
        changed = ", ".join(k for k, v in recipe.items() if k != "steps" and v != started.get(k))
        if changed:
            raise UsageError(f"{folder} was started with another {changed}; only steps may change")
        recipe = started | recipe
    elif first and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder: name another -e, or add --resume")
    model_keys = dict(recipe)
    fields = training.TrainConfig.__dataclass_fields__
    config = training.TrainConfig(**{k: model_keys.pop(k) for k in fields if k in model_keys})
    name, image_size = model_keys.pop("data"), model_keys.pop("image_size", 64)
    init = model_keys.pop("init", None)
    with PartialState().local_main_process_first():  # one process decodes, the others wait
        images = {s: data.load(name, s, image_size=image_size) for s in ("train", "val")}
    torch.manual_seed(config.seed)
    model = VAE(image_shape=tuple(images["train"].images.shape[1:]), **model_keys)
    if init and not resume:
        weights, own = checkpoints.load_checkpoint(init).state_dict(), model.state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
            raise UsageError(f"{init} is another model than this one: take the keys of its recipe")
        model.load_state_dict(weights)
    if first and not resume:
        checkpoints.write_recipe(folder, recipe)
    filmed = first and model.latent_dim == 2 and images["val"].labels is not None
    looked = partial(film.keep_frame, model, images["val"], folder) if filmed else None
    history = training.fit(model, images, config, folder, resume, looked)
    if not first:
        return
    if config.minutes:  # what came of the clock, in steps
        recipe |= {"steps": history.rows[-1]["step"], "minutes": None, "pace": history.pace}
    checkpoints.write_recipe(folder, recipe)
    best = max(history.rows, key=lambda row: row["val_objective"])
    looked_at = training.CLOCKED_LOOK if config.minutes or config.pace else training.LOOK
    seen = min(looked_at, len(images["val"]))
    print(
        f"{folder}: -ELBO {-best['val_elbo']:.2f} nats on {seen:,} images of {name} val, at step "
        f"{best['step']:,}.\n"
        f"Next: vaelib sample {folder} --mode sample; vaelib evaluate {folder}"
    )


def sample(
    name: str,
    mode: gallery.MODES = "sample",
    seed: int = 0,
    latents: Literal["prior", "aggregate"] = "prior",
    n_samples: int | None = None,
    n_interpolate: int = 8,
    start: Literal["images", "draws"] = "images",
    path: Literal["linear", "spherical"] = "linear",
    n_traverse: int = 11,
    traverse_range: float = 3.0,
    traverse_dim: int | None = None,
    spacing: Literal["inverse_cdf", "linear"] = "inverse_cdf",
    save_dir: str = "samples",
) -> None:
    """Draw one kind of picture from a checkpoint and save it as a PNG.

    Args:
        name: a published checkpoint, or a run folder.
        mode: what to draw.
        seed: of every random choice: draws, images, binarisation.
        latents: where latents are drawn from: the prior, or a density fitted to the latents of
            the training images.
        n_samples: pictures (sample, reconstruct), rows (interpolate, traverse), or the side
            of the grid (manifold).
        n_interpolate: pictures in between the two ends.
        start: interpolate and traverse from real images, or from drawn latents.
        path: the way from one end to the other.
        n_traverse: pictures in a traversal.
        traverse_range: from minus this to plus this, in prior standard deviations.
        traverse_dim: the dimension to move, for several images; default: the dimensions
            that carry most nats, for one image.
        spacing: of the manifold's grid.
        save_dir: where the picture goes.
    """
    for key, value, least in (
        ("n_samples", n_samples, 1),
        ("n_interpolate", n_interpolate, 0),
        ("n_traverse", n_traverse, 2),
    ):
        if value is not None and value < least:
            raise UsageError(f"--{key} {value}: give at least {least}")
    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    if mode in ("visualize_latent", "manifold") and model.latent_dim != 2:
        raise UsageError(f"--mode {mode} needs 2 latent dimensions; {name} has {model.latent_dim}")
    if traverse_dim is not None and not 0 <= traverse_dim < model.latent_dim:
        raise UsageError(f"--traverse_dim {traverse_dim}: {name} has 0 to {model.latent_dim - 1}")
    label, count = folder.name, {} if n_samples is None else {"n_samples": n_samples}
    density = gallery.aggregate(model, folder) if latents == "aggregate" else None
    drawn, images = {"seed": seed, "density": density} | count, None
    travels = mode in ("interpolate", "traverse")
    if mode not in ("sample", "manifold") and not (travels and start == "draws"):
        try:
            images = gallery.images_for(model, folder, fallback=True)
        except data.DataError as error:
            if not travels:
                raise
            print(f"{error} Going on from drawn latents.")
    if mode == "sample":
        figure = gallery.sample(model, label, **drawn)
    elif mode == "manifold":
        figure = gallery.manifold(model, label, n_samples or 20, spacing)
    elif mode == "interpolate":
        figure = gallery.interpolate(model, label, images, n_interpolate, path=path, **drawn)
    elif mode == "traverse":
        kl, way = checkpoints.known_kl(folder), (n_traverse, traverse_range, traverse_dim)
        figure = gallery.traverse(model, label, images, kl, *way, **drawn)
    elif mode == "reconstruct":
        figure = gallery.reconstruct(model, label, images, seed=seed, **count)
    else:
        figure = gallery.visualize_latent(model, label, images)
    ending = "-aggregate" if (mode, latents) == ("sample", "aggregate") else ""
    print(gallery.save(figure, Path(save_dir) / f"{label}-{mode}{ending}.png"))


def evaluate(name: str, full: bool = False, offline: bool = False, overwrite: bool = False) -> None:
    """Recompute a block of metrics.json and compare; write it where it is missing."""
    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    block_name = "test_full" if full else "val_offline" if offline else "test_quick"
    try:
        images = gallery.images_for(model, folder, "val" if offline else "test")
    except data.DataError as error:
        if full or not checkpoints.read_recipe(folder)["data"].startswith("mnist"):
            raise
        print(f"{error} Going on with the val_offline block.")
        block_name, images = "val_offline", gallery.images_for(model, folder, "val")
    block = (
        checkpoints.evaluate_fully(model, images, folder)
        if full
        else evaluation.evaluate(model, images, **evaluation.quick(model))
    )
    print("\n".join(evaluation.report(block)))
    path = folder / checkpoints.METRICS
    blocks = checkpoints.read_json(folder, path.name) or {}
    old = blocks.get(block_name)
    if old is None or overwrite:
        blocks[block_name] = block
        checkpoints.write_json(path, dict(sorted(blocks.items())))
        print(f"{path}: {block_name} written")
    elif differences := evaluation.compare(old, block):
        raise UsageError(f"{block_name} differs from {path}: {'; '.join(differences)}")
    else:
        print(f"{block_name} agrees with {path} within {evaluation.TOLERANCE} nats")
    if full:
        (folder / checkpoints.PARTIAL).unlink(missing_ok=True)


def info(name: str) -> None:
    """Say what a checkpoint is: model, size, recipe, numbers.

    Args:
        name: a published checkpoint, or a run folder.
    """
    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    print(model)
    for part in ("encoder", "decoder"):
        n = sum(p.numel() for p in getattr(model, part).parameters())
        print(f"{part}: {n:,} parameters")
    print(f"weights: {(folder / checkpoints.WEIGHTS).stat().st_size / 1e6:.2f} MB\n")
    if (folder / checkpoints.RECIPE).exists():
        print((folder / checkpoints.RECIPE).read_text())
    for block_name, block in (checkpoints.read_json(folder, checkpoints.METRICS) or {}).items():
        print("\n".join([block_name, *evaluation.report(block)]))


def figures(names: list[str]) -> None:
    """Regenerate readme-assets/, docs/ and the generated tables from the checkpoints.

    Args:
        names: published checkpoints; none: all of them.
    """
    known = checkpoints.published()
    for name in names or known:
        if name not in known:
            raise UsageError(f"no published checkpoint {name!r}; there are: {', '.join(known)}")
        for path in gallery.draw_published(name):
            print(path)
        if (page := PUBLISHED_PAGES / f"{name}.html").exists():
            export(name, str(page))
    checkpoints.write_tables()


def show_data(name: str) -> None:
    """Fetch or locate a data set and say what is there.

    Args:
        name: mnist, mnist-5k, celeba or images:FOLDER.
    """
    print(f"{name}; root {data.root()}")
    for split in data.SPLITS[: 2 if name == "mnist-5k" else 3]:
        images = data.load(name, split)
        shape = "x".join(map(str, images.images.shape[1:]))
        print(f"{images.split:>6}: {len(images):,} images, {shape}, sha256 {images.sha256[:16]}...")


def train_parser() -> ArgumentParser:
    """A recipe's keys: the data's name, the model's arguments, the fields of TrainConfig."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="checkpoint or YAML file")
    parser.add_argument("-e", "--run_dir", type=str | None, help="default: runs/<time>")
    longer = "go on with the run in RUN_DIR, with --steps for longer"
    parser.add_argument("--resume", action="store_true", help=longer)
    parser.add_argument("--data", type=str, default="mnist", help=f"one of {', '.join(data.NAMES)}")
    parser.add_argument("--image_size", type=int, default=64, help="of celeba and images:FOLDER")
    parser.add_argument("--init", type=str | None, help="checkpoint whose weights to start from")
    parser.add_class_arguments(VAE, skip={"image_shape"})
    parser.add_class_arguments(training.TrainConfig)
    return parser


EVALUATE_FLAGS = {
    "full": "the block test_full: 5,000 samples on all test images (an hour or more on two cores)",
    "offline": "the block val_offline: the 5,000 validation digits, which need no download",
    "overwrite": "replace the block in metrics.json",
}
COMMANDS = {f.__name__: f for f in (sample, evaluate, info, figures, export)} | {"data": show_data}


def parse(arguments: list[str]) -> tuple[str, dict]:
    """The command's name and its arguments; a checkpoint's name after -c is its recipe."""
    parser = ArgumentParser(prog="vaelib", description=__doc__, exit_on_error=False)
    commands = parser.add_subcommands()
    commands.add_subcommand("train", train_parser(), help=train.__doc__)
    for name, function in COMMANDS.items():
        sub = ArgumentParser(exit_on_error=False)
        if function is evaluate:
            sub.add_argument("name", help="a published checkpoint, or a run folder")
            for flag, what in EVALUATE_FLAGS.items():
                sub.add_argument(f"--{flag}", action="store_true", help=what)
        elif function is figures:
            sub.add_argument("names", nargs="*", help="published checkpoints; none: all of them")
        else:
            sub.add_function_arguments(function, as_positional=True, as_group=False)
        commands.add_subcommand(name, sub, help=function.__doc__.splitlines()[0])
    arguments = ["--output" if argument == "-o" else argument for argument in arguments]
    for i, argument in enumerate(arguments[:-1]):
        if argument in ("-c", "--config") and not Path(arguments[i + 1]).is_file():
            arguments[i + 1] = str(checkpoints.find(arguments[i + 1]) / checkpoints.RECIPE)
    chosen = parser.parse_args(arguments)
    values = chosen[chosen.subcommand].as_dict()
    typed = {argument.split("=")[0].removeprefix("--") for argument in arguments}
    if values.get("resume"):  # the run's own recipe, but for what was typed
        values = {k: v for k, v in values.items() if k in typed | {"run_dir", "resume"}}
    elif values.get("minutes"):  # what suits the time, where nothing else was typed
        best = best_for(values["minutes"]) | {"pace": None}
        values |= {key: value for key, value in best.items() if key not in typed}
    elif "steps" in typed:
        values["pace"] = None  # of a clocked run, which had other steps
    return chosen.subcommand, values


def main(arguments: list[str] | None = None) -> None:
    """Run one command; whatever is wrong with it is one line and exit status 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        name, chosen = parse(sys.argv[1:] if arguments is None else arguments)
        chosen.pop("config", None)
        train(**chosen) if name == "train" else COMMANDS[name](**chosen)
    except (
        ArgumentError, CheckpointError, OSError, TypeError, ValueError,
        data.DataError, training.TrainingError,
    ) as error:  # fmt: skip
        print(f"vaelib: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

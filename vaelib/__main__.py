"""The command line: `vaelib train | sample | evaluate | info | figures | data | export`."""

import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser

from vaelib import (
    checkpoints,
    data,
    evaluation,
    experiments,
    files,
    film,
    gallery,
    publishing,
    recipes,
    run,
    training,
)
from vaelib.arguments import UsageError, train_arguments, train_parser
from vaelib.export import export
from vaelib.files import FileError


def train(run_dir: str | None, resume: bool, **recipe) -> None:
    """Train a recipe into a run folder, which is then a checkpoint like any other."""
    folder = Path(run_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    first = int(os.environ.get("RANK", 0)) == 0  # of several processes, one minds the files
    recipe["data"] = data.absolute(recipe["data"])
    if not resume and first and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder: name another -e, or add --resume")
    model, images, config = training.build(recipe | ({"init": None} if resume else {}))
    if first and not resume:
        files.write_recipe(folder, recipe)
    filmed = first and model.latent_dim == 2 and images["val"].labels is not None
    on_eval = partial(film.keep_frame, model, images["val"], folder) if filmed else None
    history = training.fit(model, images, config, folder, resume, on_eval)
    if not first:
        return
    recipe["plans"] = history.plans
    if config.minutes:  # what came of the clock, in steps
        recipe |= {"steps": history.rows[-1]["step"], "minutes": None}
        recipe["clock_steps"] = history.clock_steps
    files.write_recipe(folder, recipe)
    best = max(history.rows, key=lambda row: row["val_objective"])
    clocked = config.minutes or config.clock_steps
    n_eval = min(run.N_EVAL_CLOCKED if clocked else run.N_EVAL, len(images["val"]))
    name, value = ("-ELBO", "val_elbo") if "val_elbo" in best else ("-objective", "val_objective")
    print(
        f"{folder}: {name} {-best[value]:.2f} nats on {n_eval:,} images of {recipe['data']} val, "
        f"at step {best['step']:,}.\n"
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
        source = data.source(recipes.read(folder)["data"])
        if full or source.fallback is None:
            raise
        print(f"{error} Going on with the val_offline block.")
        block_name, images = "val_offline", gallery.images_for(model, folder, "val")
    block = (
        checkpoints.evaluate_fully(model, images, folder)
        if full
        else evaluation.evaluate(model, images, **evaluation.quick(model))
    )
    path, blocks = folder / files.METRICS, files.read_metrics(folder)
    old = blocks.get(block_name)
    if old is None or overwrite:
        blocks[block_name] = block
        files.write_json(path, dict(sorted(blocks.items())))
    if full and (old is None or overwrite or not evaluation.compare(old, block)):
        (folder / files.PARTIAL).unlink(missing_ok=True)
    print("\n".join(evaluation.report(block)))
    if old is None or overwrite:
        print(f"{path}: {block_name} written")
    elif differences := evaluation.compare(old, block):
        raise UsageError(f"{block_name} differs from {path}: {'; '.join(differences)}")
    else:
        print(f"{block_name} agrees with {path} within {evaluation.TOLERANCE} nats")


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
    print(f"weights: {(folder / files.WEIGHTS).stat().st_size / 1e6:.2f} MB\n")
    if (folder / files.RECIPE).exists():
        print((folder / files.RECIPE).read_text())
    for block_name, block in files.read_metrics(folder).items():
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
        for path in publishing.draw_published(name):
            print(path)
    publishing.write_tables()


def show_data(name: str) -> None:
    """Fetch or locate a data set and say what is there.

    Args:
        name: a data set; see `vaelib train --help`.
    """
    print(f"{name}; root {data.root()}")
    for split in data.source(name).splits:
        images = data.load(name, split)
        shape = "x".join(map(str, images.images.shape[1:]))
        print(f"{images.split:>6}: {len(images):,} images, {shape}, sha256 {images.sha256[:16]}...")


def experiment(name: str) -> None:
    """Run what is missing of an experiment: a recipe, a grid of its keys, several seeds.

    Args:
        name: of experiments/NAME.yaml, or such a file; results go beside it, as .json.
    """
    experiments.run(experiments.find(name))


EVALUATE_FLAGS = {
    "full": "the block test_full: 5,000 samples on all test images (an hour or more on two cores)",
    "offline": "the block val_offline: the 5,000 validation digits, which need no download",
    "overwrite": "replace the block in metrics.json",
}
FUNCTIONS = (sample, evaluate, info, figures, experiment, export)
COMMANDS = {f.__name__: f for f in FUNCTIONS} | {"data": show_data}


def parse(arguments: list[str]) -> tuple[str, dict]:
    """The command's name and its arguments; a checkpoint's name after -c is its recipe."""
    parser = ArgumentParser(
        prog="vaelib", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    commands = parser.add_subcommands()
    commands.add_subcommand("train", train_parser(), help=train.__doc__)
    for name, function in COMMANDS.items():
        sub = ArgumentParser(exit_on_error=False, allow_abbrev=False)
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
    if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments):
        return "train", train_arguments(arguments[1:])
    chosen = parser.parse_args(arguments)
    return chosen.subcommand, chosen[chosen.subcommand].as_dict()


def main(arguments: list[str] | None = None) -> None:
    """Run one command; whatever is wrong with it is one line and exit status 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal can't show is escaped
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        name, chosen = parse(sys.argv[1:] if arguments is None else arguments)
        train(**chosen) if name == "train" else COMMANDS[name](**chosen)
    except (
        ArgumentError, FileError, OSError, TypeError, ValueError, data.DataError,
        training.TrainingError, experiments.ExperimentError,
    ) as error:  # fmt: skip
        print(f"vaelib: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""What each command of `vaelib` does. Each imports what it needs when it is run, not before."""

import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

from vaelib import arguments, budget, checkpoints, files, recipes, reports
from vaelib.arguments import Mode, UsageError


def train(
    config: str | None = None, run_dir: str | None = None, resume: bool = False, **recipe
) -> None:
    """Train a recipe into a run folder, which is then a checkpoint like any other.

    config : whose recipe to take: a checkpoint's name, or a YAML file.
    run_dir : the run's folder; runs/ and the time unless given.
    resume : go on with the run in RUN_DIR, with more steps for longer.
    """
    began = time.perf_counter()  # minutes are those of whoever waits
    from vaelib import data, derived, diagnosis, hardware, run, training

    folder = Path(run_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    first = run.RANK == 0  # of several processes, one minds the files
    recipe["data"] = data.absolute(recipe["data"])
    if recipe.get("init") and Path(recipe["init"]).is_dir():
        recipe["init"] = str(Path(recipe["init"]).resolve())  # as it holds from any folder
    if not resume and first:
        diagnosis.refuse_occupied(folder)
    started = resume and (folder / files.STATE).exists()
    if started and (over := diagnosis.finished(folder, recipe)):
        if first:
            print(over)
        return
    opened = budget.fill_in(recipe, hardware.kind())
    model, images, trained = training.build(recipe | ({"init": None} if started else {}))
    before = recipes.read(arguments.recipe_path(config)) if config and opened else None
    chosen = training.settled(recipe, opened, before, model, images, trained)
    with ExitStack() as until_done:
        if first:
            until_done.enter_context(files.locked(folder))
            files.sweep(folder)
            print(chosen, end="", file=sys.stderr)
            if not started:
                files.write_text(folder / files.LOG, chosen)
                files.write_recipe(folder, recipe)
                (folder / files.FILM).unlink(missing_ok=True)
        on_eval = partial(derived.keep_frame, model, images["val"], folder) if first else None
        try:
            history = training.fit(model, images, trained, folder, started, on_eval, began)
        except OSError as error:  # a full disk, say
            go_on = f"mend that, then {diagnosis.how_to_go_on(folder)}"
            raise files.UserError(f"{files.reason(error)}; {go_on}") from error
        if not first:
            return
        recipe["plans"], last = history.plans, history.rows[-1]
        if trained.minutes:  # what came of the clock, in steps
            recipe |= {"steps": last["step"], "minutes": None, "clock_steps": history.clock_steps}
        files.write_recipe(folder, recipe)
    n_eval = min(recipes.n_eval(trained), len(images["val"]))
    print(reports.summary(history.rows, recipe["data"], n_eval, folder))


def sample(
    name: str,
    mode: Mode = "sample",
    seed: int = 0,
    latents: Literal["prior", "aggregate"] = "prior",
    n_samples: int | None = None,
    n_columns: int | None = None,
    separate: bool = False,
    batch_size: int = 100,
    n_interpolate: int = 8,
    start: Literal["images", "draws"] = "images",
    path: Literal["linear", "spherical"] = "linear",
    n_traverse: int = 11,
    traverse_range: float = 3.0,
    traverse_dim: int | None = None,
    spacing: Literal["inverse_cdf", "linear"] = "inverse_cdf",
    data: str | None = None,
    save_dir: str = "samples",
    output: str | None = None,
) -> None:
    """Draw one kind of picture from a checkpoint and save it as a PNG.

    name : a published checkpoint, or a run folder.
    mode : what to draw.
    seed : of every random choice: draws, images, binarisation.
    latents : where latents are drawn from: the prior, or a density fitted to the latents of
        the training images.
    n_samples : pictures (sample, reconstruct), rows (interpolate, traverse), or the side of the
        grid (manifold).
    n_columns : pictures in a row of the grid (sample, reconstruct).
    separate : write each sample as a PNG of its own, at the model's size, into a folder.
    batch_size : samples decoded at once.
    n_interpolate : pictures in between the two ends.
    start : interpolate and traverse from real images, or from drawn latents.
    path : the way from one end to the other.
    n_traverse : pictures in a traversal.
    traverse_range : from minus this to plus this, in prior standard deviations.
    traverse_dim : the dimension to move, for several images; unless given, the dimensions that
        carry most nats, for one image.
    spacing : of the manifold's grid.
    data : images:FOLDER or a data set to take images from, in place of the recipe's.
    save_dir : where the picture goes.
    output : the picture's whole path (with --separate, the folder's), in place of save_dir.
    """
    for key, value, least in (
        ("n_samples", n_samples, 1), ("n_columns", n_columns, 1), ("batch_size", batch_size, 1),
        ("n_interpolate", n_interpolate, 0), ("n_traverse", n_traverse, 2),
    ):  # fmt: skip
        if value is not None and value < least:
            raise UsageError(f"--{key} {value}: give at least {least}")
    if output and not separate and Path(output).suffix.lower() != ".png":
        raise UsageError(f"--output {output}: give a name that ends in .png")
    from vaelib import derived, figures, gallery

    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    if mode in ("visualize_latent", "manifold") and model.latent_dim != 2:
        raise UsageError(f"--mode {mode} needs 2 latent dimensions; {name} has {model.latent_dim}")
    if traverse_dim is not None and not 0 <= traverse_dim < model.latent_dim:
        raise UsageError(f"--traverse_dim {traverse_dim}: {name} has 0 to {model.latent_dim - 1}")
    label = folder.resolve().name.encode(errors="replace").decode()  # of letters that can be drawn
    count = {} if n_samples is None else {"n_samples": n_samples}
    density = derived.aggregate(model, folder, data) if latents == "aggregate" else None
    drawn = {"seed": seed, "density": density} | count
    if separate:
        target = Path(output) if output else Path(save_dir) / f"{label}-samples"
        print(gallery.save_each(model, target, batch_size, **drawn))
        return
    images, columns = None, {} if n_columns is None else {"n_columns": n_columns}
    if mode in ("reconstruct", "visualize_latent") or (
        mode in ("interpolate", "traverse") and start == "images"
    ):
        images = images_of(model, folder, data, mode)
    if mode == "sample":
        figure = gallery.sample(model, label, **drawn, **columns)
    elif mode == "manifold":
        figure = gallery.manifold(model, label, n_samples or 20, spacing)
    elif mode == "architecture":
        figure = figures.architecture(model, label)
    elif mode == "interpolate":
        figure = gallery.interpolate(model, label, images, n_interpolate, path=path, **drawn)
    elif mode == "traverse":
        kl, way = checkpoints.known_kl(folder), (n_traverse, traverse_range, traverse_dim)
        figure = gallery.traverse(model, label, images, kl, *way, **drawn)
    elif mode == "reconstruct":
        figure = gallery.reconstruct(model, label, images, seed=seed, **count, **columns)
    else:
        figure = gallery.visualize_latent(model, label, images)
    ending = "-aggregate" if (mode, latents) == ("sample", "aggregate") else ""
    target = Path(output) if output else Path(save_dir) / f"{label}-{mode}{ending}.png"
    print(gallery.save(figure, target))


def images_of(model, folder: Path, name: str | None, mode: str):
    """The images that a picture starts from; None, which is said, where drawn latents will do."""
    from vaelib import data, derived

    try:
        return derived.images_for(model, folder, fallback=True, name=name)
    except data.DataError as error:
        if mode not in ("interpolate", "traverse"):
            raise
        print(f"{error} Going on from drawn latents.")
        return None


def evaluate(
    name: str, full: bool = False, offline: bool = False, overwrite: bool = False,
    samples: bool = False, draws: int | None = None,
) -> None:  # fmt: skip
    """Recompute a block of metrics.json and compare; write it where it is missing.

    name : a published checkpoint, or a run folder.
    full : the block test_full: the bound on all test images (minutes to hours).
    offline : the block val_offline: the 5,000 validation digits, which need no download.
    overwrite : replace the block in metrics.json.
    samples : how its draws stand to these images, too: a classifier's guesses, Frechet's distance.
    draws : of z for each image, of --full; null: as many as the block there has, or 5,000.
    """
    import torch

    from vaelib import data, derived

    if (full and offline) or (draws is not None and not (full and draws > 0)):
        raise UsageError("give --full or --offline, one of them; --draws, 1 or more, with --full")
    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    block_name = "test_full" if full else "val_offline" if offline else "test_quick"
    try:
        images = derived.images_for(model, folder, "val" if offline else "test")
    except data.DataError as error:
        if full or data.source(recipes.read(folder)["data"]).fallback is None:
            raise
        print(f"{error} Going on with the val_offline block.")
        block_name, images = "val_offline", derived.images_for(model, folder, "val")
    if images.factors:
        print("The codes are scored too, which takes minutes.", flush=True)
    block = derived.measured(model, folder, images, full, samples, draws)
    path, blocks = folder / files.METRICS, files.read_metrics(folder)
    old = None if overwrite else blocks.get(block_name)
    differences = reports.compare(old, block) if old else []
    if old and samples and "samples" not in old and not differences:
        block, old = old | {"samples": block["samples"]}, None
    try:
        if old is None:
            files.write_json(path, dict(sorted((blocks | {block_name: block}).items())))
    finally:  # a full disk does not lose the numbers, nor does a closed pipe
        print("\n".join(reports.report(block)))
    if full and not differences:
        (folder / files.PARTIAL).unlink(missing_ok=True)
    if differences:
        raise UsageError(f"{block_name} differs from {path}: {'; '.join(differences)}")
    agrees = f"agrees with {path} within {reports.TOLERANCE} nats"
    print(f"{block_name} {agrees}" if old else f"{path}: {block_name} written")


def info(name: str) -> None:
    """Say what a checkpoint is: model, size, recipe, numbers.

    name : a published checkpoint, or a run folder.
    """
    folder = checkpoints.find(name)
    config, shapes = files.read_mapping(folder / files.CONFIG), files.read_shapes(folder)
    print(*(f"{key}: {value}" for key, value in config.items()), "", sep="\n")
    counts: dict[str, int] = {}
    for key, (shape, count) in shapes.items():
        print(f"{key:<44} {'x'.join(map(str, shape)):>16} {count:>12,}")
        part = key.split(".")[0]
        counts[part] = counts.get(part, 0) + count
    for part, count in {**counts, "in all": sum(counts.values())}.items():
        print(f"{part}: {count:,} parameters")
    print(f"weights: {(folder / files.WEIGHTS).stat().st_size / 1e6:.2f} MB\n")
    if (folder / files.RECIPE).exists():
        print((folder / files.RECIPE).read_text(encoding="utf-8"))
    for block_name, block in files.read_metrics(folder).items():
        print("\n".join([block_name, *reports.report(block)]))


def figures(names: list[str]) -> None:
    """Regenerate readme-assets/, docs/ and the generated tables from the checkpoints.

    names : published checkpoints; none for all of them.
    """
    known = checkpoints.published()
    for name in names:
        arguments.choices.choose("published checkpoint", name, dict.fromkeys(known))
    from vaelib import publishing

    for name in names or known:
        for path in publishing.draw_published(name):
            print(path)
    publishing.write_tables()


def data(name: str) -> None:
    """Fetch or locate a data set and say what is there.

    name : mnist, frey, celeba, images:FOLDER, ...; a wrong one lists them.
    """
    from vaelib import data

    splits = data.source(name).splits
    print(f"{name}; root {data.root()}")
    for split in splits:
        images = data.load(name, split)
        shape = "x".join(map(str, images.images.shape[1:]))
        print(f"{images.split:>6}: {len(images):,} images, {shape}, sha256 {images.sha256[:16]}...")


def experiment(names: list[str]) -> None:
    """Run what is missing of experiments: of each a recipe, a grid of its keys, several seeds.

    names : of experiments/NAME.yaml, or such files; results go beside them, as .json.
    """
    from vaelib import experiments

    if not names:
        raise UsageError(f"name one or more: {', '.join(experiments.known())}, or a YAML file")
    for path in list(map(experiments.find, names)):
        experiments.run(path)


def export(name: str, output: str = "explorer.html") -> None:
    """Write a checkpoint as one page of HTML: sliders, map and decoder, with no Python behind.

    name : a published checkpoint, or a run folder.
    output : the page.
    """
    from vaelib import export

    export.export(name, output)


FUNCTIONS = (train, sample, evaluate, info, figures, data, experiment, export)
COMMANDS = {function.__name__: function for function in FUNCTIONS}

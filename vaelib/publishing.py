"""What makes the repository's own texts true: pictures, pages, tables of results, manifest."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from vaelib import (
    checkpoints,
    data,
    derived,
    experiments,
    export,
    figures,
    files,
    film,
    gallery,
    recipes,
    widgets,
)  # fmt: skip
from vaelib.checkpoints import PUBLISHED
from vaelib.data import Images
from vaelib.evaluation import posteriors
from vaelib.figures import Figure

ASSETS = PUBLISHED.parent / "readme-assets"
PUBLISHED_PAGES = PUBLISHED.parent / "docs"  # as a static host serves them
FILES = (files.CONFIG, files.WEIGHTS, files.RECIPE, files.HISTORY, files.METRICS)  # of each
# checkpoints that differ in one thing: of each a few pictures, to compare
IN_SERIES = ("paper-", "mnist-2d-", "sprites-")
WITH_NETWORKS = "mnist-50d"  # the checkpoint whose architecture is drawn, to stand for all
# of runs made longer before recipes had the key `plans`: [until, steps] of each earlier plan
UNTOLD_PLANS = {"mnist-50d": [[47_000, 47_000]]}
# the rows of "objectives": runs of experiments/objectives.yaml
OBJECTIVES = {
    "VAE": {"objective": "elbo", "beta": 1.0},
    "beta-VAE, 8": {"objective": "elbo", "beta": 8.0},
    "beta-TCVAE, 8": {"objective": "beta_tcvae"},
    "MMD-VAE": {"objective": "mmd_vae"},
    "autoencoder": {"objective": "autoencoder"},
}
# checkpoints whose maps stand side by side, in a picture that is named after the last
COMPARED = {
    "mnist-2d-ae": "autoencoder",
    "mnist-2d-vae": "VAE",
    "mnist-2d-beta": "beta-VAE, 4",
    "mnist-2d-mmd": "MMD-VAE, 100",
}
MORE = (files.LATENTS, files.ATTRIBUTES, files.FILM)  # of some


def published_figures(model, name: str, images: Images) -> dict[str, Figure]:
    """Every picture of a published checkpoint, by the kind that ends its file name."""
    folder = checkpoints.find(name)
    start = images
    if images.labels is not None and (images.labels == 8).any():
        start = images[images.labels == 8]  # in a digit's loops a change is seen best
    rows, recipe = files.read_json(folder / files.HISTORY), recipes.read(folder)
    plans = recipe.get("plans") or UNTOLD_PLANS.get(name, [])
    small = model.image_shape[2] <= 32
    n_between, n_shown = (6, 32) if small else (4, 24)
    pictures = {
        "samples": gallery.sample(model, name),
        "reconstructions": gallery.reconstruct(model, name, images, n_shown, n_columns=8),
        "loss-curve": figures.loss_curve(rows, f"{name}: training", plans),
    }
    if recipe.get("two_stage"):  # all else is that of `init`
        return {kind: pictures[kind] for kind in ("samples", "loss-curve")}
    if not name.startswith(IN_SERIES):
        between = (n_between, 8 if small else 6)
        pictures |= {
            "interpolations": gallery.interpolate(model, name, images, *between),
            "traversals": gallery.traverse(model, name, start, checkpoints.known_kl(folder), 7),
            "latent-variance": gallery.latent_variance(model, name, images),
            "latent-histogram": gallery.latent_histogram(model, name, images),
        }
    if images.factors:
        pictures["traversals"] = gallery.traverse(
            model, name, start, checkpoints.known_kl(folder), 9, n_samples=6
        )
    if name == WITH_NETWORKS:
        pictures["architecture"] = figures.architecture(model, f"{name}: its networks, and z")
    if images.attributes:
        density, table = derived.aggregate(model, folder), derived.attributes(model, folder)
        pictures["samples-aggregate"] = gallery.sample(model, name, density=density)
        directions, strengths = derived.shown_directions(table), torch.linspace(-1.5, 1.5, 7)
        steps = gallery.attribute_steps(model, name, images, directions, strengths, 3)
        pictures["attributes"] = steps
    if model.latent_dim == 2 and images.labels is not None:
        pictures["latent-map"] = gallery.visualize_latent(model, name, images)
    if name == [*COMPARED][-1]:
        maps = {
            shown: posteriors(checkpoints.load_checkpoint(other), images).loc
            for other, shown in COMPARED.items()
        }
        title = f"{len(images):,} {images.things} of {images.title}, means of q(z | x)"
        pictures["latent-maps"] = figures.latent_maps(maps, images.labels, title)
    if model.latent_dim == 2:
        spacing = "inverse_cdf" if gallery.is_standard(model) else "linear"
        side = (
            20 if images.labels is not None else 10
        )  # what has no class is looked at more closely
        pictures["manifold"] = gallery.manifold(model, name, side, spacing)
    return pictures


def draw_published(name: str) -> Iterator[Path]:
    """Draw every picture of a published checkpoint into readme-assets/, and its page if it has one.

    Raises DataError where the images behind a picture are missing.
    """
    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    images, source = derived.images_for(model, folder), data.source(derived.data_of(folder))
    target = ASSETS / (source.assets or source.name)
    for kind, figure in published_figures(model, name, images).items():
        yield gallery.save(figure, target / f"{name}-{kind}.png")
    if (folder / files.FILM).exists():
        val = derived.images_for(model, folder, "val")
        yield film.save(folder, val, target / f"{name}-film.gif")
    if (page := PUBLISHED_PAGES / f"{name}.html").exists():
        export.write_page(*widgets.of_checkpoint(name), export.INTRO, page)
        yield page


def with_error(pair: list[float]) -> str:
    """[mean, standard error] as text."""
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"


def results_table(kind: str) -> str:
    """Numbers of the published checkpoints, from their metrics.json, as Markdown.

    kind: "results", the most thorough block of each, but for those in a series; "models", what each
    is; "objectives", means over the seeds of an experiment; "samples", how far those are from
    images; or what the data sets' pictures are called ("digits", "faces"): every block of their
    models.
    """
    names = checkpoints.published()
    if kind == "objectives":
        return _table("objective | −ELBO | distortion | KL | MIG", map(_objective, OBJECTIVES))
    if kind == "samples":
        blocks = [(n, files.read_metrics(checkpoints.find(n)).get("test_quick", {})) for n in names]
        rows = (_samples(n, block) for n, block in blocks if "samples" in block)
        return _table("checkpoint | images | draws | means | Fréchet distance", rows)
    if kind == "models":
        return _table("checkpoint | latent_dim | MB | data | likelihood", map(_model, names))
    blocks = [(name, *block) for name in names for block in _blocks(name)]
    if kind == "results":
        names = [name for name in names if not name.startswith(IN_SERIES)]
        best = {name: (name, block) for name, _, block in reversed(blocks)}  # the first of each
        order = [source.name for source in data.SOURCES]
        names.sort(key=lambda name: order.index(best[name][1]["data"]))  # digits before faces
        rows = (_result(*best[name]) for name in names)
        return _table("checkpoint | test images | −ELBO | KL | bound on −log p(x)", rows)
    blocks = [row for row in blocks if data.source(row[2]["data"]).things == kind]
    head = "checkpoint, block | −ELBO | reconstruction + KL | active | bound (samples)"
    if any("psnr" in block for _, _, block in blocks):  # densities, of grey or coloured pixels
        head += " | bits per dim | sigma | PSNR, dB"
    columns = head.count("|") + 1
    return _table(head, ((_block(*row) + [""] * columns)[:columns] for row in blocks))


def _table(head: str, rows: Iterable[list]) -> str:
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def _blocks(name: str) -> list[tuple[str, dict]]:
    return [*files.read_metrics(checkpoints.find(name)).items()]  # test_full first


def _model(name: str) -> list:
    """One line of "models"."""
    folder = checkpoints.find(name)
    config = files.read_mapping(folder / files.CONFIG)
    size = (folder / files.WEIGHTS).stat().st_size / 1e6
    where = _blocks(name)[0][1]["data"]
    return [f"`{name}`", config["latent_dim"], f"{size:.1f}", where, config["likelihood"]]


def _result(name: str, block: dict) -> list:
    """One line of "results"."""
    things, n = data.source(block["data"]).things, block["n_images"]
    cells = ["", "", ""]  # of an autoencoder
    if bound := block.get("bound"):
        cells = [with_error(block["neg_elbo"]), f"{block['kl'][0]:.2f}"]
        first = f" (first {bound['n_images']:,})" if bound["n_images"] != n else ""
        cells.append(with_error(bound["neg_log_px"]) + first)
    return [f"`{name}`", f"{n:,} {things}", *cells]


def _objective(name: str) -> list:
    """One line of "objectives"; MIG with its range, the others as means over seeds."""
    rows = [
        row for row in experiments.results("objectives") if OBJECTIVES[name].items() <= row.items()
    ]

    def mean(column: str) -> str:  # an autoencoder has neither ELBO nor KL
        values = [abs(row[column]) for row in rows if column in row]
        return f"{sum(values) / len(values):.1f}" if values else ""

    gaps = [row["mig"] for row in rows]
    gap = f"{sum(gaps) / len(gaps):.2f} ({min(gaps):.2f}–{max(gaps):.2f})"
    return [name, *map(mean, ("val_elbo", "val_log_px_z", "val_kl")), gap]


def _samples(name: str, block: dict) -> list:
    """One line of "samples"."""
    found = block["samples"]
    told = [f"{a:.2f} ± {e:.2f}" for a, e in (found["two_sample"], found["two_sample_means"])]
    distance = f"{found['frechet']:.1f}" if "frechet" in found else ""
    return [f"`{name}`", f"{found['n']:,}", *told, distance]


def _block(name: str, block_name: str, block: dict) -> list:
    """One line of "digits" or "faces"."""
    elbo, parts, cell = "", with_error(block["reconstruction"]), ""  # of an autoencoder
    if bound := block.get("bound"):
        elbo, of = with_error(block["neg_elbo"]), ""
        parts += f" + {with_error(block['kl'])}"
        if bound["n_images"] != block["n_images"]:
            there = bound["neg_elbo_same_images"][0]
            of = f"; first {bound['n_images']:,} images, whose −ELBO is {there:.2f}"
        cell = f"{with_error(bound['neg_log_px'])} ({bound['n_importance']:,}{of})"
    cells = [f"`{name}` {block_name}", elbo, parts, block["active_units"], cell]
    if "psnr" not in block:
        return cells
    sigma = f"{block['sigma']:.4f}" if "sigma" in block else ""
    bits = f"{block['bits_per_dim']:.3f}" if bound else ""
    return [*cells, bits, sigma, with_error(block["psnr"])]


def write_tables() -> None:
    """Put each table of results between its markers, in README.md and checkpoints/README.md."""
    for path in (PUBLISHED.parent / "README.md", PUBLISHED / "README.md"):
        text = path.read_text(encoding="utf-8")
        for begin, kind in re.findall(r"(<!-- (\S+): written by `vaelib figures` -->)", text):
            before, after = text.split(begin)
            after = after.split(end := f"<!-- end of {kind} -->")[1]
            text = f"{before}{begin}\n{results_table(kind)}\n{end}{after}"
        files.write_text(path, text)


def write_manifest() -> None:
    """Note the SHA-256 of every published file in the package's manifest."""
    files.write_json(
        checkpoints.MANIFEST,
        {
            folder.name: {
                name: files.sha256(folder / name)
                for name in FILES + MORE
                if name in FILES or (folder / name).exists()
            }
            for folder in sorted(PUBLISHED.iterdir())
            if (folder / files.WEIGHTS).exists()
        },
    )

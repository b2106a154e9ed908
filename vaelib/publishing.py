"""What makes the repository's own texts true: pictures, pages, tables of results, manifest."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from vaelib import checkpoints, data, derived, export, figures, files, film, gallery, widgets
from vaelib.checkpoints import PUBLISHED
from vaelib.data import Images
from vaelib.figures import Figure

ASSETS = PUBLISHED.parent / "readme-assets"
PUBLISHED_PAGES = PUBLISHED.parent / "docs"  # as a static host serves them
FILES = (files.CONFIG, files.WEIGHTS, files.RECIPE, files.HISTORY, files.METRICS)  # of each
MORE = (files.LATENTS, files.ATTRIBUTES, files.FILM)  # of some


def published_figures(model, name: str, images: Images) -> dict[str, Figure]:
    """Every picture of a published checkpoint, by the kind that ends its file name."""
    folder = checkpoints.find(name)
    start = images
    if images.labels is not None and (images.labels == 8).any():
        start = images[images.labels == 8]  # in a digit's loops a change is seen best
    rows = files.read_json(folder / files.HISTORY)
    pictures = {
        "samples": gallery.sample(model, name),
        "reconstructions": gallery.reconstruct(model, name, images),
        "interpolations": gallery.interpolate(model, name, images),
        "traversals": gallery.traverse(model, name, start, checkpoints.known_kl(folder)),
        "latent-histogram": gallery.latent_histogram(model, name, images),
        "loss-curve": figures.loss_curve(rows, f"{name}: training"),
        "architecture": figures.architecture(model, f"{name}: stages and their output shapes"),
    }
    if images.attributes:
        density, table = derived.aggregate(model, folder), derived.attributes(model, folder)
        pictures["samples-aggregate"] = gallery.sample(model, name, density=density)
        directions, strengths = derived.shown_directions(table), torch.linspace(-1.5, 1.5, 7)
        steps = gallery.attribute_steps(model, name, images, directions, strengths, 3)
        pictures["attributes"] = steps
    if model.latent_dim == 2 and images.labels is not None:
        pictures["latent-map"] = gallery.visualize_latent(model, name, images)
    if model.latent_dim == 2:
        spacing = "inverse_cdf" if gallery.is_standard(model) else "linear"
        pictures["manifold"] = gallery.manifold(model, name, spacing=spacing)
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


def results_table(things: str, every_block: bool) -> str:
    """The published checkpoints of "digits", "faces", ... and their numbers, as Markdown.

    From their metrics.json: every block, or the most thorough one.
    """
    chosen = []
    for name in checkpoints.published():
        blocks = [*files.read_metrics(checkpoints.find(name)).items()]  # test_full first
        for block_name, block in blocks if every_block else blocks[:1]:
            if data.source(block["data"]).things == things:
                chosen.append((name, block_name, block))
    densities = any("psnr" in block for _, _, block in chosen)  # of grey or coloured pixels
    head = "checkpoint | D | MB | block | images | -ELBO | reconstruction | KL | active"
    head += " | bound (samples)" + (" | bits per dim | sigma | PSNR, dB" if densities else "")
    rows = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for row in chosen:
        rows.append("| " + " | ".join(map(str, _cells(*row, densities))) + " |")
    return "\n".join(rows)


def _cells(name: str, block_name: str, block: dict, densities: bool) -> list:
    """One line of a table of results."""
    folder = checkpoints.find(name)
    size = (folder / files.WEIGHTS).stat().st_size / 1e6
    bound, n = block["bound"], block["n_images"]
    of = ""
    if bound["n_images"] != n:
        there = bound["neg_elbo_same_images"][0]
        of = f"; first {bound['n_images']:,} images, whose -ELBO is {there:.2f}"
    cells = [
        f"`{name}`", files.read_mapping(folder / files.CONFIG)["latent_dim"], f"{size:.1f}",
        block_name, f"{n:,} {block['data']} {block['split']}",
        *(with_error(block[key]) for key in ("neg_elbo", "reconstruction", "kl")),
        block["active_units"],
        f"{with_error(bound['neg_log_px'])} ({bound['n_importance']:,}{of})",
    ]  # fmt: skip
    if densities and "psnr" in block:
        sigma = f"{block['sigma']:.4f}" if "sigma" in block else ""
        cells += [f"{block['bits_per_dim']:.3f}", sigma, with_error(block["psnr"])]
    return cells + [""] * (3 if densities and "psnr" not in block else 0)


def write_tables() -> None:
    """Put each table of results between its markers, in README.md and checkpoints/README.md."""
    for path in (PUBLISHED.parent / "README.md", PUBLISHED / "README.md"):
        text = path.read_text(encoding="utf-8")
        for begin, things in re.findall(r"(<!-- (\S+): written by `vaelib figures` -->)", text):
            before, after = text.split(begin)
            after = after.split(end := f"<!-- end of {things} -->")[1]
            table = results_table(things, path.parent == PUBLISHED)
            text = f"{before}{begin}\n{table}\n{end}{after}"
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

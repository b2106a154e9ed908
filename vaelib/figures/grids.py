"""Sheets of pictures: tiled into one array first, as one `imshow` is a hundred times faster than
a hundred axes, and gives the same picture."""

import math

import numpy as np
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vaelib.figures.style import HALF, ORANGE, WIDE, Figure, finite, look, text_width, wrapped

LINE = 0.17  # inches from one line of text to the next
EDGE = 0.06  # inches of white at either side, so that two sheets side by side are two


def tile(images: Tensor, n_columns: int, gap: int = 2) -> np.ndarray:
    """Images side by side on white: (N, C, H, W) in [0, 1] -> (rows, columns, 3) floats."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"images of shape {tuple(images.shape)}: a picture takes (N, C, H, W), N at least 1 "
            "and C 1 (grey) or 3 (colour)"
        )
    finite("pictures", images)
    images = images.detach().float().cpu().clamp(0, 1)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    n, _, height, width = images.shape
    n_rows = math.ceil(n / n_columns)
    page = np.ones((n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, 3))
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = i // n_columns * (height + gap), i % n_columns * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def fitting(n_columns: int, images: Tensor) -> float:
    """How wide a sheet is, in inches: half the page where its pictures can be seen there."""
    each = min(0.5, 0.011 * images.shape[-1])
    return min(WIDE if n_columns * each > HALF else HALF, 1.0 * n_columns)


@look()
def sheet(
    page: np.ndarray, width: float, title: str = "", left: float = 0.0, above: float = 0.0,
    below: float = 0.0,
) -> Figure:  # fmt: skip
    """A figure so many inches wide, with a picture and room at its sides for labels.

    Shapes: page (rows, columns, 3). Margins are whole pixels of the picture.
    """
    n_rows, n_columns, _ = page.shape
    left = max(left, EDGE)
    per_inch = n_columns / (width - left - EDGE)
    lines = wrapped(title, max(width, 3.0) - 2 * EDGE)
    above += len(lines) * LINE + 0.08 * bool(lines)
    left, above, below, edge = (math.ceil(i * per_inch) for i in (left, above, below, EDGE))
    across = max(left + n_columns + edge, math.ceil(3.0 * per_inch) if lines else 0)
    down = above + n_rows + below
    figure = Figure((across / per_inch, down / per_inch))
    figure.pixels_per_inch = per_inch
    axes = figure.add_axes((left / across, below / down, n_columns / across, n_rows / down))
    axes.imshow(page, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0, labeltop=True, labelbottom=False, pad=3)
    top = 1 - 0.02 * per_inch / down
    figure.suptitle("\n".join(lines), x=edge / across, y=top, ha="left", va="top", linespacing=1.1)
    return figure


@look()
def image_grid(
    images: Tensor,
    n_columns: int,
    title: str = "",
    row_labels: list[str] | None = None,
    column_labels: list[str] | None = None,
    gap: int = 2,
    inches: float = 0.55,
    width: float | None = None,
) -> Figure:
    """A grid of pictures with labels at its left and top. Shapes: images (N, C, H, W).

    Each picture is so many inches wide, or all of it with its labels is `width` inches.
    """
    page = tile(images, n_columns, gap)
    beside = label_room(row_labels)
    width = width or n_columns * inches + max(beside, EDGE) + EDGE
    figure = sheet(page, width, title, beside, LINE * bool(column_labels))
    down, across = (size + gap for size in images.shape[-2:])
    if row_labels:
        middles = np.arange(math.ceil(len(images) / n_columns)) * down + (down - gap) / 2
        figure.axes[0].set_yticks(middles - 0.5, row_labels)
    if column_labels:
        middles = np.arange(n_columns) * across + (across - gap) / 2
        figure.axes[0].set_xticks(middles - 0.5, column_labels)
    return figure


def label_room(labels: list[str] | None) -> float:
    """Inches that labels at the left take."""
    lines = [line for label in labels or [] for line in label.split("\n")]
    return max(map(text_width, lines)) + 0.08 if lines else 0.0


def samples(images: Tensor, title: str = "", n_columns: int | None = None) -> Figure:
    """Decoded draws from the prior, in a square unless told. Shapes: (N, C, H, W)."""
    n_columns = n_columns or math.ceil(math.sqrt(len(images)))
    return image_grid(images, n_columns, title, width=fitting(n_columns, images))


def reconstructions(x: Tensor, x_mean: Tensor, title: str = "", n_columns: int = 12) -> Figure:
    """Inputs, each with the mean of p(x | z) under it. Shapes: (N, C, H, W) twice."""
    n_columns = min(n_columns, len(x))
    pairs = zip(x.split(n_columns), x_mean.split(n_columns), strict=True)
    pages = [tile(part, n_columns) for pair in pairs for part in pair]
    white = np.ones((6, *pages[0].shape[1:]))
    gaps = [white[:2], white] * (len(pages) // 2)  # less within a pair than between two
    page = np.concatenate([part for pair in zip(pages, gaps, strict=True) for part in pair][:-1])
    return sheet(page, fitting(n_columns, x), title)


def interpolations(
    starts: Tensor | None, paths: Tensor, ends: Tensor | None, title: str = ""
) -> Figure:
    """Real images at both ends, if given, the decoded path between.

    Shapes: (R, C, H, W), (R, n, C, H, W), (R, C, H, W).
    """
    rows, labels = paths, None
    if starts is not None:
        rows = torch.cat([starts.unsqueeze(1), paths, ends.unsqueeze(1)], dim=1)
        labels = ["real", *[""] * paths.shape[1], "real"]
    n, width = rows.shape[1], fitting(rows.shape[1], paths)
    return image_grid(rows.flatten(0, 1), n, title, column_labels=labels, width=width)


@look()
def traversals(
    images: Tensor, values: Tensor, row_labels: list[str] | None, title: str = "",
    originals: Tensor | None = None, mark: int | None = None,
) -> Figure:  # fmt: skip
    """One row per traversed dimension, the column of the original in a frame.

    That is a first column of `originals`, or the one of the values numbered `mark`.
    Shapes: images (R, n, C, H, W), values (n,), originals (R, C, H, W).
    """
    down, across = (size + 2 for size in images.shape[-2:])
    page, first = tile(images.flatten(0, 1), len(values)), 0
    if originals is not None:
        white = np.ones((len(page), 6, 3))
        column = tile(originals, 1)
        page, first, mark = np.concatenate([column, white, page], axis=1), across + 4, 0
    places = 0 if torch.equal(values, values.round()) else 1
    labels = [f"{v:+.{places}f}".replace("-", "\u2212") for v in values.tolist()]
    labels = [label if set(label) & set("123456789") else "0" for label in labels]
    left = label_room(row_labels)
    width = max(fitting(len(labels) + (originals is not None), images[0]), left + 1)
    axes = sheet(page, width, title, left, LINE, 0.03).axes[0]
    middles = first + np.arange(len(values)) * across + (across - 2) / 2 - 0.5
    # where not all fit, some are left out
    fit = across / page.shape[1] * (width - left - EDGE) - 0.05
    every, half = math.ceil(max(map(text_width, labels)) / fit), len(labels) // 2
    every = next((n for n in range(every, half + 1) if half % n == 0), every)  # both ends too
    labels = [label if (i - half) % every == 0 else "" for i, label in enumerate(labels)]
    if originals is not None:
        middles, labels = [(across - 3) / 2, *middles], ["own z", *labels]
    axes.set_xticks(middles, labels)
    if row_labels:
        axes.set_yticks(np.arange(len(row_labels)) * down + (down - 3) / 2, row_labels)
    if mark is not None:
        place = (mark * across - 1.5, -1.5) if originals is None else (-0.5, -0.5)
        edge = (across, len(page) + 2) if originals is None else (across - 2, len(page))
        frame = {"fill": False, "edgecolor": ORANGE, "linewidth": 2, "clip_on": False}
        axes.add_patch(Rectangle(place, *edge, **frame))
    return axes.figure


@look()
def manifold(images: Tensor, ticks: Tensor, title: str = "") -> Figure:
    """An n x n grid of decoded latents, no gaps. Shapes: images (n * n, C, H, W), ticks (n,).

    `ticks` are the latents of its columns; the axes have round ones, where they belong.
    """
    axes = sheet(tile(images, len(ticks), 0), HALF, title, left=0.58, below=0.42).axes[0]
    n, (height, width), line = len(ticks), images.shape[-2:], ticks.double().numpy()
    shown = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(line[0], line[-1])
    shown = [v for v in shown if line[0] <= v <= line[-1]] or [line[0]]
    cells = np.interp(shown, line, np.arange(n))
    labels = [f"{value:g}".replace("-", "\u2212") for value in shown]
    axes.set_xticks((cells + 0.5) * width - 0.5, labels)
    axes.set_yticks((n - cells - 0.5) * height - 0.5, labels)
    axes.tick_params(labeltop=False, labelbottom=True, length=3)
    axes.set_xlabel("z[0]")
    axes.set_ylabel("z[1]", labelpad=1)
    return axes.figure

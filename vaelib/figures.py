"""One function per kind of picture. Each returns a Figure; none shows or writes anything.

Grids of images are tiled into one array first: one `imshow` is a hundred times faster than
a hundred axes, and gives the same picture.
"""

import io
import math
import textwrap
from collections.abc import Sequence

import matplotlib.figure
import numpy as np
import seaborn as sns
import torch
from PIL import Image
from torch import Tensor, nn

BLUE, ORANGE, GREY = "#0173b2", "#de8f05", "#777777"  # seaborn's colour-blind palette
PIXEL_RANGE = {"vmin": 0.0, "vmax": 1.0, "cmap": "gray"}


class Figure(matplotlib.figure.Figure):
    """A matplotlib Figure that shows itself in a notebook, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=80)
        Image.open(drawn).convert("RGB").save(small, "png", optimize=True)  # no transparency
        return small.getvalue()


def tile(images: Tensor, n_columns: int, gap: int = 2) -> np.ndarray:
    """Images side by side on white: (N, C, H, W) in [0, 1] -> (rows, columns, 3) floats."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"images of shape {tuple(images.shape)}: a picture takes (N, C, H, W), N at least 1 "
            "and C 1 (grey) or 3 (colour)"
        )
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


def image_grid(
    images: Tensor,
    n_columns: int,
    title: str = "",
    row_labels: list[str] | None = None,
    column_labels: list[str] | None = None,
    gap: int = 2,
    inches: float = 0.55,
) -> Figure:
    """A grid of pictures with labels at its left and top. Shapes: images (N, C, H, W)."""
    page = tile(images, n_columns, gap)
    height, width = (size + gap for size in images.shape[-2:])
    n_rows = math.ceil(len(images) / n_columns)
    beside = 0.09 * max(map(len, row_labels)) if row_labels else 0.0  # inches for the labels
    across = max(n_columns * inches, 3.2 - beside)
    lines = textwrap.wrap(title, int(14 * across))  # 14 letters an inch
    above = 0.18 * bool(title) + 0.14 * len(lines) + 0.22 * bool(column_labels)
    size = (across + beside, n_rows * inches * height / width + above)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(page, interpolation="nearest")
    axes.set_title("\n".join(lines), fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    axes.set_yticks(
        [i * height + (height - gap) / 2 for i in range(n_rows)] if row_labels else [], row_labels
    )
    axes.set_xticks(
        [i * width + (width - gap) / 2 for i in range(n_columns)] if column_labels else [],
        column_labels,
    )
    return figure


def samples(images: Tensor, title: str = "", n_columns: int | None = None) -> Figure:
    """Decoded draws from the prior, in a square unless told. Shapes: (N, C, H, W)."""
    return image_grid(images, n_columns or math.ceil(math.sqrt(len(images))), title)


def reconstructions(x: Tensor, x_mean: Tensor, title: str = "", n_columns: int = 12) -> Figure:
    """Inputs, each with the mean of p(x | z) under it. Shapes: (N, C, H, W) twice."""
    n_columns = min(n_columns, len(x))
    n_rows = math.ceil(len(x) / n_columns)
    white = x.new_ones(n_rows * n_columns - len(x), *x.shape[1:])  # fills the last row
    tops, bottoms = (torch.cat([part, white]).split(n_columns) for part in (x, x_mean))
    rows = [row for pair in zip(tops, bottoms, strict=True) for row in pair]
    return image_grid(torch.cat(rows), n_columns, title, ["input", "reconstruction"] * n_rows)


def interpolations(starts: Tensor, paths: Tensor, ends: Tensor, title: str = "") -> Figure:
    """Real images at both ends, the decoded path between. Shapes: (R, C, H, W), (R, n, C, H, W)."""
    rows = torch.cat([starts.unsqueeze(1), paths, ends.unsqueeze(1)], dim=1)
    labels = ["real", *[""] * paths.shape[1], "real"]
    return image_grid(rows.flatten(0, 1), rows.shape[1], title, column_labels=labels)


def traversals(images: Tensor, values: Tensor, row_labels: list[str], title: str = "") -> Figure:
    """One row per traversed dimension. Shapes: images (R, n, C, H, W), values (n,)."""
    labels = [f"{round(value, 1) + 0.0:+.1f}" for value in values.tolist()]
    return image_grid(images.flatten(0, 1), len(values), title, row_labels, labels)


def manifold(images: Tensor, ticks: Tensor, title: str = "") -> Figure:
    """An n x n grid of decoded latents, no gaps. Shapes: images (n * n, C, H, W), ticks (n,)."""
    n = len(ticks)
    figure = image_grid(images, n, title, gap=0, inches=0.32)
    axes = figure.axes[0]
    height, width = images.shape[-2:]
    shown = sorted({round(i) for i in np.linspace(0, n - 1, min(n, 7))})  # the ends included
    labels = [f"{ticks[i]:.1f}" for i in shown]
    axes.set_xticks([(i + 0.5) * width for i in shown], labels)
    axes.set_yticks([(n - i - 0.5) * height for i in shown], labels)
    axes.tick_params(labeltop=False, labelbottom=True)
    axes.set_xlabel("z[0]")
    axes.set_ylabel("z[1]")
    return figure


def prior_contours(axes, linewidth: float) -> None:
    """N(0, I) in the latent plane: circles at 1, 2 and 3 sigma."""
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius in (1, 2, 3):
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), "k--", linewidth=linewidth)


def latent_map(
    means: Tensor, labels: Tensor, title: str = "", limit: float = 4.5,
    things: str = "images", standard_prior: bool = True,
) -> Figure:  # fmt: skip
    """Posterior means of a 2-D model by label, with the contours of a prior N(0, I).

    Shapes: means (N, 2), labels (N,). `things` is what the images are called, in the plural.
    """
    figure = Figure((6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    order = torch.randperm(len(means), generator=torch.Generator().manual_seed(0))  # fair overlap
    z, labels = means[order].cpu().numpy(), labels[order].cpu().numpy()
    sns.scatterplot(
        x=z[:, 0], y=z[:, 1], hue=labels, palette=sns.color_palette("colorblind", labels.max() + 1),
        s=6, linewidth=0, alpha=0.7, legend="full", ax=axes,
    )  # fmt: skip
    if standard_prior:
        prior_contours(axes, linewidth=0.9)
        for radius in (1, 2, 3):
            axes.annotate(
                rf"{radius}$\sigma$", (0, -radius), fontsize=8, ha="center", va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
    centres = {}  # colour alone does not tell ten classes apart
    for label in np.unique(labels):
        centre = np.median(z[labels == label], 0)
        while any(np.hypot(*(centre - other)) < 0.4 for other in centres.values()):
            centre = centre + np.array([0.2, 0.0])  # beside the one it would cover
        centres[label] = centre
        axes.annotate(
            str(label), centre, fontsize=10, weight="bold", ha="center", va="center",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white"},
        )  # fmt: skip
    outside = int((np.abs(z) > limit).any(1).sum())
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    axes.set_xlabel("z[0]" + (f"   ({outside} {things} lie outside)" if outside else ""))
    axes.set_ylabel("z[1]")
    kind = things.removesuffix("s")
    axes.legend(title=kind, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.5)
    return figure


def latent_histogram(
    z: Tensor, kl_per_dim: Tensor | list[float] | None, title: str = "",
    order: Sequence[int] | None = None, prior_draws: Tensor | None = None,
) -> Figure:  # fmt: skip
    """Every latent dimension of draws from q(z | x), over images, against the prior.

    The prior is N(0, 1) in each dimension, or what `prior_draws` are of.
    Shapes: z (N, D) one draw per image, kl_per_dim (D,) nats, prior_draws (M, D). Dimensions
    come in the given `order`, else that of the most nats first. Bars above 0.9 are cut off.
    """
    n_dims = z.shape[1]
    if order is None and kl_per_dim is not None:
        order = torch.as_tensor(kl_per_dim).argsort(descending=True).tolist()
    n_columns = min(10, n_dims)
    n_rows = math.ceil(n_dims / n_columns)
    size = 2.6 if n_dims <= 3 else 1.15
    figure = Figure((max(n_columns * size, 5.2), n_rows * size + 0.7), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    edges, line = np.linspace(-4, 4, 41), np.linspace(-4, 4, 81)
    density = np.exp(-(line**2) / 2) / math.sqrt(2 * math.pi)
    for axes in grid.flat[n_dims:]:
        axes.set_visible(False)
    for axes, dim in zip(grid.flat, order or range(n_dims), strict=False):
        heights, _ = np.histogram(z[:, dim].cpu().numpy(), edges, density=True)
        axes.stairs(heights, edges, fill=True, color=BLUE, alpha=0.75)
        if prior_draws is None:
            axes.plot(line, density, color=ORANGE, linewidth=1.6)
        else:
            heights, _ = np.histogram(prior_draws[:, dim].cpu().numpy(), edges, density=True)
            axes.stairs(heights, edges, color=ORANGE, linewidth=1.6)
        nats = "" if kl_per_dim is None else f": {kl_per_dim[dim]:.2f} nats"
        axes.set_title(f"z[{dim}]{nats}", fontsize=7, pad=2)
        axes.tick_params(labelsize=7)
        axes.set(xlim=(-4, 4), ylim=(0, 0.9), xticks=(-3, 0, 3), yticks=(0, 0.4, 0.8))
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("latent value", fontsize=8)
    figure.supylabel("density", fontsize=8)
    return figure


def loss_curve(rows: list[dict], title: str = "") -> Figure:
    """-ELBO on train and val, and val's KL, against steps: the rows of a `History`.

    Where an objective has no ELBO, minus the objective; where it has no KL, that is left out.
    """
    column = "elbo" if all("val_elbo" in row for row in rows) else "objective"
    with_kl = all("val_kl" in row for row in rows)
    figure = Figure((7.2 if with_kl else 4.2, 3.2), layout="constrained")
    left, *right = figure.subplots(1, 1 + with_kl, squeeze=False)[0]
    steps = [row["step"] for row in rows]
    for name, colour, style in (("train", BLUE, "-"), ("val", ORANGE, "--")):
        values = [-row[f"{name}_{column}"] for row in rows]
        left.plot(steps, values, style, color=colour, label=name)
    lowest = min(-row[f"{split}_{column}"] for row in rows for split in ("train", "val"))
    reach = max(22, 0.1 * abs(lowest))
    label = "-ELBO" if column == "elbo" else "-objective"
    left.set(ylim=(lowest - reach / 11, lowest + reach), ylabel=f"{label} (nats per image)")
    left.set_xlabel("step")
    left.legend(frameon=False)
    for axes in right:
        axes.plot(steps, [row["val_kl"] for row in rows], color=ORANGE)
        axes.set(ylabel="KL on val (nats per image)", xlabel="step")
    for axes in (left, *right):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, steps[-1])
    figure.suptitle(title, fontsize=10)
    return figure


def architecture(model, title: str = "") -> Figure:
    """The model as it computes: every stage as a box, its output's shape read off a real call.

    A box's height follows the image's side, its width the number of channels.
    """
    stages, hooks = [], []

    def note(name):
        return lambda module, inputs, output: stages.append((name, tuple(output.shape[1:])))

    for part in (model.encoder, model.decoder):
        for name, child in part.named_children():
            inner = child.named_children() if name in ("down_blocks", "up_blocks") else []
            for leaf_name, leaf in list(inner) or [(name, child)]:
                label = type(leaf).__name__ if leaf_name.isdigit() else name
                if not isinstance(leaf, nn.SiLU):
                    hooks.append(leaf.register_forward_hook(note(label)))
    with torch.inference_mode():
        model.decode(model.encode(torch.zeros(1, *model.image_shape)).loc)
    for hook in hooks:
        hook.remove()
    middle = [name for name, _ in stages].index("to_latent") + 1
    stages.insert(middle, ("z", (model.latent_dim,)))
    stages = [("x", model.image_shape), *stages]
    return _boxes(stages, title)


def _boxes(stages: list[tuple[str, tuple[int, ...]]], title: str) -> Figure:
    figure = Figure((1.0 * len(stages), 3.1), layout="constrained")
    axes = figure.subplots()
    for i, (name, shape) in enumerate(stages):
        side = max(shape[1:], default=0)
        height = 0.35 + 1.9 * side / max(stages[0][1][1:]) if side else 0.9
        width = 0.22 + 0.06 * math.log2(shape[0]) if side else 0.16
        colour = ORANGE if name == "z" else BLUE if side else GREY
        axes.bar(i, height, width, bottom=-height / 2, color=colour, alpha=0.85)
        axes.text(i, 1.28, name, ha="center", fontsize=8, rotation=28)
        axes.text(i, -1.35, "x".join(map(str, shape)), ha="center", va="top", fontsize=8)
        if i:
            axes.annotate(
                "", (i - 0.32, 0), (i - 0.68, 0), arrowprops={"arrowstyle": "->", "color": GREY}
            )
    axes.set(xlim=(-0.7, len(stages) - 0.2), ylim=(-1.7, 2.1), title=title)
    axes.set_axis_off()
    return figure

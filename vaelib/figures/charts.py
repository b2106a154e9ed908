"""Charts: the latent plane, every latent dimension against the prior, the course of training."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vaelib.figures.style import (
    BLUE,
    GREY,
    HALF,
    LETTERS,
    ORANGE,
    WIDE,
    Figure,
    class_dots,
    colours,
    finite,
    key,
    look,
    wrapped,
)  # fmt: skip


def prior_contours(axes) -> None:
    """N(0, I) in the latent plane: circles at 1, 2 and 3 sigma."""
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius in (1, 2, 3):
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), "k--", linewidth=0.8)


@look()
def latent_plane(title: str, labels: Sequence, limit: float) -> Figure:
    """An empty map of two latent dimensions, with the classes' colours above it."""
    rows = math.ceil(len({int(label) for label in labels}) / 10)
    lines = wrapped(title, HALF - 0.1)
    side, above = HALF - 0.5, 0.12 + 0.17 * max(1, len(lines)) + 0.19 * rows
    height = 0.45 + side + above
    figure = Figure((HALF, height))
    axes = figure.add_axes((0.45 / HALF, 0.45 / height, side / HALF, side / height))
    figure.suptitle("\n".join(lines), x=0.01, y=1 - 0.03 / height, ha="left", va="top")
    key(axes, labels)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="z[0]", ylabel="z[1]")
    axes.yaxis.labelpad = 0
    return figure


@look()
def latent_map(
    means: Tensor, labels: Tensor, title: str = "", limit: float = 4.5,
    things: str = "images", standard_prior: bool = True,
) -> Figure:  # fmt: skip
    """Posterior means of a 2-D model by label, with the contours of a prior N(0, I).

    Shapes: means (N, 2), labels (N,). `things` is what the images are called, in the plural.
    """
    finite("means", means)
    axes = latent_plane(title, labels.tolist(), limit).axes[0]
    z = dots(axes, means, labels)
    if standard_prior:
        prior_contours(axes)
        for radius in (1, 2, 3):
            axes.annotate(
                rf"{radius}$\sigma$", (0, -radius), ha="center", va="center", parse_math=True,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
    name_classes(axes, z, labels)
    if outside := int((np.abs(z) > limit).any(1).sum()):
        axes.set_xlabel(f"z[0]   ({outside} {things} lie outside)")
    return axes.figure


def dots(axes, means: Tensor, labels: Tensor) -> np.ndarray:
    """Posterior means as dots in the classes' colours; returns them as an array (N, 2)."""
    order = torch.randperm(len(means), generator=torch.Generator().manual_seed(0))  # fair overlap
    shown = means[order].cpu().numpy()
    shades = colours(labels[order].cpu().numpy())
    axes.scatter(*shown.T, s=2.5, c=shades, linewidth=0, antialiased=False)
    return means.cpu().numpy()


def name_classes(axes, z: np.ndarray, labels: Tensor) -> None:
    """Each class's label where it lies: colour alone does not tell ten apart."""
    labels, centres = labels.cpu().numpy(), {}
    for label in np.unique(labels):
        centre = np.median(z[labels == label], 0)
        centres[label] = centre = free_place(centre, [*centres.values()])
        axes.annotate(
            str(label), centre, weight="bold", ha="center", va="center",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "linewidth": 0.7},
        )  # fmt: skip


@look()
def latent_maps(means: dict[str, Tensor], labels: Tensor, title: str = "") -> Figure:
    """Maps of several 2-D models side by side, each with its own scale and the same N(0, I).

    Shapes: means of (N, 2) by a model's name, labels (N,).
    """
    figure = Figure((WIDE, WIDE / len(means) + 0.75), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    panels = figure.subplots(1, len(means), squeeze=False)[0]
    for axes, (name, some) in zip(panels, means.items(), strict=True):
        finite("means", some)
        dots(axes, some, labels)
        prior_contours(axes)
        limit = max(3.3, 1.05 * some.abs().max().item())
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), title=name, aspect="equal")
        axes.locator_params(nbins=4)
    shown = class_dots(labels)
    figure.legend(handles=shown, loc="outside lower center", ncols=10, handletextpad=0)
    return figure


def free_place(centre: np.ndarray, taken: list[np.ndarray], far: float = 0.43) -> np.ndarray:
    """The nearest place, of some around a centre, that is so far from all that are taken."""
    for radius in 0.1 * np.arange(0, 21):
        for angle in np.linspace(0, 2 * np.pi, 16 if radius else 1, endpoint=False):
            place = centre + radius * np.array([np.cos(angle), np.sin(angle)])
            if all(np.hypot(*(place - other)) >= far for other in taken):
                return place
    return centre


def mismatch(z: Tensor, prior_draws: Tensor | None = None) -> Tensor:
    """How far the draws of each dimension would have to move, on average, to be the prior's.

    The Wasserstein-1 distance to N(0, 1), or to what `prior_draws` are of; of n draws of the
    prior itself it is about 1 / sqrt(n).
    Shapes: z (N, D), prior_draws (M, D) -> (D,). Units: those of z.
    """
    z = z.double().sort(dim=0).values
    places = (torch.arange(len(z), dtype=torch.float64) + 0.5) / len(z)
    if prior_draws is None:
        quantiles = torch.special.ndtri(places).unsqueeze(1)
    else:
        quantiles = prior_draws.double().quantile(places, dim=0)
    return (z - quantiles).abs().mean(0)


@look()
def latent_variance(
    spread: Tensor, width: Tensor, title: str = "", prior_variance: Tensor | None = None
) -> Figure:
    """Of each dimension the variance of q(z | x) over images, in its two parts, and the prior's.

    Dimensions come in the order of the first part: how much of z follows the image.
    Shapes: spread (D,) the variance of the means, width (D,) the mean of the variances,
    prior_variance (D,), 1 unless given.
    """
    figure = Figure((WIDE, 2.2), layout="constrained")
    figure.suptitle(title, x=0.008, ha="left")
    variance_bars(figure.subplots(), spread, width, prior_variance)
    return figure


def variance_bars(axes, spread, width, prior_variance=None) -> None:
    """The bars of `latent_variance`."""
    n, order = len(spread), spread.argsort(descending=True).tolist()
    spread, width = spread[order].cpu().numpy(), width[order].cpu().numpy()
    prior = np.ones(n) if prior_variance is None else prior_variance[order].cpu().numpy()
    axes.bar(range(n), spread, 0.8, color=BLUE, label="variance of the means")
    axes.bar(range(n), width, 0.8, spread, color="0.72", label="mean of the variances")
    edges = np.arange(n + 1) - 0.5
    axes.stairs(prior, edges, baseline=None, color=ORANGE, linewidth=1.5, label="prior's variance")
    top = max((spread + width).max(), prior.max())
    axes.set(xlim=(-0.7, n - 0.3), ylim=(0, 1.05 * top), ylabel="variance")
    axes.set_xticks(range(n), [f"z[{dim}]" for dim in order] if n <= 12 else [""] * n)
    if n > 12:
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel(f"{n} latent dimensions, in the order of the variance of their means")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, borderpad=0.1)


@look()
def latent_histogram(
    z: Tensor, kl_per_dim: Tensor | list[float] | None = None, title: str = "",
    prior_draws: Tensor | None = None, variances: tuple[Tensor, Tensor] | None = None,
) -> Figure:  # fmt: skip
    """Every latent dimension of draws from q(z | x), over images, against the prior.

    The prior is N(0, 1) in each dimension, or what `prior_draws` are of. Dimensions come in the
    order of their `mismatch`, which is written over each; with `kl_per_dim`, the means of
    KL(q(z_d | x) || p(z_d)) over images, in the order of those. No draw lies outside.
    Above them the chart of `latent_variance`, where its two parts are given.
    Shapes: z (N, D) one draw per image, kl_per_dim (D,) nats, prior_draws (M, D).
    """
    finite("latents", z)
    n_dims = z.shape[1]
    scores, told = mismatch(z, prior_draws), "Wasserstein-1 distance of the two"
    if kl_per_dim is not None:
        scores, told = torch.as_tensor(kl_per_dim), "nats of KL(q(z | x) || prior)"
    order = scores.argsort(descending=True).tolist()
    n_columns = next((n for n in (8, 10, 9, 7, 6) if n_dims % n == 0), min(8, n_dims))
    n_rows = math.ceil(n_dims / n_columns)
    lead, each = 2.6 * bool(variances), 2.2 if n_dims <= 3 else 1.15
    height = 0.6 + lead + n_rows * each + 0.25
    figure = Figure((WIDE, height))
    figure.suptitle(title, x=0.006, y=1 - 0.05 / height, ha="left", va="top")
    if variances:
        axes = figure.add_axes((0.06, 1 - (lead - 0.25) / height, 0.93, (lead - 0.75) / height))
        prior = None if prior_draws is None else prior_draws.var(0)
        variance_bars(axes, *variances, prior)
    text = f"blue: z of each image; orange: the prior; number: {told}"
    figure.text(0.006, 1 - (lead + 0.28) / height, text, va="top")
    places = {"left": 0.06, "right": 0.99, "bottom": 0.25 / height, "hspace": 0.35, "wspace": 0.1}
    places["top"] = 1 - (lead + 0.68) / height
    shared = {"sharex": True, "sharey": True, "squeeze": False, "gridspec_kw": places}
    grid = figure.subplots(n_rows, n_columns, **shared)
    reach = max(4, math.ceil(z.abs().max().item()))
    edges, highest = np.linspace(-reach, reach, min(10 * reach, 120) + 1), 0.42
    line = np.linspace(-reach, reach, 161)
    for number in range(n_dims, n_rows * n_columns):
        grid.flat[number].set_visible(False)
        grid.flat[number - n_columns].tick_params(labelbottom=True)
    for axes, dim in zip(grid.flat, order, strict=False):
        heights, _ = np.histogram(z[:, dim].cpu().numpy(), edges, density=True)
        axes.stairs(heights, edges, fill=True, color=BLUE)
        highest = max(highest, heights.max())
        if prior_draws is None:
            axes.plot(line, np.exp(-(line**2) / 2) / math.sqrt(2 * math.pi), color=ORANGE)
        else:
            heights, _ = np.histogram(prior_draws[:, dim].cpu().numpy(), edges, density=True)
            axes.stairs(heights, edges, color=ORANGE)
        axes.set_title(f"z[{dim}]  {scores[dim]:.2f}", fontsize=LETTERS, loc="center", pad=2)
    tick = 3 if reach < 6 else reach // 2
    limits = {"xlim": (-reach, reach), "ylim": (0, 1.04 * highest)}
    grid.flat[0].set(**limits, xticks=(-tick, 0, tick), yticks=(0, 0.4))
    return figure


@look()
def loss_curve(rows: list[dict], title: str = "", plans: Sequence[Sequence[int]] = ()) -> Figure:
    """-ELBO on train and val against steps, all of it and its later part, and val's KL from 0.

    `rows` and `plans` are those of a `History`: lines show where a run was made longer than
    planned. Where an objective has no ELBO, minus the objective; where it has no KL, that is
    left out.
    """
    column = "elbo" if all("val_elbo" in row for row in rows) else "objective"
    later = [row for row in rows if row["step"] > 0.2 * rows[-1]["step"]]
    parts = [("all of the run", rows)]
    curves = [
        [-row[f"{s}_{column}"] for row in some for s in ("train", "val")] for some in (rows, later)
    ]
    spans = [max(values) - min(values) for values in curves]
    if len(later) >= 5 and spans[1] < 0.8 * spans[0]:
        parts.append((f"from step {later[0]['step']:,} on", later))
    with_kl = all("val_kl" in row for row in rows)
    figure = Figure((WIDE, 2.7), layout="constrained")
    figure.suptitle(title, x=0.006, ha="left")
    panels = figure.subplots(1, len(parts) + with_kl, squeeze=False)[0]
    for axes, (name, some) in zip(panels, parts, strict=False):
        steps = [row["step"] for row in some]
        for split, colour, style in (("train", BLUE, "-"), ("val", ORANGE, "--")):
            values = [-row[f"{split}_{column}"] for row in some]
            axes.plot(steps, values, style, color=colour, label=split)
        axes.set_title(name, fontsize=LETTERS)
    label = "-ELBO" if column == "elbo" else "-objective"
    panels[0].set_ylabel(f"{label} (nats per image)")
    if with_kl:
        kl = [row["val_kl"] for row in rows]
        panels[-1].plot([row["step"] for row in rows], kl, "--", color=ORANGE, label="val")
        panels[-1].set(ylim=(min(0, *kl), 1.15 * max(*kl, 1e-3)), ylabel="KL (nats per image)")
        panels[-1].set_title("KL on val", fontsize=LETTERS)
    for axes in panels:
        for until, _ in plans:
            axes.axvline(until, color=GREY, linestyle=":")
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        axes.set_xlabel("step")
    panels[0].legend(loc="best")
    if plans:
        told = [
            f"{until:,}" + (f" (of {steps:,} planned)" if until < steps else "")
            for until, steps in plans
        ]
        text = f"dotted: made longer at step {', '.join(told)}"
        figure.text(0.994, 0.99, text, ha="right", va="top")
    return figure

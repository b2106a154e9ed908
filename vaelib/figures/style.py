"""How every picture looks: its width, letters, lines and colours, and how small it is stored."""

import io
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.figure
import matplotlib.style
import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from PIL import Image, ImageChops
from torch import Tensor

WIDE, HALF = 8.3, 4.1  # inches; README.md shows an inch as 100 pixels
FILE_DPI, SCREEN_DPI = 200, 100
LETTERS = 9  # points: at 100 pixels an inch a capital is 9 pixels high
BLUE, ORANGE, GREY = "#0173b2", "#de8f05", "#777777"  # seaborn's colour-blind palette
# Of ten classes, by label: Petroff 2021, "Accessible Color Sequences for Data Visualization", in
# an order that gives the digits whose clouds touch colours far apart, also for the colour-blind
CLASSES = (
    "#a96b59", "#b9ac70", "#717581", "#e76300", "#94a4a2",
    "#92dadd", "#3f90da", "#ffa90e", "#832db6", "#bd1f01",
)  # fmt: skip
LOOK = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "mathtext.fontset": "dejavusans",
    "text.parse_math": False,  # a model may be called a$b$
    "font.size": LETTERS,
    "axes.titlesize": LETTERS + 1,
    "axes.titlelocation": "left",
    "axes.labelsize": LETTERS,
    "xtick.labelsize": LETTERS,
    "ytick.labelsize": LETTERS,
    "legend.fontsize": LETTERS,
    "legend.frameon": False,
    "figure.titlesize": LETTERS + 1,
    "lines.linewidth": 1.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.alpha": 0.3,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
}


@contextmanager
def look() -> Iterator[None]:
    """Matplotlib's settings for every picture here, whatever a user's own are; a decorator too."""
    with matplotlib.style.context(LOOK, after_reset=True):
        yield


class Figure(matplotlib.figure.Figure):
    """A matplotlib Figure that shows itself in a notebook, without pyplot's global state.

    `pixels_per_inch` is that of a picture in it, if there is one: files have whole multiples of
    it, so that every pixel of the picture is as large as the next.
    """

    pixels_per_inch: float | None = None

    def png(self, dpi: float = FILE_DPI) -> bytes:
        """The figure as a PNG of about so many dots per inch: same figure, same bytes.

        With 256 colours where that changes no pixel by more than 8 of 255; for a screen always,
        then dithered, so that a notebook full of photographs stays small.
        """
        screen = dpi == SCREEN_DPI
        if self.pixels_per_inch:
            times = max(round(dpi / self.pixels_per_inch - 0.2), 1)
            times = max(times, math.ceil(0.98 * SCREEN_DPI / self.pixels_per_inch))
            dpi = times * self.pixels_per_inch
        drawn, small = io.BytesIO(), io.BytesIO()
        with look(), matplotlib.rc_context({"text.parse_math": True}):  # of ticks, as 10^3
            self.savefig(drawn, format="png", dpi=dpi, metadata={"Software": None})
        picture = few_colours(Image.open(drawn).convert("RGB"), always=screen)
        picture.save(small, "png", optimize=True)
        return small.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png(SCREEN_DPI)


def prefer_own_png() -> None:
    """In a notebook, where "%matplotlib inline" would draw every Figure, let ours draw itself."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, Figure._repr_png_)


prefer_own_png()


def few_colours(image: Image.Image, always: bool = False) -> Image.Image:
    """An RGB image in greys or 256 colours where nobody can see the difference, or dithered."""
    grey = image.convert("L")
    if ImageChops.difference(grey.convert("RGB"), image).getbbox() is None:
        return grey
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    worst = np.asarray(ImageChops.difference(few.convert("RGB"), image)).max()
    if worst > 8 and always:
        return image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.FLOYDSTEINBERG)
    return few if worst <= 8 else image


def text_width(text: str, points: float = LETTERS) -> float:
    """How wide a line of text is, in inches."""
    if not text.strip():
        return 0.0
    return TextPath((0, 0), text, size=points, prop={"family": "DejaVu Sans"}).get_extents().x1 / 72


def wrapped(text: str, width: float, points: float = LETTERS + 1) -> list[str]:
    """A text in lines of at most so many inches, but for words that are longer."""
    lines: list[str] = []
    words = text.replace(" | ", "\u00a0|\u00a0").split(" ")  # q(z | x) stays in one piece
    for word in filter(None, words):
        if lines and text_width(f"{lines[-1]} {word}", points) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def finite(what: str, values: Tensor) -> None:
    """ValueError where what is to be drawn has values that are no numbers."""
    if not torch.isfinite(values).all():
        raise ValueError(f"the {what} to draw are not finite: are the model's weights?")


def colours(labels: np.ndarray) -> np.ndarray:
    """Of each label its class's colour; they come again from the eleventh class on.

    Shapes: (N,) -> (N, 3).
    """
    palette = np.array([matplotlib.colors.to_rgb(colour) for colour in CLASSES])
    return palette[labels.astype(int) % len(CLASSES)]


def class_dots(labels) -> list[Line2D]:
    """A dot for each class, in its colour and with its name, as a legend takes them."""
    return [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=5, label=str(label))
        for label in sorted({int(label) for label in labels})
        for colour in [CLASSES[label % len(CLASSES)]]
    ]


def key(axes, labels) -> None:
    """A row above the axes that says which class has which colour."""
    dots = class_dots(labels)
    axes.legend(
        handles=dots, ncols=min(10, len(dots)), loc="lower left", bbox_to_anchor=(-0.02, 1.0),
        borderaxespad=0.2, borderpad=0.1, handlelength=0.5, handletextpad=0.25, columnspacing=0.9,
    )  # fmt: skip

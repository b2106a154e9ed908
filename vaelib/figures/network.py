"""A model as it computes: encoder, the draw of z, decoder; shapes are read off a real call."""

import math
from typing import NamedTuple

import torch
from matplotlib.patches import Circle, Rectangle

from vaelib.figures.style import BLUE, GREY, LETTERS, ORANGE, WIDE, Figure, look, text_width

PIXELS = 100  # of the drawing's coordinates to an inch
HEIGHT, TALL = 360, 84  # of the drawing, and of the largest image
TOP, BOTTOM, RIGHT = 248, 99, 640  # where encoder and decoder flow, and where the latents begin
GROUPS = ("down_blocks", "up_blocks", "hidden")


class Stage(NamedTuple):
    """A box: what it is called, the group that it stands in, its output's shape."""

    name: str
    group: str
    shape: tuple[int, ...]


@torch.inference_mode()
def stages(model, whole: bool) -> tuple[list[Stage], list[Stage]]:
    """Of encoder and decoder every stage that a call passes, and what it puts out.

    Of groups of blocks (down_blocks, ...) every block, or with `whole` each level as one stage.
    """
    found: list[Stage] = []
    hooks = []

    def note(name, group):
        def hook(module, inputs, output):
            found.append(Stage(name, group, tuple(output.shape[1:])))

        return hook

    for part in (model.encoder, model.decoder):
        for name, child in part.named_children():
            if name not in GROUPS:
                hooks.append(child.register_forward_hook(note(name, "")))
                continue
            blocks = [block for block in child if any(True for _ in block.parameters())]
            names = [type(block).__name__ for block in blocks]
            if whole and name != "hidden":  # two blocks are a level
                name, blocks, names = (
                    f"{name}: {', '.join(names[:2])}",
                    blocks[1::2],
                    [""] * len(blocks),
                )
            for block, its_name in zip(blocks, names, strict=False):
                hooks.append(block.register_forward_hook(note(its_name, name)))
    try:
        device = next(model.parameters()).device
        mean = model.encode(torch.zeros(1, *model.image_shape, device=device)).loc
        n_encoder = len(found)
        model.decode(mean)
    finally:
        for hook in hooks:
            hook.remove()
    return found[:n_encoder], found[n_encoder:]


@look()
def architecture(model, title: str = "") -> Figure:
    """Encoder above, decoder below, and between them z = mu + sigma * eps, which makes it a VAE.

    A box's height follows the image's side, its width the number of channels; vectors are grey,
    what belongs to the latents is orange. Names are those of `vaelib.models` and `vaelib.blocks`.
    """
    encoder, decoder = stages(model, whole=False)
    if max(len(encoder), len(decoder)) > 7:
        encoder, decoder = stages(model, whole=True)
    figure = Figure((WIDE, HEIGHT / PIXELS))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDE * PIXELS), ylim=(0, HEIGHT))
    axes.set_axis_off()
    axes.text(5, HEIGHT - 5, title, fontsize=LETTERS + 1, va="top")
    x, mean = (Stage(name, "", tuple(model.image_shape)) for name in ("x", "p(x | z)"))
    ends = row(axes, [x, *encoder], TOP, 1), row(axes, [mean, *reversed(decoder)], BOTTOM, -1)
    latents(axes, model.latent_dim, *ends)
    return figure


def row(axes, boxes: list[Stage], y: float, direction: int) -> float:
    """A network's stages from left to right; data flows to the right (1) or to the left (-1).

    Returns where the last box ends.
    """
    pitch = (RIGHT - 10) / len(boxes)
    places, last = [10 + pitch * (i + 0.5) for i in range(len(boxes))], 0.0
    side = max(shape[1] for _, _, shape in boxes if len(shape) == 3)
    named = pitch > 76 and all(name for name, _, _ in boxes)  # and there is room for it
    for i, (x, (name, group, shape)) in enumerate(zip(places, boxes, strict=True)):
        wide, tall = size(shape, side)
        wide = min(wide, 0.6 * pitch)
        colour = "0.3" if i == 0 else BLUE if len(shape) == 3 else GREY
        axes.add_patch(Rectangle((x - wide / 2, y - tall / 2), wide, tall, color=colour, lw=0))
        if named or not group:
            if PIXELS * text_width(name) > pitch:
                name = name.replace("_", "_\n")
            axes.text(x, y + TALL / 2 + 3, name, ha="center", va="bottom", linespacing=1.0)
        text = "\u00d7".join(map(str, shape))
        if PIXELS * text_width(text) > pitch - 5:
            text = text.replace("\u00d7", "\u00d7\n", 1)
        axes.text(x, y - TALL / 2 - 4, text, ha="center", va="top", linespacing=1.0)
        if i:
            ends = [(places[i - 1] + last / 2 + 3, y), (x - wide / 2 - 3, y)]
            arrow(axes, *ends[::direction])
        last = wide
    for group in dict.fromkeys(box.group for box in boxes if box.group):
        inside = [x for x, box in zip(places, boxes, strict=True) if box.group == group]
        ends = inside[0] - 0.42 * pitch, inside[-1] + 0.42 * pitch
        bracket(axes, *ends, y + TALL / 2 + (21 if named else 5), group, 1)
    ends = places[1] - 0.48 * pitch, places[-1] + 0.48 * pitch
    text = "encoder: q(z | x)" if direction > 0 else "decoder: p(x | z)"
    bracket(axes, *ends, y + (84 if direction > 0 else -80), text, direction)
    return places[-1] + last / 2


def size(shape: tuple[int, ...], side: int) -> tuple[float, float]:
    """How wide and tall a box is: by channels and height, or by the length of a vector."""
    if len(shape) == 3:
        return 8 + 5 * math.log2(shape[0]), max(8, TALL * shape[1] / side)
    return 11, min(TALL, 12 + 5 * math.log2(shape[0]))


def arrow(axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY) -> None:
    """From one point to another."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style | {"mutation_scale": 9})


def bracket(axes, left: float, right: float, y: float, text: str, up: int) -> None:
    """A line over (1) or under (-1) what belongs together, and its name."""
    down = y - 4 * up
    axes.plot([left, left, right, right], [down, y, y, down], color="0.5", linewidth=0.9)
    at = {"ha": "center", "va": "bottom" if up > 0 else "top"}
    axes.text((left + right) / 2, y + 2 * up, text, **at)


def latents(axes, n: int, encoder: float, decoder: float) -> None:
    """From the encoder's two vectors and a draw of noise to z, which the decoder takes.

    `encoder` and `decoder` are where the last box of each row ends.
    """
    high, low, across = TOP + 26, TOP - 34, (RIGHT + 36, RIGHT + 98, RIGHT + 160)
    nodes = {
        "\u03c3": (across[0], high, ORANGE), "\u03bc": (across[0], low, ORANGE),
        "\u00d7": (across[1], high, "white"), "+": (across[1], low, "white"),
        "\u03b5": (across[2], high, "0.8"), "z": (across[1], BOTTOM, ORANGE),
    }  # fmt: skip
    for text, (x, y, colour) in nodes.items():
        axes.add_patch(Circle((x, y), 13, facecolor=colour, edgecolor="0.3", linewidth=0.9))
        axes.text(x, y, text, fontsize=LETTERS + 1, ha="center", va="center")
    for start, end in ("\u03c3\u00d7", "\u03b5\u00d7", "\u03bc+", "\u00d7+", "+z"):
        (x, y, _), (to_x, to_y, _) = nodes[start], nodes[end]
        way = math.hypot(to_x - x, to_y - y)
        step_x, step_y = 15 * (to_x - x) / way, 15 * (to_y - y) / way
        arrow(axes, (x + step_x, y + step_y), (to_x - step_x, to_y - step_y))
    for y in (high, low):
        arrow(axes, (encoder + 3, TOP + (y - TOP) * 0.25), (across[0] - 15, y), ORANGE)
    for x, y in ((across[0], high), (across[0], low), (across[1], BOTTOM)):
        axes.text(x, y - 15, str(n), ha="center", va="top")
    arrow(axes, (across[1] - 15, BOTTOM), (decoder + 3, BOTTOM), ORANGE)
    axes.text(WIDE * PIXELS - 4, high - 16, "\u03b5 ~ N(0, I)", ha="right", va="top")
    told = {"fontsize": LETTERS + 2, "va": "center", "weight": "bold"}
    axes.text(across[1] + 6, (low + BOTTOM) / 2, "z=\u03bc+\u03c3\u00b7\u03b5", **told)

"""The film of a model as it forms while training goes on: of a 2-D latent map, or of samples.

`vaelib train` keeps a frame at each evaluation (see `derived.keep_frame`); `vaelib figures` makes
the GIF of them.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor

from vaelib import files
from vaelib.data import Images
from vaelib.figures import CLASSES, colours, latent_plane, look, prior_contours, samples
from vaelib.figures.style import SCREEN_DPI


def moments(steps: Tensor, n_frames: int) -> Tensor:
    """So many moments of a run, most of them early, when most moves. Shapes: (F,) -> (n,)."""
    first, last = steps[0].double(), steps[-1].double()
    # moments t evenly spaced in log(t + a): a tenth of the run goes by in half of the film
    early = (last - first) / 50
    spaced = torch.linspace(0, 1, n_frames, dtype=torch.float64)
    spaced = first + early * (((last - first) / early).log1p() * spaced).expm1()
    return spaced.clamp(first, last)


def between(z: Tensor, steps: Tensor, n_frames: int) -> tuple[Tensor, list[int]]:
    """The dots at so many moments, and the steps of those.

    Between two looks a dot goes straight from one place to the next.
    Shapes: z (F, N, 2), steps (F,) -> (n, N, 2) and n steps, n at most `n_frames`.
    """
    if len(steps) == 1:
        return z.float(), steps.tolist()
    at = moments(steps, n_frames)
    after = torch.searchsorted(steps.double(), at).clamp(1, len(steps) - 1)
    before = after - 1
    share = (at - steps[before]) / (steps[after] - steps[before])
    share = share.float()[:, None, None]
    places = (1 - share) * z[before].float() + share * z[after].float()
    return places, at.round().long().tolist()


@look()
def frames(
    z: Tensor, labels: Tensor, steps: list[int], title: str, standard_prior: bool = True
) -> list[Image.Image]:
    """One picture for each number of steps: means of q(z | x) by label, contours of N(0, I).

    Shapes: z (F, N, 2), labels (N,).
    """
    figure = latent_plane("", labels.tolist(), 4.0)
    (axes,) = figure.axes
    figure.set_dpi(SCREEN_DPI)
    dots = axes.scatter(*z[0].float().T, s=6, c=colours(labels.numpy()), linewidth=0)
    if standard_prior:
        prior_contours(axes)
    canvas, pictures = FigureCanvasAgg(figure), []
    for means, step in zip(z.float(), steps, strict=True):
        dots.set_offsets(means.numpy())
        figure.texts[0].set_text(f"{title}, step {step:,}")
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        pictures.append(picture.quantize(palette=inks(), dither=Image.Dither.NONE))
    return pictures


def inks() -> Image.Image:
    """The colours of every frame: the classes' own and on their way to white, and greys."""
    classes = colours(np.arange(len(CLASSES)))
    greys = np.linspace(0, 1, 9)[:, None].repeat(3, 1)
    shades = [classes + (1 - classes) * share for share in (0, 1 / 3, 2 / 3)]
    palette = Image.new("P", (1, 1))
    palette.putpalette((np.concatenate([*shades, greys]) * 255).round().astype(np.uint8).tobytes())
    return palette


def sample_frames(pictures: Tensor, steps: Tensor, title: str, n_frames: int) -> list[Image.Image]:
    """What the same draws from the prior had become, at some of the steps, most of them early.

    Shapes: pictures (F, n, C, H, W) uint8, steps (F,).
    """
    shown = range(1)
    if len(steps) > 1:
        nearest = (steps.double() - moments(steps, n_frames).unsqueeze(1)).abs().argmin(1)
        shown = nearest.unique().tolist()
    found = []
    for k in shown:
        figure = samples(pictures[k] / 255, f"{title}, step {steps[k]:,}", 8)
        figure.set_dpi(SCREEN_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        colours = picture if pictures.shape[2] == 3 else picture.convert("L")
        found.append(colours.quantize(64, dither=Image.Dither.NONE))
    return found


def save(folder: Path, images: Images, path: Path, n_frames: int = 80) -> Path:
    """Write the film kept in a checkpoint's folder as a GIF; `images` are those of its map."""
    kept = files.read_tensors(folder / files.FILM)[0]
    if "pictures" in kept:
        title = f"{folder.name}: the same draws"
        shown, each = sample_frames(kept["pictures"], kept["steps"], title, n_frames // 3), 200
    else:
        standard = files.read_mapping(folder / files.CONFIG).get("prior", "standard") == "standard"
        z, steps = between(kept["z"], kept["steps"], n_frames)
        title = f"{folder.name}: {images.title}"
        shown, each = frames(z, images.labels[: z.shape[1]], steps, title, standard), 80
    first, *rest = shown
    times = [each] * len(rest) + [2500]  # milliseconds
    with files.atomic(path) as temporary:
        first.save(temporary, "gif", save_all=True, append_images=rest, duration=times, loop=0)
    return path

"""The film of a 2-D model's latent map, as it forms while training goes on.

`vaelib train` keeps a frame at each look at the validation digits, in the run's folder;
`vaelib figures` makes the GIF of them.
"""

from pathlib import Path

import numpy as np
import seaborn as sns
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vaelib import checkpoints
from vaelib.data import Images
from vaelib.evaluation import elbo_terms
from vaelib.figures import Figure
from vaelib.models import read_safetensors


def keep_frame(model, images: Images, folder: Path, history) -> None:
    """Add to the run's film where the model puts the first 1,000 images by now."""
    path, step = folder / checkpoints.FILM, history.rows[-1]["step"]
    z = elbo_terms(model, images.subset(1000))[1].loc.half().unsqueeze(0)  # (1, N, 2)
    film = {"z": z, "steps": torch.tensor([step])}
    if path.exists():
        film = {key: torch.cat([old, film[key]]) for key, old in read_safetensors(path)[0].items()}
    with checkpoints.atomic(path) as temporary:
        save_file(film, temporary)


def frames(z: Tensor, labels: Tensor, steps: list[int], title: str) -> list[Image.Image]:
    """One picture for each number of steps: means of q(z | x) by label, the prior's contours.

    Shapes: z (F, N, 2), labels (N,).
    """
    figure = Figure((4.4, 4.4), layout="constrained", dpi=100)
    axes = figure.subplots()
    colours = np.array(sns.color_palette("colorblind", 10))[labels.numpy() % 10]
    dots = axes.scatter(*z[0].float().T, s=7, c=colours, linewidth=0)
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius in (1, 2, 3):
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), "k--", linewidth=0.7)
    axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xlabel="z[0]", ylabel="z[1]")
    canvas, pictures = FigureCanvasAgg(figure), []
    for means, step in zip(z.float(), steps, strict=True):
        dots.set_offsets(means.numpy())
        axes.set_title(f"{title}, step {step:,}", fontsize=10)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        pictures.append(picture.quantize(48, dither=Image.Dither.NONE))
    return pictures


def save(folder: Path, images: Images, path: Path, n_frames: int = 60) -> Path:
    """Write the film kept in a checkpoint's folder as a GIF; `images` are those it shows."""
    kept = read_safetensors(folder / checkpoints.FILM)[0]
    # most happens at the start: more of the frames there
    share = torch.linspace(0, 1, n_frames) ** 2
    chosen = (share * (len(kept["steps"]) - 1)).round().long().unique()
    labels, steps = images.labels[: kept["z"].shape[1]], kept["steps"][chosen].tolist()
    first, *rest = frames(kept["z"][chosen], labels, steps, f"{folder.name}: {images.title}")
    times = [90] * len(rest) + [2500]  # milliseconds
    with checkpoints.atomic(path) as temporary:
        first.save(temporary, "gif", save_all=True, append_images=rest, duration=times, loop=0)
    return path

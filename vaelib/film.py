"""The film of a 2-D model's latent map, as it forms while training goes on.

`vaelib train` keeps a frame at each evaluation on the validation images, in the run's folder;
`vaelib figures` makes the GIF of them.
"""

from pathlib import Path

import numpy as np
import seaborn as sns
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor

from vaelib import files
from vaelib.data import Images
from vaelib.evaluation import elbo_terms
from vaelib.figures import Figure, prior_contours


def keep_frame(model, images: Images, folder: Path, history) -> None:
    """Add to the run's film where the model puts the first 1,000 images by now."""
    path, step = folder / files.FILM, history.rows[-1]["step"]
    z = elbo_terms(model, images.subset(1000))[1].loc.half().unsqueeze(0)  # (1, N, 2)
    film = {"z": z, "steps": torch.tensor([step])}
    if path.exists():
        kept = files.read_tensors(path)[0]
        film = {key: torch.cat([kept[key], new]) for key, new in film.items()}
    files.write_tensors(path, film)


def frames(
    z: Tensor, labels: Tensor, steps: list[int], title: str, standard_prior: bool = True
) -> list[Image.Image]:
    """One picture for each number of steps: means of q(z | x) by label, contours of N(0, I).

    Shapes: z (F, N, 2), labels (N,).
    """
    figure = Figure((4.4, 4.4), layout="constrained", dpi=100)
    axes = figure.subplots()
    colours = np.array(sns.color_palette("colorblind", 10))[labels.numpy() % 10]
    dots = axes.scatter(*z[0].float().T, s=7, c=colours, linewidth=0)
    if standard_prior:
        prior_contours(axes, linewidth=0.7)
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
    kept = files.read_tensors(folder / files.FILM)[0]
    standard = files.read_mapping(folder / files.CONFIG).get("prior", "standard") == "standard"
    # most happens at the start: more of the frames there
    places = torch.linspace(0, 1, n_frames) ** 2
    chosen = (places * (len(kept["steps"]) - 1)).round().long().unique()
    labels, steps = images.labels[: kept["z"].shape[1]], kept["steps"][chosen].tolist()
    title = f"{folder.name}: {images.title}"
    first, *rest = frames(kept["z"][chosen], labels, steps, title, standard)
    times = [90] * len(rest) + [2500]  # milliseconds
    with files.atomic(path) as temporary:
        first.save(temporary, "gif", save_all=True, append_images=rest, duration=times, loop=0)
    return path

"""Sliders: a pure function from a latent vector to a picture, then the widget over it."""

import io

import ipywidgets
import torch
from IPython.display import display
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from vaelib import figures


@torch.inference_mode()
def picture(model, z: list[float], height: int = 224) -> bytes:
    """The decoded mean of one latent vector, enlarged to `height` pixels, as a PNG.

    Shapes: z (D,).
    """
    device = next(model.parameters()).device
    mean = model.decode(torch.tensor([z], device=device)).mean[0].clamp(0, 1)  # (C, H, W)
    image = to_pil_image(mean.cpu())
    width = round(height * image.width / image.height)
    stream = io.BytesIO()
    image.resize((width, height), Image.Resampling.NEAREST).save(stream, format="png")
    return stream.getvalue()


def latent_sliders(
    model, z: list[float] | None = None, dims: list[int] | None = None, limit: float = 3.0
) -> ipywidgets.HBox:
    """Sliders for some latent dimensions beside the decoded picture, which follows them.

    `z` is where to start (the prior's mean unless given), `dims` the dimensions to move (the
    first ten unless given), `limit` the reach of a slider in prior standard deviations.
    """
    z = list(z) if z is not None else [0.0] * model.latent_dim
    dims = list(dims) if dims is not None else list(range(min(10, model.latent_dim)))
    sliders = [
        ipywidgets.FloatSlider(
            min(max(z[d], -limit), limit), min=-limit, max=limit, step=0.05, description=f"z[{d}]"
        )
        for d in dims
    ]

    def moved(values: list[float]) -> list[float]:
        place = list(z)
        for dim, value in zip(dims, values, strict=True):
            place[dim] = value
        return place

    return _follow(model, sliders, moved)


def path_slider(model, z_start: list[float], z_end: list[float]) -> ipywidgets.HBox:
    """One slider along the straight line between two latents, beside the decoded picture."""
    slider = ipywidgets.FloatSlider(0.0, min=0.0, max=1.0, step=0.01, description="t")

    def on_the_way(values: list[float]) -> list[float]:
        (t,) = values
        return [(1 - t) * a + t * b for a, b in zip(z_start, z_end, strict=True)]

    return _follow(model, [slider], on_the_way)


def _follow(model, sliders: list[ipywidgets.FloatSlider], to_z) -> ipywidgets.HBox:
    """Sliders, and the picture of `to_z(their values)` redrawn whenever one moves."""
    image = ipywidgets.Image(format="png")

    def redraw(_=None):
        image.value = picture(model, to_z([slider.value for slider in sliders]))

    for slider in sliders:
        slider.observe(redraw, names="value")
    redraw()
    return ipywidgets.HBox([ipywidgets.VBox(sliders), image])


def live_loss_curve(title: str = ""):
    """A callback for `fit(on_eval=...)`: one figure in the notebook, redrawn at each look."""
    handle = display(display_id=True)
    return lambda history: handle.update(figures.loss_curve(history.rows, title))

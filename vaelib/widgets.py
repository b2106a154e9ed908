"""Sliders: a pure function from a latent vector to a picture, then the widgets over it."""

import base64
import io
from pathlib import Path

import ipywidgets
import torch
import traitlets
from IPython.display import display
from PIL import Image
from torch import Tensor

from vaelib import checkpoints, data, derived, figures, files, gallery, latents
from vaelib.data import DataError, Images, as_picture
from vaelib.evaluation import posteriors
from vaelib.files import CheckpointError

try:
    import anywidget
except ImportError:  # a hosted notebook may not have it
    anywidget = None

SOURCES = Path(__file__).parent / "explorer"


@torch.inference_mode()
def picture(model, z: list[float], height: int = 224) -> bytes:
    """The decoded mean of one latent vector, enlarged to `height` pixels, as a PNG.

    Shapes: z (D,).
    """
    bytes_ = pixels(model, torch.tensor(z, dtype=torch.float32))
    shape = torch.frombuffer(bytearray(bytes_), dtype=torch.uint8).reshape(model.image_shape)
    image = as_picture(shape)
    width = round(height * image.width / image.height)
    return _png(image.resize((width, height), Image.Resampling.NEAREST))


def _png(image: Image.Image, optimize: bool = False) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="png", optimize=optimize)
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


def closed(bundle, png: bytes, text: str) -> dict:
    """What a widget leaves in a notebook: itself, and a picture for where no kernel is."""
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    return (bundle or {}) | {"image/png": base64.b64encode(png).decode(), "text/plain": text}


def show(widget: ipywidgets.Widget, figure: figures.Figure, text: str) -> None:
    """Display a widget with a figure that stands for it where the notebook is closed."""
    display(closed(widget._repr_mimebundle_(), figure._repr_png_(), text), raw=True)


class Sliders(ipywidgets.HBox):
    """Sliders beside a picture."""

    def _repr_mimebundle_(self, **options):
        png = self.children[1].value
        return closed(super()._repr_mimebundle_(**options), png, "sliders, and what they decode to")


def still(model, explorer_data: dict) -> bytes:
    """The explorer at its first picture, as a PNG: the picture, and its map or its sliders."""
    limit, dims = explorer_data["limit"], explorer_data["dims"][:12]
    starts, draws = (explorer_data.get(key, []) for key in ("starts", "draws"))
    z = [*[start["z"] for start in starts], *draws, [0.0] * model.latent_dim][0]
    if "points" in explorer_data:
        points, labels = (torch.tensor(explorer_data["points"][key]) for key in ("z", "labels"))
        figure = figures.latent_map(points, labels, limit=limit + 0.5)
        figure.axes[0].plot(*z, "ow", markersize=12, markeredgecolor="k", markeredgewidth=3)
    else:
        figure = figures.Figure((4.4, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.hlines(range(len(dims)), -limit, limit, color="0.8", linewidth=3)
        at = [min(max(z[d["dim"]], -limit), limit) for d in dims]  # as a slider shows it
        axes.plot(at, range(len(dims)), "o", color=figures.BLUE)
        nats = ["" if d["nats"] is None else f", {d['nats']:.1f} nats" for d in dims]
        names = [f"z[{d['dim']}]" + f" ({d.get('follows')})" * ("follows" in d) for d in dims]
        axes.set_yticks(range(len(dims)), map(str.__add__, names, nats))
        axes.set_ylim(len(dims) - 0.5, -0.5)
    left, right = (Image.open(io.BytesIO(b)) for b in (picture(model, z), figure._repr_png_()))
    page = Image.new("RGB", (left.width + 16 + right.width, right.height), "white")
    page.paste(left, (0, (right.height - left.height) // 2))
    page.paste(right, (left.width + 16, 0))
    return _png(page, optimize=True)


def _follow(model, sliders: list[ipywidgets.FloatSlider], to_z) -> ipywidgets.HBox:
    """Sliders, and the picture of `to_z(their values)` redrawn whenever one moves."""
    image, trouble = ipywidgets.Image(format="png"), ipywidgets.Label()

    def redraw(_=None):
        try:
            image.value = picture(model, to_z([slider.value for slider in sliders]))
            trouble.value = ""
        except Exception as error:  # JupyterLab would swallow it
            trouble.value = f"{type(error).__name__}: {error}"

    for slider in sliders:
        slider.observe(redraw, names="value")
    redraw()
    return Sliders([ipywidgets.VBox(sliders), image, trouble])


def live_loss_curve(title: str = ""):
    """A callback for `fit(on_eval=...)`: one figure in the notebook, redrawn each time."""
    handle = display(display_id=True)
    return lambda history: handle.update(figures.loss_curve(history.rows, title, history.plans))


@torch.inference_mode()
def pixels(model, z: Tensor) -> bytes:
    """The decoded mean of one latent vector, one byte a pixel, plane by plane.

    Shapes: z (D,) -> C * H * W bytes. Raises ValueError where the decoder's answer is no number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one gains nothing, and keeps a core from the browser
    try:
        mean = model.decode(z.to(next(model.parameters()).device).unsqueeze(0)).mean[0]  # (C, H, W)
    finally:
        torch.set_num_threads(threads)
    if not torch.isfinite(mean).all():
        raise ValueError("the decoder's answer is not finite: are the model's weights?")
    return mean.clamp(0, 1).mul(255).round().byte().cpu().contiguous().numpy().tobytes()


def data_url(image: Image.Image) -> str:
    """A picture as text that a page can show."""
    return "data:image/png;base64," + base64.b64encode(_png(image, optimize=True)).decode()


@torch.inference_mode()
def explorer_data(
    model,
    name: str,
    images: Images | None = None,
    kl_per_dim: list[float] | None = None,
    n_starts: int = 10,
    directions: dict[str, Tensor] | None = None,
    draws: Tensor | None = None,
    limit: float | None = None,
) -> dict:
    """What the explorer has to know of a model, as JSON; see explorer/explorer.js.

    `images` are there to start from, to order the dimensions where no KL is given, to say which
    factor each follows, and, with two latent dimensions, to be the map's dots;
    `directions` (D,) by name become sliders; `draws` (N, D) are offered beside the prior's;
    `limit` is how far a slider goes, three standard deviations of the prior unless given.
    """
    n, limit = model.latent_dim, gallery.reach(model) if limit is None else limit
    order, nats = gallery.order_dims(model, images, kl_per_dim)
    follows = derived.followed(model, images)
    found = {
        "name": name,
        "shape": list(model.image_shape),
        "limit": limit,
        "dims": [{"dim": d, "nats": nats and nats[d]} | follows.get(d, {}) for d in order],
    }

    if not gallery.is_standard(model):
        found["prior"] = model.prior_name

    def rounded(z: Tensor) -> list:
        return [[round(v, 3) for v in row] for row in z.tolist()]

    if images is not None and n == 2:
        some = images.subset(2000)
        labels = torch.zeros(len(some)) if some.labels is None else some.labels
        z = posteriors(model, some).loc
        colours = {"colours": list(figures.CLASSES)}
        found["points"] = {"z": rounded(z), "labels": labels.int().tolist()} | colours
    if n == 2:
        side = 21
        grid = gallery.decode(model, latents.manifold(side, "linear", limit))
        page = Image.fromarray((figures.tile(grid, side, gap=0) * 255).astype("uint8"))
        found["manifold"] = data_url(page.convert("L") if model.image_shape[0] == 1 else page)
    if images is not None and n_starts:
        x, means = gallery.encode(model, images.subset(n_starts), torch.Generator().manual_seed(0))
        views = [data_url(as_picture(view)) for view in (255 * x).byte()]
        found["starts"] = [
            {"label": f"{images.things.removesuffix('s')} {i + 1}", "z": z, "picture": view}
            for i, (z, view) in enumerate(zip(rounded(means), views, strict=True))
        ]
    if directions:
        found["directions"] = [
            {"name": key.replace("_", " "), "v": v}
            for key, v in zip(directions, rounded(torch.stack([*directions.values()])), strict=True)
        ]
    if draws is not None:
        found["draws"] = rounded(draws)
    return found


def of_checkpoint(name: str) -> tuple[torch.nn.Module, dict]:
    """A checkpoint's model, and its `explorer_data` with images and what is kept beside weights.

    Where its data is not at hand, that is said, and the explorer has no images to start from;
    nor has it where they may not be passed on, as a page would do.
    """
    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    terms, images = {}, None
    try:
        source = data.source(derived.data_of(folder))
        terms = {"terms": source.terms} if source.terms else {}
        if source.shareable:
            images = derived.images_for(model, folder, fallback=True)
    except (DataError, CheckpointError) as error:
        print(f"{error} Going on without images to start from.")
    fitted = checkpoints.kept_tensors(folder, files.LATENTS)
    draws = latents.draw(latents.mixture(**fitted[0]), 100) if fitted else None
    directions = None
    if checkpoints.kept_tensors(folder, files.ATTRIBUTES):
        directions = derived.shown_directions(derived.attributes(model, folder))
    nats = checkpoints.known_kl(folder)
    found = explorer_data(model, folder.name, images, nats, 12, directions, draws)
    return model, terms | found


if anywidget is None:

    def LatentExplorer(model, explorer_data: dict) -> ipywidgets.HBox:
        """Plain sliders in place of the explorer, where anywidget is not installed."""
        dims = [d["dim"] for d in explorer_data["dims"][:10]]
        return latent_sliders(model, dims=dims, limit=explorer_data["limit"])

else:

    class LatentExplorer(anywidget.AnyWidget):
        """The explorer in a notebook: drag, and the kernel decodes as fast as it can.

        Takes a model and its `explorer_data`. Up to three requests are on their way at once
        (explorer/widget.js), so that the picture does not wait for acknowledgements.
        """

        _esm = "\n".join(
            (SOURCES / f"{part}.js").read_text("utf-8") for part in ("explorer", "widget")
        )
        _css = (SOURCES / "explorer.css").read_text("utf-8")
        explorer_data = traitlets.Dict().tag(sync=True)

        def __init__(self, model, explorer_data: dict):
            super().__init__(explorer_data=explorer_data)
            self._model = model
            self.on_msg(self._answer)

        def _repr_mimebundle_(self, **options):
            text = f"explorer of {self.explorer_data['name']}, at its first picture"
            bundle = super()._repr_mimebundle_(**options)
            return closed(bundle, still(self._model, self.explorer_data), text)

        def _answer(self, _, request: dict, __) -> None:
            to = {key: request[key] for key in ("number", "view")}
            try:
                if "z" not in request:  # a draw from a prior that the browser does not have
                    return self.send(to | {"z": self._model.prior.sample(1)[0].tolist()})
                picture = pixels(self._model, torch.tensor(request["z"], dtype=torch.float32))
                self.send(to, buffers=[picture])
            except Exception as error:  # whatever it is, it is shown beside the sliders
                self.send(to | {"error": f"{type(error).__name__}: {error}"})

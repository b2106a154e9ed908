"""From a model and images to the pictures of `vaelib sample` and `vaelib figures`.

The model is shown what it was trained on: where its likelihood is Bernoulli, pictures of
real digits are binarised, and so are the digits that are encoded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from vaelib import checkpoints, data, figures, film, latents
from vaelib.data import Images
from vaelib.evaluation import elbo_terms, seen_by
from vaelib.figures import Figure

ASSETS = checkpoints.PUBLISHED.parent / "readme-assets"
FOLDERS = {"mnist": "MNIST", "celeba": "CelebA"}  # readme-assets' folder of each data set
SHOWN = ("Smiling", "Male", "Eyeglasses", "Blond_Hair", "Young", "Bangs")  # of 40 attributes
MODES = Literal["sample", "interpolate", "traverse", "reconstruct", "visualize_latent", "manifold"]


def images_for(model, folder: Path, split: str = "test", fallback=False) -> Images:
    """A split of what a checkpoint's recipe names, at the model's size."""
    source = checkpoints.read_recipe(folder)["data"]
    if (source, split) == ("mnist-5k", "test"):
        split = "val"  # it has no test
    return data.load(source, split, fallback=fallback, image_size=model.image_shape[-1])


def drawn(model, images: Images, seed: int = 0) -> Tensor:
    """One draw from q(z | x) for each image. Shapes: N images -> (N, D)."""
    q_z = elbo_terms(model, images, seed)[1]
    noise = torch.randn(q_z.loc.shape, generator=torch.Generator().manual_seed(seed))
    return q_z.loc + q_z.scale * noise


def aggregate(model, folder: Path) -> MixtureSameFamily:
    """A density fitted to draws from q(z | x) over the training images; kept beside the weights.

    A Gaussian mixture, of the first 10,000 images at most; the number of its components is the
    one best on the validation images.
    """
    if found := checkpoints.kept_tensors(folder, checkpoints.LATENTS):
        return latents.mixture(**found[0])
    splits = (images_for(model, folder, split).subset(10_000) for split in ("train", "val"))
    train, val = (drawn(model, images) for images in splits)
    fits = {n: latents.fit_mixture(train, n) for n in (1, 2, 5, 10, 20) if 20 * n <= len(train)}
    scores = {n: fit.log_prob(val).mean().item() for n, fit in fits.items()}
    best = max(scores, key=scores.get)
    parts = fits[best].component_distribution
    tensors = {"weights": fits[best].mixture_distribution.probs, "means": parts.loc}
    about = {f"val log-density, {n} components": f"{s:.3f} nats" for n, s in scores.items()}
    tensors["scale_tril"] = parts.scale_tril
    checkpoints.keep_tensors(folder, checkpoints.LATENTS, tensors, about)
    return fits[best]


def attributes(model, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Of each attribute its two directions, and how well they tell held-out images; kept.

    "directions" (2, D), `latents.attribute_directions` of the training images, and "auc" (2,),
    the areas under the ROC curve of the test images' means of q(z | x) along either. Empty
    where the data has no attributes.
    """
    found = checkpoints.kept_tensors(folder, checkpoints.ATTRIBUTES)
    if not found:
        splits = (images_for(model, folder, split).subset(10_000) for split in ("train", "test"))
        train, test = splits
        z, z_test = (elbo_terms(model, images)[1].loc for images in (train, test))
        tensors = {}
        for name, has in (train.attributes or {}).items():
            if any(min(h.sum(), (~h).sum()) < 5 for h in (has, test.attributes[name])):
                continue  # too few of them, or of the others, to say
            ways = torch.stack(latents.attribute_directions(z, has))  # (2, D)
            on_test = [latents.auc(z_test @ way, test.attributes[name]) for way in ways]
            tensors |= {f"{name}.directions": ways, f"{name}.auc": torch.tensor(on_test)}
        checkpoints.keep_tensors(folder, checkpoints.ATTRIBUTES, tensors, {})
        found = tensors, {}
    table: dict[str, dict[str, Tensor]] = {}
    for key in sorted(found[0]):
        name, what = key.rsplit(".", 1)
        table.setdefault(name, {})[what] = found[0][key]
    return table


@torch.inference_mode()
def decode(model, z: Tensor) -> Tensor:
    """The mean of p(x | z), which is the picture. Shapes: (..., D) -> (..., C, H, W)."""
    return model.decode(z).mean


def draws(model, n: int, seed: int, density: MixtureSameFamily | None = None) -> tuple[Tensor, str]:
    """Latents to start from, and what to call one: of the prior, or of a density fitted to latents.

    Shapes: -> (n, D).
    """
    if density is not None:
        return latents.draw(density, n, seed), "draw from the fitted density"
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, model.latent_dim, generator=generator), "prior draw"


@torch.inference_mode()
def encode_some(model, images: Images, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n` images drawn by the seed, as the model sees them, and the means of their q(z | x).

    Shapes: -> (n, C, H, W), (n, D).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:n]
    x = seen_by(model, images.images[chosen], generator)
    return x, model.encode(x).loc


def sample(
    model, name: str, n_samples: int = 64, seed: int = 0, density: MixtureSameFamily | None = None
) -> Figure:
    """Decoded draws from the prior, or from a density fitted to latents."""
    z, _ = draws(model, n_samples, seed, density)
    source = "N(0, I)" if density is None else "density fitted to q(z | x)"
    return figures.samples(decode(model, z), f"{name}: {n_samples} samples, z ~ {source}")


def interpolate(
    model, name: str, images: Images | None, n_interpolate: int = 8, n_samples: int = 6,
    path: Literal["linear", "spherical"] = "linear", seed: int = 0,
    density: MixtureSameFamily | None = None,
) -> Figure:  # fmt: skip
    """Paths between pairs of real images, or of `draws` when `images` is None."""
    if images is None:
        x, (z, ends) = None, draws(model, 2 * n_samples, seed, density)
    else:
        if len(images) < 2:
            raise ValueError(f"{images.title} has {len(images)} images; interpolation needs two")
        x, z = encode_some(model, images, min(2 * n_samples, len(images) // 2 * 2), seed)
    walk = getattr(latents, path)
    # real ends are shown themselves, so the path between them leaves out nothing
    paths = torch.stack([walk(z[i], z[i + 1], n_interpolate + 2) for i in range(0, len(z), 2)])
    pictures = decode(model, paths)  # (n_samples, n_interpolate + 2, C, H, W)
    if x is None:
        title = f"{name}: {path} interpolation, each end a {ends}"
        return figures.image_grid(pictures.flatten(0, 1), pictures.shape[1], title)
    title = f"{name}: {path} interpolation between {images.things} of {images.title}"
    return figures.interpolations(x[::2], pictures, x[1::2], title)


def traverse(
    model, name: str, images: Images | None, kl_per_dim: list[float] | None,
    n_traverse: int = 11, traverse_range: float = 3.0, traverse_dim: int | None = None,
    n_samples: int = 8, seed: int = 0, density: MixtureSameFamily | None = None,
) -> Figure:  # fmt: skip
    """One latent dimension moved, the others kept.

    With `traverse_dim`, that dimension for `n_samples` images; without, the `n_samples`
    dimensions that carry most nats for one image. `draws` where there are no images.
    """
    values = torch.linspace(-traverse_range, traverse_range, n_traverse)
    n_bases = n_samples if traverse_dim is not None else 1
    if images is None:
        bases, start = draws(model, n_bases, seed, density)
    else:
        bases, start = encode_some(model, images, n_bases, seed)[1], f"image of {images.title}"
    if traverse_dim is not None:
        paths = torch.stack([latents.traversal(z, traverse_dim, values) for z in bases])
        title, labels = f"{name}: z[{traverse_dim}] traversed, one {start} a row", None
    else:
        order = range(model.latent_dim)
        if kl_per_dim:
            order = latents.order_by_kl(torch.tensor([kl_per_dim])).tolist()
        dims = list(order)[:n_samples]
        paths = torch.stack([latents.traversal(bases[0], dim, values) for dim in dims])
        labels = [f"z[{d}]" + (f"  {kl_per_dim[d]:.1f} nats" if kl_per_dim else "") for d in dims]
        title = f"{name}: one dimension at a time, from one {start}"
    return figures.traversals(decode(model, paths), values, labels, title)


@torch.inference_mode()
def reconstruct(model, name: str, images: Images, n_samples: int = 24, seed: int = 0) -> Figure:
    """Images, each above the picture decoded from the mean of its q(z | x)."""
    x, z = encode_some(model, images, n_samples, seed)
    title = f"{name}: {images.title} and reconstructions"
    return figures.reconstructions(x, decode(model, z), title)


def visualize_latent(model, name: str, images: Images) -> Figure:
    """Where a 2-D model puts every image of a split, by label."""
    if images.labels is None:
        raise ValueError(f"{images.name} has no labels to colour a map by; try --mode manifold")
    title = f"{name}: means of q(z | x), {len(images):,} {images.things} of {images.title}"
    return figures.latent_map(elbo_terms(model, images)[1].loc, images.labels, title)


def manifold(
    model, name: str, n: int = 20, spacing: Literal["inverse_cdf", "linear"] = "inverse_cdf"
) -> Figure:
    """The whole 2-D latent space, decoded on a grid."""
    z = latents.manifold(n, spacing)
    title = f"{name}: decoded grid, {spacing.replace('_', ' ')} spacing"
    return figures.manifold(decode(model, z), z[:n, 0], title)


def latent_histogram(model, name: str, images: Images, seed: int = 0) -> Figure:
    """Every latent dimension of one draw from q(z | x) per image, against the prior."""
    kl_per_dim = elbo_terms(model, images, seed)[0].kl_per_dim.mean(0)
    title = f"{name}: draws from q(z | x) over {images.title} (blue), N(0, 1) (orange)"
    return figures.latent_histogram(drawn(model, images, seed), kl_per_dim, title)


def attribute_steps(
    model, name: str, images: Images, directions: dict[str, Tensor], strengths: Tensor, index: int
) -> Figure:
    """One image's mean of q(z | x), moved along directions. `directions`: (D,) by name."""
    x = seen_by(model, images.images[index : index + 1], torch.Generator().manual_seed(0))
    with torch.inference_mode():
        z = model.encode(x).loc[0]  # (D,)
    paths = torch.stack([z + strengths.unsqueeze(1) * way for way in directions.values()])
    labels = [key.replace("_", " ").lower() for key in directions]
    title = f"{name}: one of {images.title}, along attributes"
    return figures.traversals(decode(model, paths), strengths, labels, title)


def published_figures(model, name: str, images: Images) -> dict[str, Figure]:
    """Every picture of a published checkpoint, by the kind that ends its file name."""
    folder = checkpoints.find(name)
    kl_per_dim = checkpoints.known_kl(folder)
    start = images
    if images.labels is not None:
        start = images[images.labels == 8]  # in loops a change is seen best
    pictures = {
        "samples": sample(model, name),
        "reconstructions": reconstruct(model, name, images),
        "interpolations": interpolate(model, name, images),
        "traversals": traverse(model, name, start, kl_per_dim),
        "latent-histogram": latent_histogram(model, name, images),
        "loss-curve": figures.loss_curve(
            checkpoints.read_json(name, "history.json"), f"{name}: training"
        ),
        "architecture": figures.architecture(model, f"{name}: stages and their output shapes"),
    }
    if images.attributes:
        density, table = aggregate(model, folder), attributes(model, folder)
        pictures["samples-aggregate"] = sample(model, name, density=density)
        ways = {key: table[key]["directions"][0] for key in SHOWN if key in table}
        strengths = torch.linspace(-1.5, 1.5, 7)
        pictures["attributes"] = attribute_steps(model, name, images, ways, strengths, 3)
    if model.latent_dim == 2:
        pictures["latent-map"] = visualize_latent(model, name, images)
        pictures["manifold"] = manifold(model, name)
    return pictures


def draw_published(name: str) -> Iterator[Path]:
    """Draw every picture of a published checkpoint into readme-assets/."""
    model, folder = checkpoints.load_checkpoint(name), checkpoints.find(name)
    images = images_for(model, folder)
    target = ASSETS / FOLDERS[images.name]
    for kind, figure in published_figures(model, name, images).items():
        yield save(figure, target / f"{name}-{kind}.png")
    if (folder / checkpoints.FILM).exists():
        yield film.save(folder, images_for(model, folder, "val"), target / f"{name}-film.gif")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure whole, without a date or version in it: same picture, same bytes."""
    with checkpoints.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    return path

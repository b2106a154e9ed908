"""From a model and images to pictures, one function for each kind.

The model is shown what it was trained on: where its likelihood is Bernoulli, the real images
in a picture are binarised, and so are those that are encoded.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, Normal
from torchvision.transforms.functional import to_pil_image

from vaelib import figures, files, latents
from vaelib.data import Images, seen_by
from vaelib.derived import drawn_from
from vaelib.evaluation import elbo_terms
from vaelib.figures import Figure
from vaelib.objectives import Terms


@torch.inference_mode()
def decode(model, z: Tensor) -> Tensor:
    """The mean of p(x | z), which is the picture. Shapes: (..., D) -> (..., C, H, W)."""
    return model.decode(z.to(next(model.parameters()).device)).mean.cpu()


def is_standard(model) -> bool:
    """Whether the model's prior is N(0, I)."""
    return model.prior_name == "standard"


@torch.inference_mode()
def draws(model, n: int, seed: int, density: MixtureSameFamily | None = None) -> tuple[Tensor, str]:
    """Latents to start from, and what to call one: of the prior, or of a density fitted to latents.

    Shapes: -> (n, D).
    """
    if density is not None:
        return latents.draw(density, n, seed), "draw from the fitted density"
    return model.prior.sample(n, torch.Generator().manual_seed(seed)), "prior draw"


@torch.inference_mode()
def encode(model, images: Images, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images as the model sees them, and the means of their q(z | x).

    Shapes: N images -> (N, C, H, W), (N, D).
    """
    x = seen_by(model, images.images.cpu(), generator)
    return x, model.encode(x.to(next(model.parameters()).device)).loc.cpu()


def encode_some(model, images: Images, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n` images drawn by the seed, as `encode` gives them."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:n]
    return encode(model, images[chosen], generator)


def order_dims(
    model, images: Images | None, kl_per_dim: list[float] | None = None
) -> tuple[list[int], list[float] | None]:
    """Latent dimensions, those that carry most first, and the nats of each where they are known.

    By the KL that is given, else by that of the first 1,000 images; where the prior has none of
    a dimension, by how much the posterior mean varies. As numbered where there are no images.
    """
    if kl_per_dim is not None:
        return latents.order_by_kl(torch.tensor([kl_per_dim])).tolist(), kl_per_dim
    if images is None:
        return list(range(model.latent_dim)), None
    return _order(*elbo_terms(model, images.subset(1000)))


def _order(terms: Terms, q_z: Normal) -> tuple[list[int], list[float] | None]:
    if terms.kl_per_dim is None:
        return latents.order_by_variance(q_z.loc).tolist(), None
    return latents.order_by_kl(terms.kl_per_dim).tolist(), terms.kl_per_dim.mean(0).tolist()


def sample(
    model, name: str, n_samples: int = 64, seed: int = 0,
    density: MixtureSameFamily | None = None, n_columns: int | None = None,
) -> Figure:  # fmt: skip
    """Decoded draws from the prior, or from a density fitted to latents."""
    z, _ = draws(model, n_samples, seed, density)
    source = "N(0, I)" if is_standard(model) else f"the {model.prior_name} prior"
    if density is not None:
        source = "density fitted to q(z | x)"
    title = f"{name}: {n_samples} samples, z ~ {source}"
    return figures.samples(decode(model, z), title, n_columns)


def save_each(
    model, folder: Path, batch_size: int, n_samples: int = 64, seed: int = 0,
    density: MixtureSameFamily | None = None,
) -> Path:  # fmt: skip
    """Write each of `sample`'s pictures as a PNG of its own: 00001.png, ..."""
    z, _ = draws(model, n_samples, seed, density)
    number = 0
    for some in z.split(batch_size):
        for picture in decode(model, some):
            number += 1
            with files.atomic(folder / f"{number:05d}.png") as temporary:
                to_pil_image(picture.clamp(0, 1)).save(temporary, format="png")
    return folder


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
        order, kl_per_dim = order_dims(model, images, kl_per_dim)
        dims = order[:n_samples]
        paths = torch.stack([latents.traversal(bases[0], dim, values) for dim in dims])
        labels = [f"z[{d}]" + (f"  {kl_per_dim[d]:.1f} nats" if kl_per_dim else "") for d in dims]
        title = f"{name}: one dimension at a time, from one {start}"
    return figures.traversals(decode(model, paths), values, labels, title)


@torch.inference_mode()
def reconstruct(
    model, name: str, images: Images, n_samples: int = 24, seed: int = 0, n_columns: int = 12
) -> Figure:
    """Images, each above the picture decoded from the mean of its q(z | x)."""
    x, z = encode_some(model, images, n_samples, seed)
    title = f"{name}: {images.title} and reconstructions"
    return figures.reconstructions(x, decode(model, z), title, n_columns)


def visualize_latent(model, name: str, images: Images) -> Figure:
    """Where a 2-D model puts every image of a split, by label."""
    if images.labels is None:
        raise ValueError(f"{images.name} has no labels to colour a map by; try --mode manifold")
    title = f"{name}: means of q(z | x), {len(images):,} {images.things} of {images.title}"
    z, standard = elbo_terms(model, images)[1].loc, is_standard(model)
    return figures.latent_map(z, images.labels, title, 4.5, images.things, standard)


def manifold(
    model, name: str, n: int = 20, spacing: Literal["inverse_cdf", "linear"] = "inverse_cdf"
) -> Figure:
    """The whole 2-D latent space, decoded on a grid."""
    if spacing == "inverse_cdf" and not is_standard(model):
        raise ValueError(
            f"spacing inverse_cdf follows N(0, I), and {name} has the {model.prior_name} prior; "
            "take spacing linear"
        )
    z = latents.manifold(n, spacing)
    title = f"{name}: decoded grid, {spacing.replace('_', ' ')} spacing"
    return figures.manifold(decode(model, z), z[:n, 0], title)


def latent_histogram(model, name: str, images: Images, seed: int = 0) -> Figure:
    """Every latent dimension of one draw from q(z | x) per image, against the prior."""
    terms, q_z = elbo_terms(model, images, seed)
    order, kl_per_dim = _order(terms, q_z)
    prior, prior_draws = "N(0, 1)", None
    if not is_standard(model):
        prior, prior_draws = f"the {model.prior_name} prior", draws(model, 10_000, seed)[0]
    title = f"{name}: draws from q(z | x) over {images.title} (blue), {prior} (orange)"
    return figures.latent_histogram(drawn_from(q_z, seed), kl_per_dim, title, order, prior_draws)


def attribute_steps(
    model, name: str, images: Images, directions: dict[str, Tensor], strengths: Tensor, index: int
) -> Figure:
    """One image's mean of q(z | x), moved along directions. `directions`: (D,) by name."""
    (z,) = encode(model, images[index : index + 1], torch.Generator().manual_seed(0))[1]  # (D,)
    paths = torch.stack([z + strengths.unsqueeze(1) * way for way in directions.values()])
    labels = [key.replace("_", " ").lower() for key in directions]
    title = f"{name}: one of {images.title}, along attributes"
    return figures.traversals(decode(model, paths), strengths, labels, title)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure whole, without a date or version in it: same picture, same bytes."""
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    return path

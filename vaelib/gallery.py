"""From a model and images to pictures, one function for each kind.

The model is shown what it was trained on: where its likelihood is Bernoulli, the real images
in a picture are binarised, and so are those that are encoded.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, Normal

from vaelib import figures, files, latents
from vaelib.data import Images, as_picture, seen_by
from vaelib.derived import drawn_from
from vaelib.evaluation import elbo_terms
from vaelib.figures import Figure
from vaelib.objectives import Terms
from vaelib.priors import spread

SPACED = {"inverse_cdf": "steps of equal prior probability", "linear": "evenly spaced"}


@torch.inference_mode()
def decode(model, z: Tensor) -> Tensor:
    """The mean of p(x | z), which is the picture. Shapes: (..., D) -> (..., C, H, W)."""
    return model.decode(z.to(next(model.parameters()).device)).mean.cpu()


def is_standard(model) -> bool:
    """Whether the model's prior is N(0, I)."""
    return model.prior_name == "standard"


def reach(model, limit: float = 3.0) -> float:
    """How far from 0 a map or a slider must go to be `limit` deviations out in every dimension."""
    mean, std = spread(model.prior)
    return round((mean.abs() + limit * std).max().item(), 1)


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


def terms_of(model, images: Images, seed: int = 0) -> tuple[Terms, Normal]:
    """`elbo_terms` of images to draw; ValueError in one line where weights are no numbers."""
    figures.finite("latents", encode(model, images.subset(1), torch.Generator())[1])
    return elbo_terms(model, images, seed)


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
    terms, q_z = terms_of(model, images.subset(1000))
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
    title = f"{name}: {n_samples} sample{'s' * (n_samples > 1)}, z ~ {source}"
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
                as_picture(picture).save(temporary, format="png")
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
            raise ValueError(
                f"{images.title} has {len(images)} images, and interpolation needs two; start from "
                "draws, or from other images"
            )
        x, z = encode_some(model, images, min(2 * n_samples, len(images) // 2 * 2), seed)
    walk = getattr(latents, path)
    # real ends are shown themselves, so the path between them leaves out nothing
    paths = torch.stack([walk(z[i], z[i + 1], n_interpolate + 2) for i in range(0, len(z), 2)])
    pictures = decode(model, paths)  # (n_samples, n_interpolate + 2, C, H, W)
    if x is None:
        title = f"{name}: {path} interpolation, each end a {ends}"
        return figures.interpolations(None, pictures, None, title)
    title = f"{name}: {path} interpolation, {images.things} of {images.title}"
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
        bases = encode_some(model, images, n_bases, seed)[1]
        start = f"{images.things.removesuffix('s')} of {images.title}"
    mean, std = spread(model.prior)
    places = mean[:, None] + std[:, None] * values  # (D, n_traverse)
    unit = "" if is_standard(model) else ", in deviations of the prior"
    if traverse_dim is not None:
        at = places[traverse_dim]
        paths = torch.stack([latents.traversal(z, traverse_dim, at) for z in bases])
        title, labels = f"{name}: z[{traverse_dim}] moved, from one {start} in each row", None
    else:
        order, kl_per_dim = order_dims(model, images, kl_per_dim)
        dims = order[:n_samples]
        paths = torch.stack([latents.traversal(bases[0], dim, places[dim]) for dim in dims])
        labels = [f"z[{d}]" + (f"\n{kl_per_dim[d]:.1f} nats" if kl_per_dim else "") for d in dims]
        title = f"{name}: a dimension a row, from one {start}"
        bases = bases.expand(len(dims), -1)
    pictures, originals = decode(model, paths), decode(model, bases)
    return figures.traversals(pictures, values, labels, title + unit, originals)


@torch.inference_mode()
def reconstruct(
    model, name: str, images: Images, n_samples: int = 24, seed: int = 0, n_columns: int = 12
) -> Figure:
    """Images, each above the picture decoded from the mean of its q(z | x)."""
    x, z = encode_some(model, images, n_samples, seed)
    title = f"{name}: {images.title}, each above its reconstruction"
    return figures.reconstructions(x, decode(model, z), title, n_columns)


def visualize_latent(model, name: str, images: Images) -> Figure:
    """Where a 2-D model puts every image of a split, by label."""
    if images.labels is None:
        raise ValueError(f"{images.name} has no labels to colour a map by; try --mode manifold")
    title = f"{name}: {len(images):,} {images.things} of {images.title}, means of q(z | x)"
    z, standard = terms_of(model, images)[1].loc, is_standard(model)
    limit = reach(model, 4.5)
    return figures.latent_map(z, images.labels, title, limit, images.things, standard)


def manifold(
    model, name: str, n: int = 20, spacing: Literal["inverse_cdf", "linear"] = "inverse_cdf"
) -> Figure:
    """The whole 2-D latent space, decoded on a grid."""
    if spacing == "inverse_cdf" and not is_standard(model):
        raise ValueError(
            f"spacing inverse_cdf follows N(0, I), and {name} has the {model.prior_name} prior; "
            "take spacing linear"
        )
    z = latents.manifold(n, spacing, reach(model))
    title = f"{name}: decoded grid, " + SPACED[spacing]
    return figures.manifold(decode(model, z), z[:n, 0], title)


def latent_histogram(model, name: str, images: Images, seed: int = 0) -> Figure:
    """Every latent dimension of one draw from q(z | x) per image, against the prior."""
    z, parts, prior_draws = against_prior(model, images, seed)
    title = f"{name}: q(z | x) over {images.title}, and {prior_of(model)}"
    return figures.latent_histogram(z, None, title, prior_draws, parts)


def latent_variance(model, name: str, images: Images, seed: int = 0) -> Figure:
    """The variance of each latent dimension over images, in its two parts, and the prior's."""
    _, parts, prior_draws = against_prior(model, images, seed)
    title = f"{name}: variance of z over {images.title}, and of {prior_of(model)}"
    variance = None if prior_draws is None else prior_draws.var(0)
    return figures.latent_variance(*parts, title, variance)


def prior_of(model) -> str:
    """What to call the prior of one latent dimension."""
    return "N(0, 1)" if is_standard(model) else f"the {model.prior_name} prior"


def against_prior(
    model, images: Images, seed: int
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
    """One draw from q(z | x) per image, the two parts of its variance, draws from other priors.

    Shapes: N images -> (N, D), the variance of the means (D,) and the mean of the variances (D,),
    (10000, D) where the prior is not N(0, I).
    """
    q_z = terms_of(model, images, seed)[1]
    prior_draws = None if is_standard(model) else draws(model, 10_000, seed)[0]
    parts = q_z.loc.var(0, unbiased=False), q_z.variance.mean(0)
    return drawn_from(q_z, seed), parts, prior_draws


def attribute_steps(
    model, name: str, images: Images, directions: dict[str, Tensor], strengths: Tensor, index: int
) -> Figure:
    """One image's mean of q(z | x), moved along directions. `directions`: (D,) by name."""
    (z,) = encode(model, images[index : index + 1], torch.Generator().manual_seed(0))[1]  # (D,)
    paths = torch.stack([z + strengths.unsqueeze(1) * way for way in directions.values()])
    labels = [key.replace("_", " ").lower() for key in directions]
    title = f"{name}: {images.things.removesuffix('s')} of {images.title}, along attributes"
    still = int(strengths.abs().argmin())  # where the image is as it was encoded
    return figures.traversals(decode(model, paths), strengths, labels, title, mark=still)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure whole, without a date or version in it: same picture, same bytes."""
    with files.atomic(path) as temporary:
        temporary.write_bytes(figure.png())
    return path

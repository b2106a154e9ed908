"""Numbers a model reaches: the ELBO and its terms, the importance-weighted bound.

All noise comes from seeds and is drawn per data set or per image, never per batch, so
nothing depends on the batch size. It is drawn on the CPU: the same on every device.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal

from vaelib import files
from vaelib.data import Images, seen_by
from vaelib.hardware import compiled, environment, use_bf16
from vaelib.likelihoods import bits_per_dimension, log_likelihood
from vaelib.objectives import Terms, elbo, log_weights
from vaelib.posteriors import draw
from vaelib.progress import progress

ACTIVE_THRESHOLD = 0.01  # Var_x(E_q[z]) above which a dimension is active (Burda et al. 2016)


@torch.inference_mode()
def elbo_terms(
    model, images: Images, seed: int = 0, batch: int = 100, objective=elbo, n_importance: int = 1
) -> tuple[Terms, Normal]:
    """ELBO terms of every image (or another objective's) from K draws of z, and its q(z | x).

    Pixels become floats batch by batch.
    Shapes: N images -> Terms of (N,) and (N, D), Normal (N, D); all on the CPU, in nats.
    """
    device, n_batches = next(model.parameters()).device, math.ceil(len(images) / batch)
    eps_all = _latent_noise(model, images, seed, n_importance, batch)
    seen = _seen(model, images, torch.Generator().manual_seed(seed), batch)
    found: Terms | None = None
    for number, (x, eps) in enumerate(zip(seen, eps_all.split(batch, dim=1), strict=True)):
        terms = objective(model, x.to(device), eps.to(device))
        found = found or _each(lambda t: _room(t, len(images), n_batches), terms)
        _put(terms, found, number, batch)
    return found, Normal(found.q_mean, found.q_scale, validate_args=False)


@torch.inference_mode()
def posteriors(model, images: Images, seed: int = 0, batch: int = 100) -> Normal:
    """q(z | x) of every image, as `elbo_terms` gives it, with nothing decoded.

    Shapes: N images -> Normal (N, D) on the CPU.
    """
    device = next(model.parameters()).device
    seen = _seen(model, images, torch.Generator().manual_seed(seed), batch)
    found = [model.encode(x.to(device)) for x in seen]
    mean, scale = (torch.cat([getattr(q, k).cpu() for q in found]) for k in ("loc", "scale"))
    return Normal(mean, scale, validate_args=False)


def _room(t: Tensor, n_images: int, n_batches: int) -> Tensor:
    """Memory on the CPU for a term of all images; a batch that is scored as a whole has one.

    In one piece: small pieces that stay, between large ones, keep these from being given back.
    """
    return torch.empty(n_images if t.dim() else n_batches, *t.shape[1:], dtype=t.dtype)


def _put(terms: Terms, found: Terms, number: int, batch: int) -> None:
    """Write the terms of a batch, by its number, to their place among all."""

    def put(t: Tensor, into: Tensor) -> Tensor:
        start, n = (number * batch, batch) if t.dim() else (number, 1)
        return into[start : start + n].copy_(t)

    _each(put, terms, found)


def _each(function: Callable, *terms: Terms) -> Terms:
    """`function` over the tensors of several Terms, field by field."""
    *fields, extras = zip(*terms, strict=True)
    found = [None if column[0] is None else function(*column) for column in fields]
    return Terms(*found, {k: function(*(e[k] for e in extras)) for k in extras[0]})


def _seen(model, images: Images, generator: torch.Generator, batch: int) -> Iterator[Tensor]:
    """A split as the model sees it, batch by batch; the noise does not depend on the batches."""
    for some in images.images.split(batch):
        yield seen_by(model, some.cpu(), generator)  # (B, C, H, W)


def _latent_noise(model, images: Images, seed: int, n_importance: int, batch: int) -> Tensor:
    """The noise for z, which comes after that for all pixels. Shapes: -> (K, N, D)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in _seen(model, images, generator, batch):
        pass  # passes over the pixels' noise
    return torch.randn(n_importance, len(images), model.latent_dim, generator=generator)


def importance_weighted_bound(
    model, x: Tensor, n_importance: int, seed: int = 0, chunk: int = 250
) -> Tensor:
    """log (1/K) sum_k p(x, z_k) / q(z_k | x) with z_k from q(z | x): a bound on log p(x).

    Its mean rises with K to log p(x). Image i draws its noise from (seed, i), and at most
    `chunk` latents are decoded at once.
    Shapes: x (N, C, H, W) as the model sees it -> (N,) on the CPU. Units: nats per image.
    Source: Burda et al. 2016, equation 8.
    """
    every = progress(x.split(1), unit="image", leave=False, delay=2)
    return torch.stack(list(bounds(model, every, n_importance, seed, chunk)))


@torch.inference_mode()
def bounds(
    model,
    images: Iterable[Tensor],
    n_importance: int,
    seed: int = 0,
    chunk: int = 250,
    function: Callable | None = None,
    first: int = 0,
) -> Iterator[Tensor]:
    """The importance-weighted bound of one image after the other; see above.

    `images` are (1, C, H, W) each, the first of them number `first`; `function` may be a
    compiled `decoded_log_weights`.
    """
    function, device = function or decoded_log_weights, next(model.parameters()).device
    for i, x in enumerate(images, first):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        eps_all = torch.randn(n_importance, 1, model.latent_dim, generator=generator)
        q_z, x = model.encode(x.to(device)), x.to(device)
        log_w = [function(model, x, q_z, eps.to(device)) for eps in eps_all.split(chunk)]
        # log (1/K) sum_k w_k
        yield torch.cat(log_w).logsumexp(0)[0].cpu() - math.log(n_importance)


def decoded_log_weights(model, x: Tensor, q_z: Normal, eps: Tensor) -> Tensor:
    """log w at the draws of some noise. Shapes: x (B, C, H, W), eps (K, B, D) -> (K, B)."""
    z = draw(q_z, eps)  # (K, B, D)
    return log_weights(model.prior, q_z, z, log_likelihood(model.decode(z), x))


def active_units(q_z: Normal) -> int | None:
    """How many latent dimensions have Var_x(E_q[z]) > 0.01: their mean moves with the image.

    None where there are fewer than two images to move with.
    Shapes: q_z (N, D) over N images. Source: Burda et al. 2016, section 5.
    """
    if len(q_z.loc) < 2:
        return None
    return int((q_z.loc.var(0) > ACTIVE_THRESHOLD).sum())


def mean_and_error(values: Tensor) -> list[float]:
    """The mean over images and its standard error, rounded to 1e-4 nats."""
    error = values.double().std() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return [round(float(values.double().mean()), 4), round(float(error), 4)]


def quick(model) -> dict:
    """How much of the bound a quick block has: less for images above 32x32, which take longer."""
    small = math.prod(model.image_shape[1:]) <= 32 * 32
    return {"n_importance": 500 if small else 100, "n_bound_images": 1000 if small else 200}


def evaluate(
    model,
    images: Images,
    n_importance: int = 500,
    n_bound_images: int | None = 1000,
    seed: int = 0,
    fast: bool = False,
    collect: Callable[[Callable, int], Tensor] | None = None,
    objective: Callable = elbo,
) -> dict:
    """One block of metrics: the ELBO on all images, the bound on the first few, in nats.

    By an autoencoder's `objective` the reconstruction alone, as it has no ELBO. `fast` computes
    the bound compiled, in bf16 where the processor has it; the block says so. `collect(from_image,
    n)` gathers the bounds of n images, and may know the first: `from_image(i)` yields from i on.
    Pairs are [mean over images, standard error over images].
    """
    began = time.perf_counter()
    if not len(images):
        raise ValueError(f"{images.title} has no images; give at least one")
    device, binary = next(model.parameters()).device, model.likelihood.binary
    terms, q_z = elbo_terms(model, images, seed, objective=objective)
    noise = images.noise(binary)
    block = {
        "data": images.name, "split": images.split, "sha256": images.sha256,
        "n_images": len(images), "binarisation": f"{noise}, one draw, seed {seed}",
        "units": "nats per image; [mean, standard error over images]",
        "reconstruction": mean_and_error(-terms.log_px_z),
        "active_units": active_units(q_z),
    }  # fmt: skip
    if terms.kl is not None:  # an autoencoder has no ELBO, and no bound
        some = images.subset(n_bound_images) if n_bound_images else images
        same, how = terms.elbo[: len(some)], (n_importance, seed, fast, collect or _collect)
        block |= {"neg_elbo": mean_and_error(-terms.elbo), "kl": mean_and_error(terms.kl)}
        block["bound"] = _bound(model, some, same, *how)
    block["made_with"] = environment(device) | {"seconds": round(time.perf_counter() - began, 1)}
    if terms.kl_per_dim is not None:
        block["kl_per_dim"] = [round(v, 4) for v in terms.kl_per_dim.mean(0).tolist()]
    elif terms.kl is not None:
        block["kl_estimator"] = "log q(z | x) - log p(z) at one draw of z for each image"
    if images.note:
        block["note"] = images.note
    if not binary:
        if terms.kl is not None:
            bits = bits_per_dimension(block["neg_elbo"][0], math.prod(model.image_shape))
            block["bits_per_dim"] = round(bits, 4)
        block["psnr"] = mean_and_error(psnr(model, images, q_z))
        if sigma := getattr(model.likelihood, "sigma", None):
            block["sigma"] = round(sigma, 5)
    return block


def _bound(
    model, images: Images, elbo: Tensor, n_importance: int, seed: int, fast: bool, collect: Callable
) -> dict:  # fmt: skip
    """The bound of N images as a block has it, beside their ELBO (N,)."""
    device = next(model.parameters()).device
    bf16 = fast and use_bf16("auto", device)
    function = compiled(decoded_log_weights) if fast else decoded_log_weights

    def from_image(first: int) -> Iterator[Tensor]:
        seen = _seen(model, images, torch.Generator().manual_seed(seed), 1)  # as for the ELBO
        return bounds(model, islice(seen, first, None), n_importance, seed, 250, function, first)

    with torch.autocast(device.type, torch.bfloat16, bf16):
        found = collect(from_image, len(images))
    return {
        "neg_log_px": mean_and_error(-found), "neg_elbo_same_images": mean_and_error(-elbo),
        "n_images": len(images), "n_importance": n_importance,
        "precision": "bf16" if bf16 else "fp32",
    }  # fmt: skip


def _collect(from_image: Callable[[int], Iterator[Tensor]], n: int) -> Tensor:  # (n,)
    return torch.stack(list(progress(from_image(0), total=n, unit="image", leave=False, delay=2)))


def evaluate_fully(model, images: Images, folder: Path, n_importance: int = 5000) -> dict:
    """The block test_full; what is done of it is kept in the folder, and gone on with.

    It is gone on with where all that it depends on is the same: model, weights, images, samples,
    seed, precision, and the version of torch.
    """
    began, seed = time.perf_counter(), 0
    key = {
        "weights": files.sha256(folder / files.WEIGHTS), "data": images.sha256,
        "config": files.sha256(folder / files.CONFIG),
        "n_importance": n_importance, "seed": seed, "torch": torch.__version__,
        "bf16": use_bf16("auto", next(model.parameters()).device),
    }  # fmt: skip
    path = folder / files.PARTIAL
    kept = files.read_mapping(path) if path.exists() else {}
    if kept.get("key") != key or not _sound(kept, len(images)):
        kept = {"key": key, "seconds": 0.0, "bounds": []}
    before = kept["seconds"]

    def collect(from_image: Callable[[int], Iterator[Tensor]], n: int) -> Tensor:
        found = kept["bounds"]
        rest = progress(
            from_image(len(found)), total=n, initial=len(found), unit="image", leave=False
        )
        for bound in rest:
            found.append(bound.item())
            if len(found) % 100 == 0:
                files.write_json(path, kept | {"seconds": before + time.perf_counter() - began})
        return torch.tensor(found)

    block = evaluate(model, images, n_importance, None, seed, fast=True, collect=collect)
    block["made_with"]["seconds"] += round(before, 1)
    return block


def _sound(kept: dict, n: int) -> bool:
    """Whether what is kept of an evaluation of `n` images can be gone on with."""
    bounds = kept.get("bounds")
    numbers = isinstance(bounds, list) and all(isinstance(b, float) for b in bounds)
    return numbers and len(bounds) <= n and isinstance(kept.get("seconds"), float)


@torch.inference_mode()
def psnr(model, images: Images, q_z: Normal, batch: int = 100) -> Tensor:
    """Peak signal-to-noise ratio of each image's reconstruction from the mean of q(z | x).

    10 log10(255^2 / mean squared error), with the mean of p(x | z) put back on 0 to 255.
    Shapes: N images, q_z (N, D) -> (N,) on the CPU. Units: dB.
    """
    device, errors = next(model.parameters()).device, torch.empty(len(images))
    parts = zip(*(t.split(batch) for t in (q_z.loc, images.images, errors)), strict=True)
    for z, grey, error in parts:
        x_mean = model.decode(z.to(device)).mean.cpu()
        levels = (256 * x_mean - 0.5).clamp(0, 255)  # the middle of a level's cell is the level
        error.copy_((levels - grey.cpu()).square().mean((1, 2, 3)))
    return 10 * (255**2 / errors).log10()

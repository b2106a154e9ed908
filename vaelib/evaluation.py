"""Numbers a model reaches: the ELBO and its terms, the importance-weighted bound.

All noise comes from seeds and is drawn per data set or per image, never per batch, so
nothing depends on the batch size. It is drawn on the CPU: the same on every device.
"""

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Normal
from tqdm.auto import tqdm

from vaelib.data import Images, binarise, dequantise
from vaelib.likelihoods import bits_per_dimension, log_likelihood
from vaelib.objectives import Terms, elbo

ACTIVE_THRESHOLD = 0.01  # Var_x(E_q[z]) above which a dimension is active (Burda et al. 2016)
TOLERANCE = 0.02  # nats: what another processor's rounding may change in a mean


def seen_by(model, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The pixels as the model's likelihood takes them: binarised, or dequantised into [0, 1].

    Shapes: uint8 (B, C, H, W) -> float (B, C, H, W).
    """
    prepare = binarise if model.likelihood.binary else dequantise
    return prepare(images, generator)


@torch.inference_mode()
def elbo_terms(
    model, images: Images, seed: int = 0, batch: int = 100, objective=elbo, draws: tuple = ()
) -> tuple[Terms, Normal]:
    """One-sample ELBO terms of every image (or another objective's), and its q(z | x).

    `draws` is (K,) for an objective that takes K draws of z.
    Shapes: N images -> Terms of (N,) and (N, D), Normal (N, D); all on the CPU, in nats.
    """
    device = next(model.parameters()).device
    x_all, eps_all = _noisy(model, images, seed, draws)
    parts = []
    for x, eps in zip(x_all.split(batch), eps_all.split(batch, dim=-2), strict=True):
        terms = objective(model, x.to(device), eps.to(device))
        parts.append([t.cpu() for t in terms])
    terms = Terms(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return terms, Normal(terms.q_mean, terms.q_scale)


def _noisy(model, images: Images, seed: int, draws: tuple = ()) -> tuple[Tensor, Tensor]:
    """What the model sees of a whole split, and the noise for its z, from one seed."""
    generator = torch.Generator().manual_seed(seed)
    x = seen_by(model, images.images.cpu(), generator)  # (N, C, H, W)
    return x, torch.randn(*draws, len(images), model.latent_dim, generator=generator)


@torch.inference_mode()
def importance_weighted_bound(
    model,
    x: Tensor,
    n_importance: int,
    seed: int = 0,
    chunk: int = 250,
    function=None,
    known: Tensor | None = None,
    keep: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """log (1/K) sum_k p(x, z_k) / q(z_k | x) with z_k from q(z | x): a bound on log p(x).

    Its mean rises with K to log p(x). Image i draws its noise from (seed, i), and at most
    `chunk` latents are decoded at once. `function` may be a compiled `log_weights`. The
    bounds of the first images may be `known`; `keep` gets all so far, every 100 images.
    Shapes: x (N, C, H, W) as the model sees it -> (N,) on the CPU. Units: nats per image.
    Source: Burda et al. 2016, equation 8.
    """
    function = function or log_weights
    device = next(model.parameters()).device
    bounds = [] if known is None else list(known.unsqueeze(1))
    rest = range(len(bounds), len(x))
    for i in tqdm(rest, unit="image", leave=False, disable=n_importance * len(rest) < 1e5):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        eps_all = torch.randn(n_importance, 1, model.latent_dim, generator=generator)
        x_i = x[i : i + 1].to(device)  # (1, C, H, W)
        q_z = model.encode(x_i)
        log_w = [function(model, x_i, q_z, eps.to(device)) for eps in eps_all.split(chunk)]
        # log (1/K) sum_k w_k
        bounds.append(torch.cat(log_w).logsumexp(0).cpu() - math.log(n_importance))
        if keep and len(bounds) % 100 == 0:
            keep(torch.cat(bounds))
    return torch.cat(bounds)


def log_weights(model, x: Tensor, q_z: Normal, eps: Tensor) -> Tensor:
    """log w = log p(x|z) + log p(z) - log q(z|x) at z = mu + sigma eps.

    Shapes: x (B, C, H, W), q_z (B, D), eps (K, B, D) -> (K, B). Units: nats.
    """
    z = q_z.loc + q_z.scale * eps  # (K, B, D)
    log_px_z = log_likelihood(model.decode(z), x)
    log_pz = Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1)
    log_qz_x = q_z.log_prob(z).sum(-1)
    return log_px_z + log_pz - log_qz_x


def active_units(q_z: Normal) -> int:
    """How many latent dimensions have Var_x(E_q[z]) > 0.01: their mean moves with the image.

    Shapes: q_z (N, D) over N images. Source: Burda et al. 2016, section 5.
    """
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
    known: Tensor | None = None,
    keep: Callable[[Tensor], None] | None = None,
) -> dict:
    """One block of metrics: the ELBO on all images, the bound on the first few, in nats.

    `fast` computes the bound with a compiled decoder in bf16 where the processor has it;
    the block says so. `known` and `keep`: see `importance_weighted_bound`.
    Pairs are [mean over images, standard error over images].
    """
    began = time.perf_counter()
    terms, q_z = elbo_terms(model, images, seed)
    some = images.subset(n_bound_images) if n_bound_images else images
    x = _noisy(model, images, seed)[0][: len(some)]
    device = next(model.parameters()).device
    bf16 = fast and use_bf16("auto", device)
    noise = "dynamic" if model.likelihood.binary else "none; dequantised"
    with torch.autocast(device.type, torch.bfloat16, bf16):
        function = compiled(log_weights) if fast else None
        bound = importance_weighted_bound(
            model, x, n_importance, seed, function=function, known=known, keep=keep
        )
    block = {
        "data": images.name,
        "split": images.split,
        "sha256": images.sha256,
        "n_images": len(images),
        "binarisation": f"{noise}, one draw, seed {seed}",
        "units": "nats per image; [mean, standard error over images]",
        "neg_elbo": mean_and_error(-terms.elbo),
        "reconstruction": mean_and_error(-terms.log_px_z),
        "kl": mean_and_error(terms.kl),
        "kl_per_dim": [round(v, 4) for v in terms.kl_per_dim.mean(0).tolist()],
        "active_units": active_units(q_z),
        "bound": {
            "neg_log_px": mean_and_error(-bound),
            "neg_elbo_same_images": mean_and_error(-terms.elbo[: len(some)]),
            "n_images": len(some),
            "n_importance": n_importance,
            "precision": "bf16" if bf16 else "fp32",
        },
        "made_with": environment(device) | {"seconds": round(time.perf_counter() - began, 1)},
    }
    if images.note:
        block["note"] = images.note
    if not model.likelihood.binary:
        bits = bits_per_dimension(block["neg_elbo"][0], math.prod(model.image_shape))
        block |= {"bits_per_dim": round(bits, 4), "psnr": mean_and_error(psnr(model, images, q_z))}
        if sigma := getattr(model.likelihood, "sigma", None):
            block["sigma"] = round(sigma, 5)
    return block


@torch.inference_mode()
def psnr(model, images: Images, q_z: Normal, batch: int = 100) -> Tensor:
    """Peak signal-to-noise ratio of each image's reconstruction from the mean of q(z | x).

    10 log10(255^2 / mean squared error), with the mean of p(x | z) put back on 0 to 255.
    Shapes: N images, q_z (N, D) -> (N,) on the CPU. Units: dB.
    """
    device, found = next(model.parameters()).device, []
    for z, grey in zip(q_z.loc.split(batch), images.images.split(batch), strict=True):
        x_mean = model.decode(z.to(device)).mean.cpu()
        levels = (256 * x_mean - 0.5).clamp(0, 255)  # the middle of a level's cell is the level
        found.append((levels - grey.cpu()).square().mean((1, 2, 3)))
    return 10 * (255**2 / torch.cat(found)).log10()


def report(block: dict) -> list[str]:
    """A block of metrics as lines to read."""
    bound = block["bound"]
    rows = [
        ("-ELBO", block["neg_elbo"], block["n_images"]),
        ("reconstruction", block["reconstruction"], block["n_images"]),
        ("KL", block["kl"], block["n_images"]),
        (f"bound, {bound['n_importance']:,} samples", bound["neg_log_px"], bound["n_images"]),
    ]
    head = (
        f"{block['data']} {block['split']}, binarisation: {block['binarisation']}; nats per image"
    )
    lines = [f"{name:>22} {v:9.3f} +- {e:.3f}  ({n:,} images)" for name, (v, e), n in rows]
    if "psnr" in block:
        lines.append(f"{'bits per dimension':>22} {block['bits_per_dim']:9.3f}")
        lines.append(f"{'PSNR, dB':>22} {block['psnr'][0]:9.3f} +- {block['psnr'][1]:.3f}")
    if "sigma" in block:
        lines.append(f"{'sigma':>22} {block['sigma']:9.5f}")
    return [head, *lines, f"{'active units':>22} {block['active_units']:5d}"]


def compare(old: dict, new: dict) -> list[str]:
    """What differs between two computations of one block by more than rounding."""
    found = [
        f"{key} was {old[key]}, is {new[key]}"
        for key in ("sha256", "n_images", "binarisation", "active_units")
        if old[key] != new[key]
    ]
    pairs = [(key, old[key][0], new[key][0]) for key in ("neg_elbo", "reconstruction", "kl")]
    pairs.append(("bound", old["bound"]["neg_log_px"][0], new["bound"]["neg_log_px"][0]))
    for key, before, now in pairs:
        if not abs(before - now) <= TOLERANCE:
            found.append(f"{key} was {before}, is {now}")
    return found


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether the networks compute in bf16: where asked, or where the hardware does it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def compiled(function):
    """`function` through torch.compile, or as it is where there is no C++ compiler."""
    import logging

    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception:  # inductor has no public name for "there is no compiler"
        return function
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA on a CPU machine
    torch.compiler.reset()  # it keeps eight versions of a function, and a notebook may ask for more
    return torch.compile(function, dynamic=False)


def environment(device: torch.device) -> dict:
    """Versions and hardware, for the record."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor,
        "threads": torch.get_num_threads(),
    }

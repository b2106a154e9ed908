"""log p(x) to any precision, for models of one or two latents: the integral itself."""

import math

import torch
from torch import Tensor

from vaelib.priors import spread


@torch.inference_mode()
def log_px(
    model, x: Tensor, spacing: float = 0.05, reach: float = 5.0, chunk: int = 2_000
) -> Tensor:
    """log of the integral of p(x | z) p(z) over a grid of z, by the trapezoidal rule.

    No encoder is asked, so it scores the decoder and the prior of any model alike, an
    autoencoder's too. The grid ends `reach` standard deviations of the prior from its mean. Halve
    `spacing` to see what it leaves: little, while it is at most 1.5 deviations of p(z | x).
    Shapes: x (N, C, H, W) of zeros and ones -> (N,). Units: nats per image. Raises ValueError for
    more than two latents, or where pixels are no coin flips.
    """
    check(model)
    device = next(model.parameters()).device
    middles, stds = (t.tolist() for t in spread(model.prior))
    sides = [
        m + torch.arange(-reach * s, reach * s + spacing / 2, spacing, dtype=torch.float64)
        for m, s in zip(middles, stds, strict=True)
    ]
    grid = torch.cartesian_prod(*sides).reshape(-1, model.latent_dim)
    found = x.new_full((len(x),), -math.inf, dtype=torch.float64, device="cpu")
    for z in grid.float().to(device).split(chunk):  # (G, D)
        p_x = model.decode(z)
        off = p_x.log_prob(torch.zeros_like(p_x.mean)).flatten(1)  # (G, pixels)
        on = p_x.log_prob(torch.ones_like(p_x.mean)).flatten(1)
        # log p(x|z) = sum_i log p(0|z)_i + x_i (log p(1|z)_i - log p(0|z)_i)
        log_px_z = off.sum(1) + x.to(device).flatten(1) @ (on - off).T  # (N, G)
        log_joint = (log_px_z + model.prior.log_prob(z)).cpu().double()
        found = found.logaddexp(log_joint.logsumexp(1))
    return found + model.latent_dim * math.log(spacing)


def check(model) -> None:
    """ValueError where `log_px` has no grid for a model."""
    if model.latent_dim > 2 or not model.likelihood.binary:
        pixels = "coin flips" if model.likelihood.binary else "densities"
        raise ValueError(
            f"{model.latent_dim} latents and pixels that are {pixels}: the grid is for one or two "
            "latents and for coin flips (likelihood: bernoulli)"
        )

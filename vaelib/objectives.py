"""What is maximised. Each objective returns its named terms; nothing is averaged here.

Sums run over pixels and over latent dimensions; the mean over images is the training
loop's. So `beta = 1` is the ELBO whatever the image size, and every term is in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vaelib.likelihoods import log_likelihood


class Terms(NamedTuple):
    """An objective and what it is made of, in nats, and q(z|x); B images, D latent dimensions."""

    objective: Tensor  # (B,) what training maximises
    elbo: Tensor  # (B,) log p(x|z) - KL, whatever the objective
    log_px_z: Tensor  # (B,)
    kl: Tensor  # (B,)
    kl_per_dim: Tensor  # (B, D)
    q_mean: Tensor  # (B, D) of q(z|x), no nats
    q_scale: Tensor  # (B, D)


def kl_per_dimension(q_z: Normal) -> Tensor:
    """KL(q(z_d | x) || N(0, 1)) of each latent dimension.

    Shapes: q_z (B, D) -> (B, D). Units: nats.
    Source: Kingma & Welling 2014, appendix B.
    """
    prior = Normal(torch.zeros_like(q_z.loc), torch.ones_like(q_z.scale), validate_args=False)
    # (mu_d^2 + sigma_d^2 - 1 - log sigma_d^2) / 2
    return kl_divergence(q_z, prior)


def elbo(model, x: Tensor, eps: Tensor, beta: float | Tensor = 1.0) -> Terms:
    """One-sample evidence lower bound with the KL in closed form; beta weighs the KL.

    `model` is a VAE or a wrapper of one: it is called, so that DistributedDataParallel
    sees the call. `eps` is standard normal noise, drawn by the caller.
    Shapes: x (B, C, H, W), eps (B, D). Units: nats per image.
    Source: Kingma & Welling 2014, equation 10; beta: Higgins et al. 2017, equation 4.
    """
    q_z, _, p_x = model(x, eps)
    log_px_z = log_likelihood(p_x, x)  # (B,)
    kl_per_dim = kl_per_dimension(q_z)  # (B, D)
    kl = kl_per_dim.sum(-1)  # (B,)
    # ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))
    objective = log_px_z - beta * kl
    return Terms(objective, log_px_z - kl, log_px_z, kl, kl_per_dim, q_z.loc, q_z.scale)


def iwae(model, x: Tensor, eps: Tensor, beta: float | Tensor = 1.0) -> Terms:
    """Importance-weighted bound with K draws; K = 1 is the ELBO with all terms sampled.

    beta weighs log p(z) - log q(z|x), so that a KL warm-up works here too.
    Shapes: x (B, C, H, W), eps (K, B, D). Units: nats per image.
    Source: Burda et al. 2016, equation 8.
    """
    q_z, z, p_x = model(x, eps)  # z (K, B, D)
    log_px_z = log_likelihood(p_x, x)  # (K, B)
    prior = Normal(torch.zeros_like(q_z.loc), torch.ones_like(q_z.scale), validate_args=False)
    log_pz, log_qz_x = prior.log_prob(z).sum(-1), q_z.log_prob(z).sum(-1)  # (K, B)
    # log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x)
    log_w = log_px_z + beta * (log_pz - log_qz_x)
    bound = log_w.logsumexp(0) - math.log(len(eps))  # (B,)
    kl_per_dim, log_px_z = kl_per_dimension(q_z), log_px_z.mean(0)
    kl = kl_per_dim.sum(-1)
    return Terms(bound, log_px_z - kl, log_px_z, kl, kl_per_dim, q_z.loc, q_z.scale)

"""What is maximised. Each objective returns its named terms; nothing is averaged over images.

Sums run over pixels and over latent dimensions; the mean over images is the training
loop's. So `beta = 1` is the ELBO whatever the image size, and every term is in nats.

An objective is a function f(model, x, eps, beta, *, own parameters) and a line in OBJECTIVES.
Its own parameters have defaults, and a recipe sets them by `objective_args`. What else it needs
it declares by a keyword-only name of GIVEN, and the loop gives it.
"""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.distributions import Normal

from vaelib import choices
from vaelib.likelihoods import log_likelihood

# what an objective may ask the loop for
GIVEN = {
    "progress": "share of the run that is done, 0 to 1: a scalar tensor",
    "noise": "standard normal noise (B, D) of its own, neither global nor a reuse of eps",
    "n_train": "number of training images",
}


class Terms(NamedTuple):
    """An objective and what it is made of, in nats, and q(z|x); B images, D latent dimensions.

    `kl` is None where an objective has no ELBO, `kl_per_dim` where the prior has no closed form.
    `extras` are further terms by name, (B,) or (): they go into history and progress.
    """

    objective: Tensor  # (B,) what training maximises; () where the batch is scored as a whole
    log_px_z: Tensor  # (B,), the mean over K draws
    kl: Tensor | None  # (B,)
    q_mean: Tensor  # (B, D) of q(z|x), no nats
    q_scale: Tensor  # (B, D)
    kl_per_dim: Tensor | None = None  # (B, D)
    extras: dict[str, Tensor] = {}  # noqa: RUF012 (nobody writes into it)

    @property
    def elbo(self) -> Tensor | None:
        """(B,) log p(x|z) - KL, whatever the objective; None where it has no KL."""
        return None if self.kl is None else self.log_px_z - self.kl


def prior_of(model):
    """The prior of a VAE, or of what DistributedDataParallel wraps."""
    return getattr(model, "module", model).prior


def log_weights(prior, q_z: Normal, z: Tensor, log_px_z: Tensor, beta: float | Tensor = 1.0):
    """log w = log p(x|z) + beta [log p(z) - log q(z|x)].

    Shapes: q_z (B, D), z (K, B, D), log_px_z (K, B) -> (K, B). Units: nats.
    """
    return log_px_z + beta * (prior.log_prob(z) - q_z.log_prob(z).sum(-1))


def kl_terms(prior, q_z: Normal, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """KL(q(z|x) || p(z)), and of each dimension: closed form, or estimated by the draws.

    Shapes: q_z (B, D), z (K, B, D) or (B, D) -> (B,), (B, D); or (B,), None. Units: nats.
    """
    if hasattr(prior, "kl_per_dim"):
        kl_per_dim = prior.kl_per_dim(q_z)  # (B, D)
        return kl_per_dim.sum(-1), kl_per_dim
    # E_q[log q(z|x) - log p(z)]
    log_ratio = q_z.log_prob(z).sum(-1) - prior.log_prob(z)
    return log_ratio.reshape(-1, len(q_z.loc)).mean(0), None


def draws(eps: Tensor) -> Tensor:
    """One draw (B, D) as the first of K = 1: (1, B, D)."""
    return eps.unsqueeze(0) if eps.dim() == 2 else eps


def scores_batch(objective: Callable) -> Callable:
    """Marks an objective whose value depends on which images share a batch (MMD, say).

    Such a batch can't be cut into parts, and validation goes by the batch size.
    """
    objective.scores_batch = True
    return objective


def elbo(model, x: Tensor, eps: Tensor, beta: float | Tensor = 1.0) -> Terms:
    """Evidence lower bound, the mean over K draws; beta weighs the KL.

    `model` is a VAE or a wrapper of one: it is called, so that DistributedDataParallel
    sees the call. `eps` is standard normal noise, drawn by the caller.
    Shapes: x (B, C, H, W), eps (K, B, D), or (B, D) for one draw. Units: nats per image.
    Source: Kingma & Welling 2014, equation 10; beta: Higgins et al. 2017, equation 4.
    """
    eps = draws(eps)
    q_z, z, p_x = model(x, eps[0] if len(eps) == 1 else eps)  # z (K, B, D), or (B, D)
    log_px_z = log_likelihood(p_x, x).reshape(-1, len(x)).mean(0)  # (B,)
    kl, kl_per_dim = kl_terms(prior_of(model), q_z, z)
    # ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))
    return Terms(log_px_z - beta * kl, log_px_z, kl, q_z.loc, q_z.scale, kl_per_dim)


def iwae(model, x: Tensor, eps: Tensor, beta: float | Tensor = 1.0) -> Terms:
    """Importance-weighted bound with K draws; K = 1 is the ELBO with all terms sampled.

    beta weighs log p(z) - log q(z|x), so that a KL warm-up works here too.
    Shapes: x (B, C, H, W), eps (K, B, D), or (B, D) for one draw. Units: nats per image.
    Source: Burda et al. 2016, equation 8.
    """
    eps = draws(eps)
    q_z, z, p_x = model(x, eps)  # z (K, B, D)
    log_px_z = log_likelihood(p_x, x)  # (K, B)
    # log (1/K) sum_k [p(x|z_k) p(z_k) / q(z_k|x)]
    log_w = log_weights(prior_of(model), q_z, z, log_px_z, beta)
    bound = log_w.logsumexp(0) - math.log(len(eps))  # (B,)
    kl, kl_per_dim = kl_terms(prior_of(model), q_z, z)
    return Terms(bound, log_px_z.mean(0), kl, q_z.loc, q_z.scale, kl_per_dim)


OBJECTIVES = {"elbo": elbo, "iwae": iwae}


def chosen(name: str, arguments: dict) -> Callable:
    """The objective of a recipe, its arguments checked; ValueError in one line if they are off."""
    objective = choices.choose("objective", name, OBJECTIVES)
    choices.checked(f"objective {name}", objective, arguments, GIVEN)
    return objective


def asks_for(objective: Callable, name: str) -> bool:
    """Whether an objective declares that it needs one of GIVEN."""
    return name in inspect.signature(objective).parameters

"""What is maximised. Each objective returns its named terms; nothing is averaged over images.

Sums run over pixels and over latent dimensions; the mean over images is the training
loop's. So `beta = 1` is the ELBO whatever the image size, and every term is in nats.

An objective is a function f(model, x, eps, beta, *, own parameters) and a line in OBJECTIVES.
Its own parameters have defaults, and a recipe sets them by `objective_args`. What else it needs
it declares by a keyword-only name of GIVEN, and the loop gives it. One that beta has no place in
calls that argument `_`, and a recipe of it may set neither beta nor a KL warm-up.
"""

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import torch
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
    if hasattr(prior, "kl_per_dim") and isinstance(q_z, Normal):
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


def needs_normals(objective: Callable) -> Callable:
    """Marks an objective that takes p(z) for N(0, I), and q(z | x) for a diagonal Normal."""
    objective.needs_normals = True
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


@scores_batch
@needs_normals
def free_bits(
    model, x: Tensor, eps: Tensor, beta: float | Tensor = 1.0, *, free: float = 0.5
) -> Terms:
    """The ELBO in which the first `free` nats of each dimension's KL cost nothing.

    A dimension's KL is its mean over the batch; below `free` it has no slope, and so no reason to
    die. Shapes and units: as `elbo`. Source: Kingma et al. 2016, equation 15.
    """
    terms = elbo(model, x, eps, beta)
    # sum_d max(free, E_x KL_d)
    price = terms.kl_per_dim.mean(0).clamp(min=free).sum()
    return terms._replace(objective=terms.log_px_z - beta * price)


@scores_batch
def capacity(
    model, x: Tensor, eps: Tensor, _: float | Tensor = 1.0, *, progress: Tensor | float = 1.0,
    gamma: float = 100.0, nats: float = 25.0, rise: float = 0.5,
) -> Terms:  # fmt: skip
    """A KL that is held at a capacity, which rises linearly to `nats` over `rise` of the run.

    The KL is the mean over the batch; `gamma` is what a nat beside the capacity costs.
    Shapes and units: as `elbo`. Source: Burgess et al. 2018, equation 8.
    """
    terms = elbo(model, x, eps)
    allowed = nats * torch.as_tensor(progress / max(rise, 1e-9)).clamp(max=1.0)
    # E_q[log p(x|z)] - gamma |KL - C|
    return terms._replace(objective=terms.log_px_z - gamma * (terms.kl.mean() - allowed).abs())


@scores_batch
@needs_normals
def beta_tcvae(
    model, x: Tensor, eps: Tensor, beta: float | Tensor = 1.0, *, n_train: int,
    alpha: float = 1.0, gamma: float = 1.0, estimator: Literal["mws", "mss"] = "mss",
) -> Terms:  # fmt: skip
    """The ELBO with its KL taken apart, and beta on the total correlation alone.

    E_x KL = I(x; z) + KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || p(z_d)), weighed by alpha,
    beta and gamma: mutual information, total correlation (extra `tc`), the dimensions' own KL.
    q(z), a mixture over all training images, is estimated from the batch: see `log_q_batch`.
    Shapes and units: as `elbo`. Source: Chen et al. 2018, equations 2 and 4.
    """
    eps = draws(eps)
    q_z, z, p_x = model(x, eps)  # z (K, B, D)
    prior, log_px_z = prior_of(model), log_likelihood(p_x, x).mean(0)  # (B,)
    log_qz, log_qz_each = log_q_batch(q_z, z, n_train, estimator)  # (K, B), (K, B, D)
    mutual = (q_z.log_prob(z).sum(-1) - log_qz).mean(0)  # (B,)
    correlation = (log_qz - log_qz_each.sum(-1)).mean(0)
    own = (log_qz_each.sum(-1) - prior.log_prob(z)).mean(0)
    kl, kl_per_dim = kl_terms(prior, q_z, z)
    objective = log_px_z - (alpha * mutual + beta * correlation + gamma * own)
    extras = {"mutual": mutual, "tc": correlation, "own_kl": own}
    return Terms(objective, log_px_z, kl, q_z.loc, q_z.scale, kl_per_dim, extras)


def log_q_batch(
    q_z: Normal, z: Tensor, n_train: int, estimator: Literal["mws", "mss"] = "mss"
) -> tuple[Tensor, Tensor]:
    """log q(z) and log q(z_d), of a mixture over `n_train` images, from the batch that z is of.

    Draw i is of image i, which surely is in the mixture; the others stand for the rest. mss
    weighs them so that q(z) is unbiased (stratified); mws, 1 / (n_train B) each, is too low.
    Shapes: q_z (B, D), z (K, B, D) -> (K, B), (K, B, D). Units: nats.
    Source: Chen et al. 2018, equation 3 and appendix C.2.
    """
    each = q_z.log_prob(z.unsqueeze(-2))  # (K, B, B, D): draw i under image j
    n = len(q_z.loc)
    if n > n_train:
        raise ValueError(f"a batch of {n} images out of {n_train}: give a smaller batch")
    weights = each.new_full((n, n), 1 / (n_train * n))
    if estimator == "mss" and n > 1:
        weights.fill_(1 / (n - 1)).fill_diagonal_(1 / n_train)
        after = torch.arange(n, device=z.device)
        weights[after, (after + 1) % n] = (n_train - n + 1) / (n_train * (n - 1))
    log_weights = weights.log()  # (B, B)
    joint = (log_weights + each.sum(-1)).logsumexp(-1)
    return joint, (log_weights.unsqueeze(-1) + each).logsumexp(-2)


@scores_batch
@needs_normals
def mmd_vae(
    model, x: Tensor, eps: Tensor, _: float | Tensor = 1.0, *, noise: Tensor,
    alpha: float = 1.0, weight: float = 1000.0,
) -> Terms:  # fmt: skip
    """E_q[log p(x|z)] - (1 - alpha) KL - weight MMD^2(q(z), p(z)); alpha = 1 is MMD-VAE.

    In InfoVAE's letters weight = alpha + lambda - 1. The KL to the prior holds image by image;
    MMD^2 (extra `mmd`, no nats) asks that all codes together look like draws from N(0, I).
    Shapes: as `elbo`, noise (B, D). Source: Zhao et al. 2017, equation 6.
    """
    eps = draws(eps)
    q_z, z, p_x = model(x, eps)  # z (K, B, D)
    log_px_z = log_likelihood(p_x, x).mean(0)  # (B,)
    kl, kl_per_dim = kl_terms(prior_of(model), q_z, z)
    distance = torch.stack([mmd(codes, noise) for codes in z]).mean()
    objective = log_px_z - (1 - alpha) * kl - weight * distance
    return Terms(objective, log_px_z, kl, q_z.loc, q_z.scale, kl_per_dim, {"mmd": distance})


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy, of the kernel k = exp(-|a - b|^2 / (2 D)).

    0 on average where both are draws of one distribution, and then as often below 0.
    Shapes: (N, D), (M, D), at least two rows each -> (). Source: Gretton et al. 2012, equation 3.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"draws of shape {tuple(a.shape)} and {tuple(b.shape)}: give at least two of each, "
            "with as many dimensions"
        )

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        distance = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")
        return (-distance.square() / (2 * u.shape[1])).exp()

    def within(u: Tensor) -> Tensor:
        return (kernel(u, u).sum() - len(u)) / (len(u) * (len(u) - 1))

    # E k(a, a') + E k(b, b') - 2 E k(a, b)
    return within(a) + within(b) - 2 * kernel(a, b).mean()


def autoencoder(model, x: Tensor, eps: Tensor, _: float | Tensor = 1.0) -> Terms:
    """log p(x | z) at z = the encoder's mean: no noise, no price, and so no bound on log p(x).

    The encoder's scale is left as it came. Shapes and units: as `elbo`; `kl` is None.
    """
    q_z, _, p_x = model(x, torch.zeros_like(draws(eps)[0]))
    log_px_z = log_likelihood(p_x, x)  # (B,)
    return Terms(log_px_z, log_px_z, None, q_z.loc, q_z.scale)


OBJECTIVES = {
    "elbo": elbo,
    "iwae": iwae,
    "free_bits": free_bits,
    "capacity": capacity,
    "beta_tcvae": beta_tcvae,
    "mmd_vae": mmd_vae,
    "autoencoder": autoencoder,
}


def chosen(name: str, arguments: dict) -> Callable:
    """The objective of a recipe, its arguments checked; ValueError in one line if they are off."""
    objective = choices.choose("objective", name, OBJECTIVES)
    choices.checked(f"objective {name}", objective, arguments, GIVEN)
    return objective


@cache
def asks_for(objective: Callable, name: str) -> bool:
    """Whether an objective declares that it needs one of GIVEN."""
    return name in inspect.signature(objective).parameters

"""Paths, grids, densities and directions in latent space: tensors in, tensors out."""

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal


def linear(z_start: Tensor, z_end: Tensor, n: int) -> Tensor:
    """`n` points on the straight line from one latent to another, both included.

    Shapes: (D,), (D,) -> (n, D).
    """
    t = torch.linspace(0, 1, n, device=z_start.device).unsqueeze(1)  # (n, 1)
    # z(t) = (1 - t) z_start + t z_end
    return (1 - t) * z_start + t * z_end


def spherical(z_start: Tensor, z_end: Tensor, n: int) -> Tensor:
    """`n` points on the arc from one latent to another, both included.

    In many dimensions prior draws lie near a sphere of radius sqrt(D), and the middle of a
    straight line between two of them does not; the arc keeps to the sphere.
    Shapes: (D,), (D,) -> (n, D). Source: Shoemake 1985; for latents, White 2016.
    """
    cosine = torch.dot(z_start, z_end) / (z_start.norm() * z_end.norm()).clamp_min(1e-12)
    angle = torch.acos(cosine.clamp(-1, 1))
    if torch.sin(angle) < 1e-4:  # same or opposite direction: the arc is a line, or any
        return linear(z_start, z_end, n)
    t = torch.linspace(0, 1, n, device=z_start.device).unsqueeze(1)  # (n, 1)
    # z(t) = [sin((1 - t) w) z_start + sin(t w) z_end] / sin(w), w the angle between them
    return (torch.sin((1 - t) * angle) * z_start + torch.sin(t * angle) * z_end) / torch.sin(angle)


def traversal(z: Tensor, dim: int, values: Tensor) -> Tensor:
    """Copies of one latent with one dimension set to each of `values`.

    Shapes: z (D,), values (n,) -> (n, D).
    """
    path = z.repeat(len(values), 1)  # (n, D)
    path[:, dim] = values
    return path


def manifold(
    n: int, spacing: Literal["inverse_cdf", "linear"] = "inverse_cdf", limit: float = 3.0
) -> Tensor:
    """An n x n grid over a 2-D latent space, row by row from the top left.

    "inverse_cdf" puts equal prior probability between neighbours (Kingma & Welling 2014,
    appendix A); "linear" spaces them evenly on [-limit, limit].
    Shapes: -> (n * n, 2); z[:, 0] grows to the right, z[:, 1] upwards.
    """
    if spacing == "inverse_cdf":
        # z = Phi^-1(u), u = (i + 1/2) / n
        axis = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    else:
        axis = torch.linspace(-limit, limit, n)
    down, right = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    return torch.stack([right, down], dim=-1).reshape(-1, 2)


def order_by_kl(kl_per_dim: Tensor) -> Tensor:
    """Latent dimensions from the one that carries most nats to the one that carries least.

    Shapes: (B, D) nats -> (D,) int64.
    """
    return kl_per_dim.mean(0).argsort(descending=True)


def order_by_variance(means: Tensor) -> Tensor:
    """Latent dimensions from the one whose posterior mean varies most over images to the least.

    Shapes: means of q(z | x) (N, D) -> (D,) int64.
    """
    return means.var(0, unbiased=False).argsort(descending=True)


def mixture(weights: Tensor, means: Tensor, scale_tril: Tensor) -> MixtureSameFamily:
    """A mixture of M Gaussians with full covariances.

    Shapes: weights (M,), means (M, D), scale_tril (M, D, D) -> over (D,).
    """
    parts = MultivariateNormal(means, scale_tril=scale_tril)
    return MixtureSameFamily(Categorical(weights), parts)


def fit_mixture(z: Tensor, n_components: int, seed: int = 0) -> MixtureSameFamily:
    """A Gaussian mixture fitted to latents by expectation maximisation (scikit-learn's).

    Given draws from q(z | x) over the training images, it stands for the *aggregate
    posterior*, which is what the decoder has met; one component is a plain Gaussian.
    Shapes: (N, D) -> over (D,).
    """
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(n_components, reg_covar=1e-4, random_state=seed).fit(z.double().numpy())
    scale_tril = torch.linalg.cholesky(torch.tensor(fit.covariances_))
    return mixture(*(torch.as_tensor(t).float() for t in (fit.weights_, fit.means_, scale_tril)))


def draw(density: MixtureSameFamily, n: int, seed: int = 0) -> Tensor:
    """`n` draws by the seed, the global one untouched. Shapes: -> (n, D)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return density.sample((n,))


def attribute_directions(z: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
    """Two directions in latent space that go from images without an attribute to those with it.

    The difference of the two means, and the normal of a linear classifier (logistic regression),
    made so long that a step along either moves the classifier's score by the same amount.
    Shapes: z (N, D), has (N,) bool -> (D,), (D,).
    """
    from sklearn.linear_model import LogisticRegression

    difference = z[has].mean(0) - z[~has].mean(0)
    scale = z.std(0).clamp_min(0.1)  # regularises all dimensions alike, dead ones aside
    classifier = LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced")
    classifier.fit((z / scale).numpy(), has.numpy())
    normal = torch.tensor(classifier.coef_[0]).float() / scale
    normal = normal / normal.norm()
    # step n |d.n|: its projection on the normal is that of the difference
    return difference, normal * torch.dot(difference, normal)


def auc(scores: Tensor, has: Tensor) -> float:
    """Probability that an image with the attribute scores above one without it (ties: half).

    Shapes: (N,), (N,) bool. Source: scikit-learn's roc_auc_score.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(has.numpy(), scores.numpy()))

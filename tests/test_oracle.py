"""The exact oracle: a linear-Gaussian VAE (probabilistic PCA), solved on paper, in float64.

p(x) = N(b, W W' + s^2 I) and p(z | x) = N(M^-1 W'(x - b), s^2 M^-1), M = W'W + s^2 I
(Tipping & Bishop 1999). The expectations over q are exact too: log p(x | z) is quadratic in z,
so that Gauss-Hermite quadrature with three nodes a dimension leaves no error.
"""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vaelib.evaluation import importance_weighted_bound
from vaelib.models import VAE
from vaelib.objectives import elbo, iwae

P, D, SIGMA = 5, 2, 0.6  # pixels, latent dimensions, noise


class Linear(VAE):
    """The VAE with a linear decoder and a linear-Gaussian encoder; a real `vaelib` model."""

    def __init__(self, weights: torch.Tensor, q_matrix: torch.Tensor, q_scale: torch.Tensor):
        super().__init__((1, 1, P), D, "mlp", hidden=1, likelihood="gaussian", sigma=SIGMA)
        self.W = torch.nn.Parameter(weights)
        self.A = torch.nn.Parameter(q_matrix)
        self.scale = torch.nn.Parameter(q_scale)

    def encode(self, x):
        mean = x.flatten(1) @ self.A.T
        return Normal(mean, self.scale.expand_as(mean))

    def decode(self, z):
        return self.likelihood((z @ self.W.T).unflatten(-1, (1, 1, P)))


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = Linear(draw(P, D), 0.4 * draw(D, P), torch.tensor([0.5, 0.8], dtype=torch.float64))
    return model, draw(6, 1, 1, P)


def exact_log_px(model, x):
    covariance = model.W @ model.W.T + SIGMA**2 * torch.eye(P).double()
    return MultivariateNormal(torch.zeros(P).double(), covariance).log_prob(x.flatten(1))


def posterior(model, x):
    M = model.W.T @ model.W + SIGMA**2 * torch.eye(D).double()
    mean = torch.linalg.solve(M, model.W.T @ x.flatten(1).T).T
    return MultivariateNormal(mean, SIGMA**2 * torch.linalg.inv(M))


def expected_elbo(model, x):
    """vaelib's one-sample ELBO, averaged exactly over its noise. -> (B,) nats"""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    total = 0.0
    for i, j in np.ndindex(3, 3):
        eps = torch.tensor([nodes[i], nodes[j]]).expand(len(x), D)
        weight = weights[i] * weights[j] / (2 * math.pi)
        total = total + weight * elbo(model, x, eps).elbo
    return total


def analytic_elbo(model, x):
    """The ELBO on paper, for q = N(A x, diag(scale^2)). -> (B,) nats"""
    x = x.flatten(1)
    error = (x - x @ model.A.T @ model.W.T).square().sum(1)
    spread = (model.W.square() @ model.scale.square()).sum()
    log_px_z = -P / 2 * math.log(2 * math.pi * SIGMA**2) - (error + spread) / (2 * SIGMA**2)
    mean, variance = x @ model.A.T, model.scale.square()
    return log_px_z - 0.5 * (mean.square() + variance - 1 - variance.log()).sum(1)


def test_gap_is_the_kl_to_the_true_posterior(problem):
    model, x = problem
    q_z = model.encode(x)
    as_full = MultivariateNormal(q_z.loc, torch.diag_embed(q_z.variance))
    gap = kl_divergence(as_full, posterior(model, x))
    assert gap.min() > 0.1
    difference = exact_log_px(model, x) - gap - expected_elbo(model, x)
    assert difference.abs().max() < 1e-5  # nats
    torch.testing.assert_close(expected_elbo(model, x), analytic_elbo(model, x))


def test_no_gap_where_the_posterior_is_diagonal_and_q_equals_it(problem):
    # orthogonal columns of W make M diagonal, so a diagonal q can be the posterior
    model, x = problem
    W = torch.linalg.qr(model.W.detach())[0] * torch.tensor([1.5, 0.7], dtype=torch.float64)
    M = W.T @ W + SIGMA**2 * torch.eye(D).double()
    exact = Linear(W, torch.linalg.solve(M, W.T), SIGMA * torch.linalg.inv(M).diagonal().sqrt())
    assert (exact_log_px(exact, x) - expected_elbo(exact, x)).abs().max() < 1e-5
    tilted = Linear(model.W.detach(), model.A.detach(), model.scale.detach())
    truth = posterior(tilted, x)
    with torch.no_grad():  # the best diagonal q still leaves a gap when the columns are not
        M = tilted.W.T @ tilted.W + SIGMA**2 * torch.eye(D).double()
        tilted.A.copy_(torch.linalg.solve(M, tilted.W.T))
        tilted.scale.copy_(truth.precision_matrix[0].diagonal().rsqrt())
    best_gap = exact_log_px(tilted, x) - expected_elbo(tilted, x)
    precision = truth.precision_matrix[0]
    on_paper = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    torch.testing.assert_close(best_gap, on_paper.expand(6), atol=1e-5, rtol=0)


def test_gradients_agree_with_the_analytic_ones(problem):
    model, x = problem
    parameters = [model.W, model.A, model.scale]
    ours = torch.autograd.grad(expected_elbo(model, x).sum(), parameters)
    theirs = torch.autograd.grad(analytic_elbo(model, x).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_one_sample_gradients_are_unbiased(problem):
    model, x = problem
    x, n = x[:1].expand(4000, 1, 1, P), 4000
    eps = torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    singles = [
        torch.autograd.grad(elbo(model, x[i : i + 1], eps[i : i + 1]).elbo.sum(), model.scale)[0]
        for i in range(n)
    ]
    singles = torch.stack(singles)  # (n, D)
    exact = torch.autograd.grad(analytic_elbo(model, x[:1]).sum(), model.scale)[0]
    error = singles.std(0) / math.sqrt(n)
    assert ((singles.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.1 * exact.abs()).all()  # else anything would pass


def test_bounds_rise_with_k_to_the_exact_value(problem):
    model, x = problem
    x = x[:1].expand(400, 1, 1, P)  # one image 400 times: its bound's distribution
    exact = exact_log_px(model, x)[0].item()
    means, errors = [analytic_elbo(model, x)[0].item()], [0.0]
    for k in (2, 5, 20, 200, 5000):
        bound = importance_weighted_bound(model, x, k)
        means.append(bound.mean().item())
        errors.append(bound.std().item() / math.sqrt(len(x)))
    for i in range(len(means) - 1):
        assert means[i + 1] > means[i] - 3 * (errors[i] + errors[i + 1])
    assert means[3] > means[0] + 10 * errors[3]  # it does rise
    assert abs(means[-1] - exact) < max(4 * errors[-1], 5e-3)


def test_the_iwae_objective_is_exact_with_the_true_posterior_and_tightens_with_k(problem):
    model, x = problem
    W = torch.linalg.qr(model.W.detach())[0]
    M = W.T @ W + SIGMA**2 * torch.eye(D).double()
    exact = Linear(W, torch.linalg.solve(M, W.T), SIGMA * torch.linalg.inv(M).diagonal().sqrt())
    eps = torch.randn(7, 6, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(iwae(exact, x, eps).objective, exact_log_px(exact, x))
    assert (iwae(model, x, eps).elbo < exact_log_px(model, x)).all()
    eps = torch.randn(400_000, 1, D, generator=torch.Generator().manual_seed(1)).double()
    close = iwae(model, x[:1], eps).objective - exact_log_px(model, x[:1])
    assert close.abs().item() < 0.05
    k_one = iwae(model, x, eps[:1].expand(1, 6, D)).objective  # every term sampled, none exact
    by_hand = elbo(model, x, eps[0].expand(6, D))
    q_z = model.encode(x)
    z = q_z.loc + q_z.scale * eps[0]
    log_ratio = (Normal(0.0, 1.0).log_prob(z) - q_z.log_prob(z)).sum(-1)
    torch.testing.assert_close(k_one, by_hand.log_px_z + log_ratio)

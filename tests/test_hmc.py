"""The sampler against densities whose moments are known, and where it must give up."""

import math

import pytest
import torch
from torch.distributions import Gamma, MultivariateNormal, Normal

from vaelib import hmc
from vaelib.hmc import SamplerError

F64 = torch.float64


def test_draws_have_the_moments_of_a_correlated_gaussian():
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    root = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.2, 0.1]], dtype=F64)
    truth = MultivariateNormal(mean, scale_tril=root)
    found = hmc.sample(truth.log_prob, torch.zeros(400, 3, dtype=F64), 50, 10, 500)
    z = found.z.flatten(0, 1)
    # chains are independent: errors by chain
    error = found.z.mean(0).std(0) / math.sqrt(400)
    assert ((z.mean(0) - mean).abs() < 4 * error).all()
    assert (error < 0.05).all()
    torch.testing.assert_close(z.T.cov(), truth.covariance_matrix, atol=0.06, rtol=0.06)
    assert abs(found.acceptance.mean() - 0.9) < 0.05
    assert found.acceptance.min() > 0.6


def test_draws_have_the_quantiles_of_a_skewed_density():
    # of log g, g ~ Gamma(2, 1): log density 2 z - exp(z)
    found = hmc.sample(
        lambda z: (2 * z - z.exp()).squeeze(1), torch.zeros(300, 1, dtype=F64), 60, 5, 400
    )
    g = found.z.exp().flatten()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=F64)
    share = Gamma(2.0, 1.0).cdf(torch.quantile(g, levels).float()).double()
    assert (share - levels).abs().max() < 0.015


def test_each_chain_finds_a_step_size_of_its_own():
    scales = torch.tensor([0.01, 1.0], dtype=F64)
    found = hmc.sample(
        lambda z: -0.5 * (z.squeeze(1) / scales).square(), torch.zeros(2, 1, dtype=F64), 400
    )
    ratio = (found.step_size[1] / found.step_size[0]).item()
    assert 50 < ratio < 200
    assert ((found.z.std(0).squeeze(1) / scales - 1).abs() < 0.3).all()


def test_one_transition_keeps_the_density():
    # exact draws stay exact draws, whatever the step size
    start = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    step_size = torch.full((40_000,), 1.3, dtype=F64)
    z, acceptance = hmc.transition(
        lambda z: -0.5 * z.square().sum(1), start, step_size, 3, torch.Generator().manual_seed(1)
    )
    assert acceptance.mean() < 0.95  # rejections are needed for it
    assert (z != start).float().mean() == pytest.approx(acceptance.mean().item(), abs=0.01)
    assert abs(z.var().item() - 1) < 4 * math.sqrt(2 / 40_000)
    assert abs(z.pow(4).mean().item() - 3) < 4 * math.sqrt(96 / 40_000)


def test_the_same_seed_gives_the_same_draws():
    def density(z):
        return -0.5 * z.square().sum(1)

    first, again, other = (
        hmc.sample(density, torch.zeros(3, 2), 5, n_adapt=5, seed=s).z for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_of_every_thin_transitions_one_is_kept():
    def density(z):
        return -0.5 * z.square().sum(1)

    every = hmc.sample(density, torch.zeros(2, 2), 12, n_adapt=10)
    third = hmc.sample(density, torch.zeros(2, 2), 4, n_adapt=10, thin=3)
    assert torch.equal(every.z[2::3], third.z)
    torch.testing.assert_close(every.acceptance, third.acceptance)


def test_proposals_that_leave_a_support_are_never_taken():
    def half(z):
        return torch.where(z > 0, -z, -math.inf).squeeze(1)

    found = hmc.sample(half, torch.ones(200, 1, dtype=F64), 50, n_adapt=300)
    assert (found.z > 0).all()
    assert found.z.mean().item() == pytest.approx(1, abs=0.08)

    def with_nan(z):
        return torch.where(z > 0, -z, math.nan).squeeze(1)

    assert (hmc.sample(with_nan, torch.ones(20, 1, dtype=F64), 20).z > 0).all()

    def infinite(z):
        return torch.where(z > 0, -z, math.inf).squeeze(1)

    assert (hmc.sample(infinite, torch.ones(20, 1, dtype=F64), 20).z > 0).all()


def test_a_density_is_asked_at_numbers_alone():
    def strict(z):  # as torch's distributions are
        assert z.isfinite().all()
        return Normal(0.0, 1.0).log_prob(z[:, 0]) + Normal(z[:, 0] ** 2, 0.1).log_prob(z[:, 1])

    start = torch.tensor([[0.0, 0.0], [50.0, 2500.0]], dtype=F64).repeat(20, 1)
    z, acceptance = hmc.transition(strict, start, torch.full((40,), 3.0, dtype=F64), 30)
    assert z.isfinite().all()
    assert (acceptance == 0).sum() >= 20


def test_a_bad_start_and_a_stuck_sampler_are_named():
    with pytest.raises(SamplerError, match=r"not finite, in 1 of 2 chains \(step size 0.1"):
        hmc.sample(lambda z: z.log().sum(1), torch.tensor([[1.0], [-1.0]]), 5)

    def steep(z):
        return -0.5 * (1e4 * z).square().sum(1)

    with pytest.raises(SamplerError, match=r"stuck in 4 of 4 chains: acceptance 0.0.. with step s"):
        hmc.sample(steep, torch.full((4, 1), 1e-4), 20, n_adapt=0, step_size=0.5)

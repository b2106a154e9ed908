"""KL, likelihoods, ELBO and the bound on log p(x), each against an independent answer."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from vaelib import evaluation, priors
from vaelib.data import Images, seen_by
from vaelib.evaluation import (
    decoded_log_weights,
    elbo_terms,
    importance_weighted_bound,
    posteriors,
)
from vaelib.hardware import compiled
from vaelib.likelihoods import Bernoulli, Gaussian, log_likelihood
from vaelib.models import VAE
from vaelib.objectives import elbo, iwae
from vaelib.priors import StandardNormal


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (1.3, 0.4), (-2.0, 0.05), (0.5, 2.0)])
def test_kl_against_quadrature(mu, sigma):
    # integral of q log(q / p) by the trapezoid rule, in float64
    z = np.linspace(mu - 12 * sigma, mu + 12 * sigma, 200_001)
    log_q = -0.5 * ((z - mu) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    expected = np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
    q_z = Normal(*torch.tensor([[[mu]], [[sigma]]], dtype=torch.float64))
    assert StandardNormal(1).kl_per_dim(q_z).item() == pytest.approx(expected, abs=1e-9)


def test_bernoulli_by_hand():
    # logits 0 and log 3 are probabilities 1/2 and 3/4
    p_x = Bernoulli()(torch.tensor([[[[0.0, math.log(3.0)]]]]))
    x = torch.tensor([[[[1.0, 0.0]]]])
    assert log_likelihood(p_x, x).item() == pytest.approx(math.log(1 / 2) + math.log(1 / 4))
    torch.testing.assert_close(p_x.mean, torch.tensor([[[[0.5, 0.75]]]]))


def test_gaussian_by_hand():
    # two pixels, errors 0.5 and 0, sigma 0.5: -(1/2) - 2 log(0.5) - log(2 pi)
    p_x = Gaussian(0.5)(torch.tensor([[[[0.5, 0.2]]]]))
    x = torch.tensor([[[[1.0, 0.2]]]])
    expected = -0.5 - 2 * math.log(0.5) - math.log(2 * math.pi)
    assert log_likelihood(p_x, x).item() == pytest.approx(expected, abs=1e-6)


def test_bernoulli_probabilities_sum_to_one():
    # over all 2^4 binary images of four pixels
    p_x = Bernoulli()(torch.randn(1, 1, 2, 2))
    images = torch.tensor([[i >> k & 1 for k in range(4)] for i in range(16)]).float()
    total = log_likelihood(p_x, images.reshape(16, 1, 2, 2)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-5)


def test_likelihood_sums_over_every_channel_and_pixel():
    p_x = Bernoulli()(torch.zeros(2, 3, 4, 5))  # every pixel costs log 2
    nats = log_likelihood(p_x, torch.ones(2, 3, 4, 5))
    torch.testing.assert_close(nats, torch.full((2,), -60 * math.log(2)))


def test_elbo_terms_are_their_definition(small_vae):
    x, eps = (torch.rand(5, 1, 28, 28) > 0.5).float(), torch.randn(5, 3)
    terms = elbo(small_vae, x, eps, beta=3.0)
    q_z = small_vae.encode(x)
    pixels = small_vae.decode(q_z.mean + q_z.stddev * eps).mean
    log_px_z = (x * pixels.log() + (1 - x) * (1 - pixels).log()).sum((1, 2, 3))
    kl = 0.5 * (q_z.mean**2 + q_z.variance - 1 - q_z.variance.log()).sum(1)
    torch.testing.assert_close(terms.log_px_z, log_px_z, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(terms.kl, kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.elbo, log_px_z - kl, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(terms.objective, log_px_z - 3 * kl, rtol=1e-4, atol=1e-3)


def by_hand(model, x, eps):
    """log p(x|z), log p(z), log q(z|x) at z = mu + sigma eps, each (K, B), from the formulas."""
    q_z = model.encode(x)
    z = q_z.mean + q_z.stddev * eps
    pixels = model.decode(z).mean
    log_px_z = (x * pixels.log() + (1 - x) * (1 - pixels).log()).sum((-3, -2, -1))
    constant = z.shape[-1] / 2 * math.log(2 * math.pi)
    log_pz = -(z**2).sum(-1) / 2 - constant
    log_qz_x = -(eps**2).sum(-1) / 2 - q_z.stddev.log().sum(-1) - constant
    return log_px_z, log_pz, log_qz_x


@pytest.mark.parametrize("n_draws", [1, 2, 4])
def test_elbo_averages_over_its_draws(small_vae, n_draws):
    x, eps = (torch.rand(5, 1, 28, 28) > 0.5).float(), torch.randn(n_draws, 5, 3)
    terms = elbo(small_vae, x, eps, beta=0.5)
    log_px_z = by_hand(small_vae, x, eps)[0].mean(0)
    torch.testing.assert_close(terms.log_px_z, log_px_z, rtol=1e-4, atol=1e-3)
    one_by_one = torch.stack([elbo(small_vae, x, e, beta=0.5).objective for e in eps])
    torch.testing.assert_close(terms.objective, one_by_one.mean(0), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_iwae_is_its_definition_and_beta_weighs_the_kl(small_vae, beta):
    x, eps = (torch.rand(5, 1, 28, 28) > 0.5).float(), torch.randn(4, 5, 3)
    log_px_z, log_pz, log_qz_x = by_hand(small_vae, x, eps)
    weights = (log_px_z + beta * (log_pz - log_qz_x)).double()
    bound = (weights - weights.max()).exp().mean(0).log() + weights.max()
    terms = iwae(small_vae, x, eps, beta=beta)
    torch.testing.assert_close(terms.objective.double(), bound, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(terms.log_px_z, log_px_z.mean(0), rtol=1e-4, atol=1e-3)


class Shifted(torch.nn.Module):
    """p(z) = N(shift, I): a prior with no closed-form KL to show."""

    def __init__(self, latent_dim: int, shift: float = 1.0):
        super().__init__()
        self.latent_dim, self.shift = latent_dim, shift

    def log_prob(self, z):
        return Normal(self.shift, 1.0).log_prob(z).sum(-1)

    def sample(self, n, generator=None):
        return self.shift + torch.randn(n, self.latent_dim, generator=generator)


def test_another_prior_is_asked_everywhere(monkeypatch, digits):
    monkeypatch.setitem(priors.PRIORS, "shifted", Shifted)
    torch.manual_seed(0)
    model = VAE(latent_dim=3, widths=(8, 16), prior="shifted", prior_args={"shift": 2.0}).eval()
    assert model.prior.sample(1000).mean().item() == pytest.approx(2.0, abs=0.1)
    some = digits.subset(20)
    x = seen_by(model, some.images, torch.Generator().manual_seed(0))
    q_z, eps = model.encode(x), torch.randn(500, 20, 3)
    # KL(N(mu, s^2) || N(2, 1)) by its closed form, which the code does not have
    kl = (((q_z.mean - 2) ** 2 + q_z.variance - 1 - q_z.variance.log()) / 2).sum(1)
    terms = elbo(model, x, eps)
    assert terms.kl_per_dim is None
    spread = (q_z.variance * (1 + (q_z.mean - 2) ** 2)).sum(1).sqrt() / 500**0.5
    assert ((terms.kl - kl).abs() < 6 * spread).all()
    block = evaluation.evaluate(model, some, 200, 5)
    assert "kl_per_dim" not in block
    log_w = by_hand(model, x[:5], torch.randn(2000, 5, 3))
    z = q_z.mean[:5] + q_z.stddev[:5] * (eps := torch.randn(2000, 5, 3))
    log_px_z, _, log_qz_x = by_hand(model, x[:5], eps)
    log_w = log_px_z + Normal(2.0, 1.0).log_prob(z).sum(-1) - log_qz_x
    bound = -(log_w.logsumexp(0) - math.log(2000)).mean().item()
    assert block["bound"]["neg_log_px"][0] == pytest.approx(bound, abs=1.0)


def test_wrong_priors_and_likelihoods_say_what_there_is():
    for wrong, message in (
        ({"prior": "standart"}, "did you mean standard"),
        ({"prior_args": {"shift": 1.0}}, "prior standard has no parameter 'shift'.*it has none"),
        ({"likelihood": "gausian"}, "did you mean gaussian"),
        ({"likelihood": "gaussian", "likelihood_args": {"sgma": 1.0}}, "did you mean sigma"),
        ({"likelihood": "gaussian", "likelihood_args": {"sigma": "big"}}, "like its default, 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            VAE(**wrong)
    model = VAE(likelihood="gaussian", likelihood_args={"sigma": 0.25})
    assert model.likelihood.sigma == 0.25


def test_the_bound_and_the_elbo_are_of_the_same_pixels():
    # q is the prior and the picture does not depend on z: then every weight is p(x) itself, so
    # that the bound of each image is its ELBO, if both are of the same binarisation
    torch.manual_seed(0)
    model = VAE(latent_dim=2, backbone="mlp", hidden=5).eval()
    for layer in (model.encoder.to_latent, model.decoder.hidden[0]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.normal_(model.decoder.to_image.bias)
    grey = torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8)
    for likelihood in ("bernoulli", "gaussian"):
        model.likelihood = VAE(backbone="mlp", likelihood=likelihood).likelihood
        block = evaluation.evaluate(model, Images("made-up", "test", grey), 3, 4, seed=5)
        found = block["bound"]["neg_log_px"][0], block["bound"]["neg_elbo_same_images"][0]
        assert found[0] == pytest.approx(found[1], abs=1e-2)


def test_a_gaussian_scores_dequantised_pixels(small_vae):
    images = torch.arange(256, dtype=torch.uint8).repeat(40).reshape(1, 1, 40, 256)
    model = VAE((1, 40, 256), widths=(8,), likelihood="gaussian")
    x = seen_by(model, images, torch.Generator().manual_seed(0))
    cell = x * 256 - images  # where in its cell of width 1/256 each pixel lies
    assert 0 <= cell.min() < 0.01
    assert 0.99 < cell.max() <= 1
    assert set(seen_by(small_vae, images).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_batches_do_not_change_the_noise(likelihood, digits):
    # images are turned into floats batch by batch, with the noise of one draw for all of them
    torch.manual_seed(0)
    model = VAE(latent_dim=3, widths=(8, 16), likelihood=likelihood).eval()
    some = digits.subset(37)
    generator = torch.Generator().manual_seed(4)
    x = seen_by(model, some.images, generator)
    eps = torch.randn(37, 3, generator=generator)
    with torch.inference_mode():
        whole = elbo(model, x, eps)
    for batch in (1, 10, 100):
        terms, _ = elbo_terms(model, some, seed=4, batch=batch)
        torch.testing.assert_close(terms.log_px_z, whole.log_px_z, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(terms.kl, whole.kl, rtol=1e-4, atol=1e-3)
        q_z = posteriors(model, some, seed=4, batch=batch)
        torch.testing.assert_close(q_z.loc, whole.q_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(q_z.scale, whole.q_scale, rtol=1e-4, atol=1e-4)


class LinearGaussian(VAE):
    """x = w z + noise in one pixel, whose log p(x) = log N(x; 0, w^2 + sigma^2) is known."""

    def __init__(self, weight: float, sigma: float, q_shift: float, q_factor: float):
        super().__init__((1, 1, 1), 1, "mlp", hidden=1, likelihood="gaussian", sigma=sigma)
        self.weight, self.q_shift, self.q_factor = weight, q_shift, q_factor

    def encode(self, x):
        x = x.reshape(-1, 1)
        variance = 1 / (1 + self.weight**2 / self.likelihood.sigma**2)
        mean = variance * self.weight * x / self.likelihood.sigma**2
        return Normal(mean + self.q_shift, self.q_factor * variance**0.5 * torch.ones_like(x))

    def decode(self, z):
        return self.likelihood((self.weight * z).reshape(*z.shape[:-1], 1, 1, 1))


X = torch.tensor([0.7, -1.2, 2.5]).reshape(3, 1, 1, 1)


def exact_log_px(weight, sigma):
    return Normal(0.0, math.sqrt(weight**2 + sigma**2)).log_prob(X).reshape(-1)


def test_bound_is_exact_with_the_true_posterior():
    # then every importance weight is p(x) itself, whatever z is
    model = LinearGaussian(1.5, 0.5, q_shift=0.0, q_factor=1.0)
    for k in (1, 7):
        bound = importance_weighted_bound(model, X, n_importance=k, chunk=3)
        assert bound.shape == (3,)
        torch.testing.assert_close(bound, exact_log_px(1.5, 0.5), rtol=1e-4, atol=1e-4)


def test_bound_rises_to_the_known_log_px_with_a_wrong_posterior():
    model = LinearGaussian(1.5, 0.5, q_shift=0.3, q_factor=1.4)
    exact = exact_log_px(1.5, 0.5)
    terms = [elbo(model, X, torch.randn(3, 1)).elbo for _ in range(2000)]
    one = torch.stack(terms).mean(0)
    many = importance_weighted_bound(model, X, n_importance=200_000, chunk=50_000)
    assert (one < exact - 0.2).all()  # the ELBO's gap: KL(q || p(z|x)), about 0.7 nats
    torch.testing.assert_close(many, exact, atol=0.02, rtol=0)


def test_gap_of_the_elbo_is_the_kl_to_the_posterior():
    model = LinearGaussian(1.5, 0.5, q_shift=0.3, q_factor=1.4)
    q_z, posterior = model.encode(X), LinearGaussian(1.5, 0.5, 0.0, 1.0).encode(X)
    gap = torch.distributions.kl_divergence(q_z, posterior).reshape(-1)
    # E_q[log w] is the ELBO: average over a fine grid of quantiles instead of draws
    u = (torch.arange(20_001) + 0.5).double() / 20_001
    eps = torch.special.ndtri(u).float().reshape(-1, 1, 1)
    mean = decoded_log_weights(model, X, q_z, eps).mean(0)
    torch.testing.assert_close(mean, exact_log_px(1.5, 0.5) - gap, atol=2e-3, rtol=0)


def test_bound_does_not_depend_on_the_chunk(small_vae):
    x = (torch.rand(2, 1, 28, 28) > 0.5).float()
    bounds = [importance_weighted_bound(small_vae, x, 64, chunk=c) for c in (7, 64)]
    torch.testing.assert_close(bounds[0], bounds[1], rtol=1e-5, atol=1e-3)


def test_compiled_objective_agrees_with_the_eager_one(small_vae):
    x, eps = (torch.rand(5, 1, 28, 28) > 0.5).float(), torch.randn(5, 3)
    fast = compiled(elbo)
    if fast is elbo:
        pytest.skip("no C++ compiler on this machine, so nothing is compiled")
    for a, b in zip(fast(small_vae, x, eps), elbo(small_vae, x, eps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)


def test_psnr_bits_and_sigma_of_colour_images():
    # a decoder that answers one grey level: its error is known pixel by pixel
    model = VAE((3, 4, 4), 2, widths=(4,), likelihood="learned_gaussian", sigma=0.25).eval()
    level = 100
    model.decode = lambda z: model.likelihood(
        torch.full((*z.shape[:-1], 3, 4, 4), (level + 0.5) / 256)
    )
    grey = torch.arange(2 * 48).reshape(2, 3, 4, 4).to(torch.uint8)
    images = Images("made-up", "test", grey)
    block = evaluation.evaluate(model, images, 2, None)
    mse = [sum((level - g) ** 2 for g in range(48 * i, 48 * (i + 1))) / 48 for i in (0, 1)]
    by_hand = sum(10 * math.log10(255**2 / e) for e in mse) / 2
    assert block["psnr"][0] == pytest.approx(by_hand, abs=1e-3)
    assert block["sigma"] == 0.25
    bits = (block["neg_elbo"][0] / 48 + math.log(256)) / math.log(2)
    assert block["bits_per_dim"] == pytest.approx(bits, abs=1e-3)

"""Likelihoods against quadrature and closed forms; other projects' losses against gradients."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from vaelib.data import dequantise, to_unit
from vaelib.likelihoods import (
    LIKELIHOODS,
    LearnedGaussian,
    PixelGaussian,
    bits_per_dimension,
    log_likelihood,
    translate,
)
from vaelib.models import VAE


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("backbone", ["unet", "mlp"])
def test_every_likelihood_scores_every_image(name, backbone):
    model = VAE((3, 16, 12), latent_dim=4, backbone=backbone, widths=(8,), likelihood=name)
    x = torch.rand(5, 3, 16, 12).round()
    p_x = model.decode(torch.randn(7, 5, 4))
    assert p_x.mean.shape == (7, 5, 3, 16, 12)
    nats = log_likelihood(p_x, x)
    assert nats.shape == (7, 5)
    assert torch.isfinite(nats).all()


# what a network can say, in its own single precision: small, moderate and absurd
SAID = [0.0, 1e-4, 0.02, 0.7, 0.999, 1.0, 1.001, 2.0, 5.0, 15.9, 16.1, 20.0, 50.0, 512.0, 1e4]


@pytest.mark.parametrize("name", [n for n in LIKELIHOODS if n != "bernoulli"])
@pytest.mark.parametrize("value", [sign * size for size in SAID for sign in (1, -1)])
def test_continuous_densities_integrate_to_one_and_have_their_mean(name, value):
    """In float32, by quadrature whose nodes crowd where the density does."""
    likelihood = LIKELIHOODS[name]()
    p_x = likelihood(torch.full((1, likelihood.n_params, 1, 1), value))
    if name == "continuous_bernoulli":
        # distances from the end that it is near to, evenly spaced in their fourth root
        away = torch.linspace(0, 1, 200_001, dtype=torch.float64) ** 4
        x = 1 - away.flip(0) if value > 0 else away
        centre = 1.0 if value > 0 else 0.0
    else:
        centre, scale = p_x.mean.item(), p_x.stddev.item()
        x = centre + scale * torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    with torch.no_grad():
        density = log_likelihood(p_x, x.float().reshape(-1, 1, 1, 1)).exp().double()
    # far from 0 a float's own steps are wider than the density: no pixel lies there
    if name != "continuous_bernoulli" and abs(value) > 50 and scale < 1:
        return
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=2e-3)
    mean = torch.trapezoid(density * (x - centre), x).item()
    spread = 1e-6 if name == "continuous_bernoulli" else 1e-3 * scale
    assert p_x.mean.item() - centre == pytest.approx(mean, rel=2e-3, abs=spread)


@pytest.mark.parametrize("logit", [-1e4, -50.0, -1.5, -0.3, 1e-5, 0.2, 3.0, 30.0])
def test_continuous_bernoulli_is_what_float64_says(logit):
    # E[x] = 1 / (1 - exp(-l)) - 1 / l and the moments of draws, in double precision
    p_x = LIKELIHOODS["continuous_bernoulli"]()(torch.tensor(logit))
    wide = np.float64(logit)
    with np.errstate(over="ignore"):
        mean = 0.5 + wide / 12 if abs(wide) < 1e-4 else -1 / np.expm1(-wide) - 1 / wide
    assert p_x.mean.item() == pytest.approx(mean, rel=1e-5)
    torch.manual_seed(0)
    draws = p_x.sample((100_000,))
    assert draws.mean().item() == pytest.approx(mean, abs=4 * draws.std().item() / 300)
    assert draws.var().item() == pytest.approx(p_x.variance.item(), rel=0.03)
    # gradients of the log-density: d/dl log p(x) = x - E[x]
    said = torch.tensor(logit, requires_grad=True)
    x = torch.tensor(0.25)
    LIKELIHOODS["continuous_bernoulli"]()(said).log_prob(x).backward()
    assert said.grad.item() == pytest.approx(0.25 - mean, abs=1e-5)


@pytest.mark.parametrize(
    "logit", [-3.0, -0.999, -0.5, -0.1, 0.1, 0.5, 0.9, 0.999, 1.001, 1.5, 40.0]
)
def test_continuous_bernoulli_in_double_precision(logit):
    """Both the series near 0 and the formulas beyond, against the formulas.

    Near 0 these lose digits, and the series are cut: at 0.1 both are good to 1e-11.
    """
    p_x = LIKELIHOODS["continuous_bernoulli"]()(torch.tensor(logit, dtype=torch.float64))
    size = abs(logit)
    cut = 1e-12 if size > 1 else size**8 / 1e6 + 1e-11  # the series' next term, and rounding
    x = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    log_px = logit * x - math.log(math.expm1(logit) / logit)
    torch.testing.assert_close(p_x.log_prob(x), log_px, atol=min(cut, 3e-9), rtol=1e-13)
    mean = 1 / -math.expm1(-logit) - 1 / logit
    assert p_x.mean.item() == pytest.approx(mean, abs=min(cut, 3e-8))
    variance = 1 / logit**2 - 1 / (4 * math.sinh(logit / 2) ** 2)
    assert p_x.variance.item() == pytest.approx(variance, abs=max(cut, 1e-10) * 3)
    # the quantile function undoes the distribution function, (exp(l x) - 1) / (exp(l) - 1)
    u = torch.tensor([1e-3, 0.25, 0.8], dtype=torch.float64)
    at = p_x.icdf(u)
    torch.testing.assert_close(torch.expm1(logit * at) / math.expm1(logit), u, atol=1e-9, rtol=0)


def test_grey_cross_entropy_is_not_a_log_likelihood():
    # Bernoulli's formula on [0, 1] integrates to 2 at p = 1/2 ... to (2p - 1) / log(p / (1 - p))
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for p in (0.5001, 0.8, 0.99):
        total = torch.trapezoid((x * math.log(p) + (1 - x) * math.log(1 - p)).exp(), x).item()
        assert total == pytest.approx((2 * p - 1) / math.log(p / (1 - p)), abs=1e-6)
        assert total < 0.51


def test_learned_sigma_ends_at_the_root_mean_squared_error():
    likelihood, generator = LearnedGaussian(0.5), torch.Generator().manual_seed(0)
    mean = torch.rand(50, 1, 6, 6, generator=generator)
    x = mean + 0.13 * torch.randn(mean.shape, generator=generator)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=100, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        loss = -log_likelihood(likelihood(mean), x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert likelihood.sigma == pytest.approx((x - mean).square().mean().sqrt().item(), rel=1e-4)


def test_pixel_sigma_has_a_floor():
    likelihood = PixelGaussian()
    p_x = likelihood(torch.tensor([0.5, -1e4]).reshape(1, 2, 1, 1))
    assert p_x.stddev.item() == pytest.approx(1 / 256)
    nats = log_likelihood(p_x, torch.full((1, 1, 1, 1), 0.5)).item()
    assert nats == pytest.approx(math.log(256) - 0.5 * math.log(2 * math.pi), abs=1e-5)


def test_dequantised_pixels_stay_in_their_cells():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2000, 1, 16, 16)
    x = dequantise(images, torch.Generator().manual_seed(0))
    inside = (x * 256 - images).flatten()
    assert 0 <= inside.min() < 0.001
    assert 0.999 < inside.max() <= 1
    assert inside.mean().item() == pytest.approx(0.5, abs=2e-3)
    assert inside.var().item() == pytest.approx(1 / 12, abs=2e-3)


def test_grey_levels_are_shares_of_white():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    np.testing.assert_allclose(to_unit(images).flatten(), np.linspace(0, 1, 256), atol=1e-7)
    assert images.flatten().tolist() == list(range(256))


def test_bits_per_dimension():
    assert bits_per_dimension(0.0, 784) == pytest.approx(8)  # a uniform density: all 8 bits
    # a density that knows the upper half of the range saves one bit a pixel
    assert bits_per_dimension(-784 * math.log(2), 784) == pytest.approx(7)


def recipes(x, mean, mu, logvar):
    """Losses as other projects write them, and what `translate` is told about each."""
    n, d = x[0].numel(), mu.shape[1]
    squares = (x - mean).square()
    sum_kl = (mu**2 + logvar.exp() - 1 - logvar).sum(1)  # without its half
    signed = (2 * x - 1) - (2 * mean - 1)  # the same errors where pixels go from -1 to 1
    return {
        "pixel mean, KL without half over pixels, [-1, 1]": (
            signed.square().mean() + 0.7 * (sum_kl / n).mean(),
            dict(pixels="mean", kl_weight=0.7, kl_half=False, kl_per_pixel=True,
                 pixel_range=(-1, 1)),
            (0.5, 0.7),
        ),
        "pixel mean, small kld_weight": (
            F.mse_loss(mean, x) + 0.00025 * (0.5 * sum_kl).mean(),
            dict(pixels="mean", kl_weight=0.00025),
            (1.0, 0.00025 * n / 2),
        ),
        "pixel mean times D^2 over 2 sigma^2": (
            (squares.mean((1, 2, 3)) * d**2 / (2 * 0.3**2) + 4 * 0.5 * sum_kl).mean(),
            dict(pixels="mean", error_weight=d**2 / (2 * 0.3**2), kl_weight=4.0, sigma=0.3),
            (0.3, 4 * n / d**2),
        ),
        "sums, KL averaged over latents": (
            (squares.sum((1, 2, 3)) + 0.5 * sum_kl / d).mean(),
            dict(latents="mean"),
            (1.0, 0.5 / d),
        ),
    }  # fmt: skip


def test_translated_losses_have_the_gradients_of_the_elbo_they_imply():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, parts = torch.rand(4, 3, 5, 5, generator=generator).double(), None
    leaves = [draw(4, 3, 5, 5), draw(4, 6), draw(4, 6)]  # decoded mean, mu, logvar
    for name, (loss, told, expected) in recipes(x, *leaves).items():
        sigma, beta = translate(75, 6, **told)
        assert (sigma, beta) == pytest.approx(expected), name
        mean, mu, logvar = leaves
        q_z = Normal(mu, (0.5 * logvar).exp())
        prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
        elbo = log_likelihood(Normal(mean, sigma), x) - beta * kl_divergence(q_z, prior).sum(1)
        parts = [torch.autograd.grad(f, leaves, retain_graph=True) for f in (loss, -elbo.sum())]
        ours, theirs = (np.concatenate([g.numpy().ravel() for g in grads]) for grads in parts)
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        assert cosine == pytest.approx(1.0, abs=1e-12), name


def test_pytorch_vaes_weight_is_beta_1_5():
    assert translate(3 * 64 * 64, pixels="mean", kl_weight=0.00025).beta == pytest.approx(1.536)


@pytest.mark.parametrize(
    "logit", [sign * size for size in (0.0, 3.0, 15.0, 18.0, 1e4) for sign in (1, -1)]
)
def test_quantiles_of_the_continuous_bernoulli_stay_in_the_unit_interval(logit):
    p_x = LIKELIHOODS["continuous_bernoulli"]()(torch.tensor(logit))
    levels = torch.tensor([0.0, 1e-7, 0.25, 0.5, 0.75, 1 - 1e-7, 1.0])
    x = p_x.icdf(levels)
    assert torch.isfinite(x).all()
    assert 0 <= x.min() <= x.max() <= 1
    assert (x.diff() >= 0).all()  # a quantile rises with its level


@pytest.mark.parametrize("logit", [-1e4, -88.9, -3.0, -1e-9, 0.0, 0.2, 30.0, 512.0, 1e4])
def test_the_rest_of_the_continuous_bernoulli_is_exact_too(logit):
    """Its distribution function and entropy in float32, against the formulas in float64."""
    p_x = LIKELIHOODS["continuous_bernoulli"]()(torch.tensor(logit))
    size = abs(logit)
    at = torch.tensor([-1.0, 0.0, 1e-4, 0.1, 0.75, 1.0, 2.0])
    if size < 1e-6:  # uniform, but for what float32 can't show
        below, entropy = at.double().clamp(0, 1), 0.0
    else:
        x = at.double().clamp(0, 1)
        from_end = 1 - x if logit > 0 else x  # the end where the density is largest
        share = torch.expm1(-size * from_end) / math.expm1(-size)
        below = 1 - share if logit > 0 else share
        log_a = math.log(-math.expm1(-size) / size)  # with the larger of 1 and exp(l) taken out
        entropy = log_a + size * (1 / size - math.exp(-size) / -math.expm1(-size))
    torch.testing.assert_close(p_x.cdf(at), below.float(), rtol=2e-6, atol=2e-7)
    assert p_x.entropy().item() == pytest.approx(entropy, rel=1e-6, abs=1e-6)
    # and the mean's slope is the variance, at every logit
    said = torch.tensor(logit, requires_grad=True)
    p_x = LIKELIHOODS["continuous_bernoulli"]()(said)
    p_x.mean.backward()
    assert said.grad.item() == pytest.approx(p_x.variance.item(), rel=1e-5)

"""How pixels are scored: p(x | z) as a `torch.distributions` object over (B, C, H, W).

A likelihood turns the decoder's output into a distribution. It says how many numbers per
pixel it wants (`n_params`), and `log_prob` and `mean` are then the library's own.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution


class Bernoulli(nn.Module):
    """Pixels are 0 or 1; the decoder gives the logit of P(pixel = 1)."""

    n_params = 1
    binary = True  # it scores 0/1 pixels: grey ones must be binarised first

    def forward(self, logits: Tensor) -> Distribution:
        """logits (B, C, H, W) -> Bernoulli with the same batch shape."""
        return torch.distributions.Bernoulli(logits=logits, validate_args=False)


class ExactContinuousBernoulli(torch.distributions.ContinuousBernoulli):
    """The library's distribution, exact for every logit.

    The library clamps probabilities: beyond a logit of 16, in single precision, its density no
    longer integrates to 1. With logit l the density on [0, 1] is exp(l x) / A(l),
    A(l) = (exp(l) - 1) / l, whose logarithm's derivatives are the mean and the variance.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), value in [0, 1]."""
        size, near_0, safe = self._sizes()
        # log A(l) = l/2 + l^2/24 - ...; else with the larger of 1 and exp(l) taken out
        taylor = size.square() / 24 - size.pow(4) / 2880 + size.pow(6) / 181_440
        small = self.logits * (value - 0.5) - taylor + size.pow(8) / 9_676_800
        from_end = torch.where(self.logits > 0, 1 - value, value)
        large = safe.log() - torch.log1p(-torch.exp(-safe)) - safe * from_end
        return torch.where(near_0, small, large)

    @property
    def mean(self) -> Tensor:
        """E[x] = 1 / (1 - exp(-l)) - 1 / l."""
        _, near_0, safe = self._sizes()
        small = self.logits.clamp(-1, 1)
        taylor = small / 12 - small.pow(3) / 720 + small.pow(5) / 30_240 - small.pow(7) / 1_209_600
        # the distance from the end that it is near to, 1 / l - 1 / (exp(l) - 1), the latter so
        # written that its gradient does not overflow
        near_end = 1 / safe + torch.exp(-safe) / torch.expm1(-safe)
        return torch.where(
            near_0, 0.5 + taylor, torch.where(self.logits > 0, 1 - near_end, near_end)
        )

    @property
    def variance(self) -> Tensor:
        """Var[x] = 1 / l^2 - 1 / (4 sinh^2(l/2))."""
        size, near_0, safe = self._sizes()
        taylor = 1 / 12 - size.square() / 240 + size.pow(4) / 6048 - size.pow(6) / 172_800
        # 4 sinh^2(l/2) = exp(l) (1 - exp(-l))^2
        exact = safe.pow(-2) - torch.exp(-safe) / torch.expm1(-safe).square()
        return torch.where(near_0, taylor, exact)

    def cdf(self, value: Tensor) -> Tensor:
        """P(x <= value), (exp(l value) - 1) / (exp(l) - 1)."""
        size = self.logits.abs().clamp(min=1e-6)
        # with exp(l) taken out where l > 0
        value = value.clamp(0, 1)
        shift = torch.where(self.logits > 0, torch.exp(-size * (1 - value)), 1.0)
        return shift * torch.expm1(-size * value) / torch.expm1(-size)

    def entropy(self) -> Tensor:
        """-E[log p(x)] = log A(l) - l E[x], in nats; as for -|l|, where E[x] keeps its digits."""
        mirrored = ExactContinuousBernoulli(logits=-self.logits.abs(), validate_args=False)
        return -mirrored.log_prob(mirrored.mean)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile at `value`, in [0, 1]; draws are quantiles of uniform numbers."""
        size = self.logits.abs().clamp(min=1e-6)
        u = torch.where(self.logits > 0, 1 - value, value)
        # from the end where the density is largest: -log(1 - u (1 - exp(-l))) / l
        # rounding can put it beyond the other end
        near_end = (-torch.log1p(u * torch.expm1(-size)) / size).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - near_end, near_end)

    def _sizes(self) -> tuple[Tensor, Tensor, Tensor]:
        """|l| where it is small, whether it is, and |l| kept from 0 for what divides by it."""
        size = self.logits.abs()
        near_0 = size < 1
        return size.clamp(max=1), near_0, torch.where(near_0, 1.0, size)


class ContinuousBernoulli(nn.Module):
    """Pixels anywhere in [0, 1]; Bernoulli's formula, normalised for that.

    Source: Loaiza-Ganem & Cunningham 2019, equations 1 and 2. Its mean is not the sigmoid of
    the logits.
    """

    n_params = 1
    binary = False

    def forward(self, logits: Tensor) -> Distribution:
        """logits (B, C, H, W) -> ContinuousBernoulli with the same batch shape."""
        return ExactContinuousBernoulli(logits=logits, validate_args=False)


class Gaussian(nn.Module):
    """Pixels are real numbers around the decoder's output, with one fixed sigma.

    Its log-density is a scaled squared error plus a constant:
    log N(x; mu, sigma^2) = -(x - mu)^2 / (2 sigma^2) - log sigma - log(2 pi)/2.
    `sigma` is in units of the pixel range, which is [0, 1].
    """

    n_params = 1
    binary = False

    def __init__(self, sigma: float = 0.5):
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma is {sigma}; a Gaussian needs sigma > 0")
        self.sigma = sigma

    def forward(self, mean: Tensor) -> Distribution:
        """mean (B, C, H, W) -> Normal with the same batch shape."""
        return torch.distributions.Normal(mean, self.sigma, validate_args=False)


class LearnedGaussian(nn.Module):
    """One sigma for all pixels, learned with the weights; `sigma` is where it starts.

    Its best value is the root mean squared error over pixels and images.
    Source: the sigma-VAE, Rybkin et al. 2021, section 4.
    """

    n_params = 1
    binary = False

    def __init__(self, sigma: float = 0.5):
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(Gaussian(sigma).sigma).log())

    @property
    def sigma(self) -> float:
        """Its present value."""
        return self.log_sigma.exp().item()

    def forward(self, mean: Tensor) -> Distribution:
        """mean (B, C, H, W) -> Normal with the same batch shape."""
        return torch.distributions.Normal(mean, self.log_sigma.exp(), validate_args=False)


class PixelGaussian(nn.Module):
    """A sigma for each pixel, from the decoder; never below `floor`, one grey level.

    Without a floor its density grows beyond all bounds where a pixel is constant.
    """

    n_params = 2
    binary = False
    floor = 1 / 256

    def forward(self, params: Tensor) -> Distribution:
        """means and raw scales (B, 2 C, H, W) -> Normal with batch shape (B, C, H, W)."""
        mean, raw = params.chunk(2, dim=-3)
        scale = self.floor + nn.functional.softplus(raw)
        return torch.distributions.Normal(mean, scale, validate_args=False)


class SigmoidGaussian(PixelGaussian):
    """As PixelGaussian, with its mean through a sigmoid, so that it is a grey level.

    Source of the sigmoid: Kingma & Welling 2014, section 5, the decoder for Frey Face.
    """

    def forward(self, params: Tensor) -> Distribution:
        """logits of means and raw scales (B, 2 C, H, W) -> Normal of shape (B, C, H, W)."""
        p_x = super().forward(params)
        return torch.distributions.Normal(p_x.loc.sigmoid(), p_x.scale, validate_args=False)


# a likelihood is a class here and a line in this list; its own parameters have defaults
LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "learned_gaussian": LearnedGaussian,
    "pixel_gaussian": PixelGaussian,
    "sigmoid_gaussian": SigmoidGaussian,
}


def log_likelihood(p_x: Distribution, x: Tensor) -> Tensor:
    """log p(x | z), summed over channels and pixels.

    Shapes: p_x over (..., C, H, W), x (B, C, H, W) -> (...). Units: nats per image.
    """
    # log p(x|z) = sum_i log p(x_i | z)
    return p_x.log_prob(x).sum(dim=(-3, -2, -1))


def bits_per_dimension(nats: float, n_pixels: int) -> float:
    """Bits per pixel and channel of 8-bit images, from -log of a density on [0, 1].

    The density must have been scored on dequantised pixels, (x + u) / 256 with u uniform; each
    then owns a cell of width 1/256, hence the ln 256. Source: Theis et al. 2016, section 3.1.
    """
    return (nats / n_pixels + math.log(256)) / math.log(2)


class Implied(NamedTuple):
    """The Gaussian ELBO that a recipe's loss is, up to a factor and a constant."""

    sigma: float  # of a pixel, on the scale where pixels go from 0 to 1
    beta: float


def translate(
    n_pixels: int,
    n_latents: int = 1,
    pixels: Literal["sum", "mean"] = "sum",
    latents: Literal["sum", "mean"] = "sum",
    error_weight: float = 1.0,
    kl_weight: float = 1.0,
    kl_half: bool = True,
    kl_per_pixel: bool = False,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    sigma: float = 1.0,
) -> Implied:
    """What sigma and beta a squared-error recipe amounts to.

    The recipe is error_weight * E + kl_weight * R, where E is the sum (or mean) of squared
    errors over C*H*W pixels and R the sum (or mean) over latent dimensions of the KL,
    with its half or without, over the number of pixels or not. A loss has an arbitrary
    factor, so sigma is fixed by convention: it is the recipe's own, 1 where it names
    none, in its own pixel range; what remains is beta.
    """
    error = error_weight / (n_pixels if pixels == "mean" else 1)
    kl = kl_weight * (1 if kl_half else 2)
    kl /= (n_latents if latents == "mean" else 1) * (n_pixels if kl_per_pixel else 1)
    # factor * loss = sum of errors / (2 sigma^2) + beta KL
    factor = 1 / (2 * sigma**2 * error)
    return Implied(sigma / (pixel_range[1] - pixel_range[0]), factor * kl)

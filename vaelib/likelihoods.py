"""How pixels are scored: p(x | z) as a `torch.distributions` object over (B, C, H, W).

A likelihood turns the decoder's output into a distribution. It says how many numbers per
pixel it wants (`n_params`), and `log_prob` and `mean` are then the library's own.
"""

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
        if not sigma > 0:
            raise ValueError(f"sigma is {sigma}; a Gaussian needs sigma > 0")
        self.sigma = sigma

    def forward(self, mean: Tensor) -> Distribution:
        """mean (B, C, H, W) -> Normal with the same batch shape."""
        return torch.distributions.Normal(mean, self.sigma, validate_args=False)


LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def log_likelihood(p_x: Distribution, x: Tensor) -> Tensor:
    """log p(x | z), summed over channels and pixels.

    Shapes: p_x over (..., C, H, W), x (B, C, H, W) -> (...). Units: nats per image.
    """
    # log p(x|z) = sum_i log p(x_i | z)
    return p_x.log_prob(x).sum(dim=(-3, -2, -1))

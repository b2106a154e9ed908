"""q(z | x): what the encoder's numbers mean, and how noise becomes a draw from it.

A posterior is made with the number of latent dimensions and its own parameters, which a recipe
sets by `posterior_args`; it says by `n_params` how many numbers it wants of the encoder.
"""

from functools import cached_property

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Normal

LOGVAR_RANGE = (-12.0, 8.0)  # keeps exp(logvar) finite while the first steps are wild


def normal(params: Tensor) -> Normal:
    """N(mu, diag sigma^2) of means and log-variances side by side: (B, 2 D) -> over (B, D)."""
    mean, logvar = params.chunk(2, dim=-1)  # (B, D) each
    # the slope passes the bounds, so that what has left the range can come back
    logvar = logvar.clamp(*LOGVAR_RANGE).detach() + (logvar - logvar.detach())
    return Normal(mean, (0.5 * logvar).exp(), validate_args=False)


def draw(q_z, eps: Tensor) -> Tensor:
    """A draw from q(z | x) for standard normal noise. Shapes: eps (B, D) or (K, B, D) -> same."""
    if isinstance(q_z, FlowPosterior):
        return q_z.draw(eps)
    # z = mu + sigma * eps
    return q_z.loc + q_z.scale * eps


class DiagonalNormal(nn.Module):
    """q(z | x) = N(mu(x), diag sigma^2(x))."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.n_params = 2 * latent_dim

    def forward(self, params: Tensor) -> Normal:
        return normal(params)


class InverseAutoregressive(nn.Module):
    """z = T(z0; h(x)), z0 from N(mu(x), diag sigma^2(x)): inverse autoregressive flow, zuko's.

    Each of `n_layers` scales and shifts a dimension by what a masked MLP (`n_hidden` layers of
    `hidden` ELU units) makes of those before it and of `n_context` numbers h(x) of the encoder;
    every second layer takes the dimensions in reverse. T begins as the identity; it is computed
    in fp32 always. Source: Kingma et al. 2016, section 3 and equation 10.
    """

    def __init__(
        self, latent_dim: int, n_layers: int = 2, hidden: int = 256, n_hidden: int = 2,
        n_context: int = 64,
    ):  # fmt: skip
        super().__init__()
        if latent_dim < 2:
            raise ValueError("posterior iaf needs dimensions that follow others: latent_dim is 1")
        if min(n_layers, hidden, n_hidden, n_context) < 1:
            raise ValueError(
                "posterior iaf: give n_layers, hidden, n_hidden and n_context of at least 1"
            )
        self.latent_dim, self.n_params = latent_dim, 2 * latent_dim + n_context
        sizes = {"hidden_features": [hidden] * n_hidden, "activation": nn.ELU}
        self.layers = nn.ModuleList()
        with torch.device("cpu"):  # zuko reads its masks, which it can't where there are no values
            for number in range(n_layers):
                order = torch.arange(latent_dim)
                order = order.flip(0) if number % 2 else order
                self.layers.append(
                    zuko.flows.MaskedAutoregressiveTransform(
                        latent_dim, n_context, order=order, **sizes
                    )
                )
                nn.init.zeros_(self.layers[-1].hyper[-1].weight)
                nn.init.zeros_(self.layers[-1].hyper[-1].bias)

    def forward(self, params: Tensor) -> "FlowPosterior":
        context = params[..., 2 * self.latent_dim :]  # (B, n_context)
        steps = [layer(context) for layer in self.layers]
        return FlowPosterior(normal(params[..., : 2 * self.latent_dim]), steps)


class FlowPosterior:
    """The distribution of z = T(z0), z0 from the Normal `base` (B, D), T the `steps` in turn.

    `loc` and `scale`, the mean and the deviation of each dimension, are Monte Carlo estimates
    from 64 draws, by noise that is the same for every image; from 8 where gradients are kept.
    """

    def __init__(self, base: Normal, steps: list):
        self.base, self.steps = base, steps
        self._drawn: tuple = (None, None)

    @torch.compiler.disable
    def draw(self, eps: Tensor) -> Tensor:
        """z for standard normal noise. Shapes: (B, D) or (K, B, D) -> the same."""
        z = self.base.loc + self.base.scale * eps
        log_q = self.base.log_prob(z).sum(-1)
        with torch.autocast(z.device.type, enabled=False):
            for step in self.steps:
                z, log_slope = step.call_and_ladj(z)
                log_q = log_q - log_slope
        self._drawn = z, log_q.unsqueeze(-1)
        return z

    @torch.compiler.disable
    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z | x), of all dimensions together: to be summed as a Normal's are.

        It is at hand for the latest draw; else the flow is inverted, dimension by dimension.
        Shapes: (..., B, D) -> (..., B, 1). Units: nats.
        """
        if z is self._drawn[0]:
            return self._drawn[1]
        log_slopes: Tensor | float = 0.0
        with torch.autocast(z.device.type, enabled=False):
            for step in reversed(self.steps):
                before = step.inv(z)
                log_slopes = log_slopes + step.log_abs_det_jacobian(before, z)
                z = before
        return (self.base.log_prob(z).sum(-1) - log_slopes).unsqueeze(-1)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        kept, n = self._drawn, 4 if torch.is_grad_enabled() else 32
        shape = (n, 1, self.base.loc.shape[-1])
        eps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.base.loc)
        with torch.no_grad():
            z = self.draw(torch.cat([eps, -eps]).expand(-1, len(self.base.loc), -1))
        self._drawn = kept
        return z.mean(0), z.std(0)

    @property
    def loc(self) -> Tensor:
        """(B, D)."""
        return self._moments[0]

    @property
    def scale(self) -> Tensor:
        """(B, D)."""
        return self._moments[1]


POSTERIORS = {"normal": DiagonalNormal, "iaf": InverseAutoregressive}

"""p(z): asked for `log_prob` and `sample` everywhere; a closed-form KL only where there is one."""

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence


class StandardNormal(nn.Module):
    """N(0, I) over D latent dimensions."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z). Shapes: (..., D) -> (...). Units: nats."""
        return Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` draws, on the generator's device (the CPU without one). Shapes: -> (n, D)."""
        device = generator.device if generator else None
        return torch.randn(n, self.latent_dim, generator=generator, device=device)

    def kl_per_dim(self, q_z: Normal) -> Tensor:
        """KL(q(z_d | x) || N(0, 1)) of each latent dimension.

        Shapes: q_z (B, D) -> (B, D). Units: nats. Source: Kingma & Welling 2014, appendix B.
        """
        prior = Normal(torch.zeros_like(q_z.loc), torch.ones_like(q_z.scale), validate_args=False)
        # (mu_d^2 + sigma_d^2 - 1 - log sigma_d^2) / 2
        return kl_divergence(q_z, prior)


PRIORS = {"standard": StandardNormal}

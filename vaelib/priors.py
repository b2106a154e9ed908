"""p(z): asked for `log_prob` and `sample` everywhere; a closed-form KL only where there is one.

A prior is made with the number of latent dimensions and its own parameters, which a recipe sets
by `prior_args`. One that needs more of its model has a method `belongs_to(model)`, and one that
begins with training images a method `start(images, seed)`.
"""

import math

import torch
import zuko
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


class VampPrior(nn.Module):
    """The mean of q(z | u_k) over `n_inputs` pictures u_k that are learned, the pseudo-inputs.

    It has the shape of the aggregate posterior, of which it is the cheap version: a mixture of
    K Gaussians where that has one for each training image. Source: Tomczak & Welling 2018,
    equation 9 (their pixels are clamped to [0, 1], these come through a sigmoid).
    """

    def __init__(self, latent_dim: int, n_inputs: int = 500):
        super().__init__()
        if n_inputs < 1:
            raise ValueError(f"prior vamp: n_inputs is {n_inputs}; give at least 1")
        self.latent_dim, self.n_inputs = latent_dim, n_inputs

    def belongs_to(self, model) -> None:
        """Take the encoder of `model` for q(z | u)."""
        if model.posterior_name != "normal":
            raise ValueError(
                f"prior vamp is a mixture of normals, and the posterior is {model.posterior_name}: "
                "take prior flow, or posterior normal"
            )
        self.logits = nn.Parameter(torch.randn(self.n_inputs, *model.image_shape))
        self.encode = model.encode
        self._kept: tuple = (None, None)

    def start(self, images: Tensor, seed: int = 0) -> None:
        """Begin with training images, drawn without repeats by the seed.

        Shapes: (N, C, H, W) uint8. Raises ValueError where there are fewer than pseudo-inputs.
        """
        if len(images) < self.n_inputs:
            raise ValueError(
                f"prior vamp: {self.n_inputs} pseudo-inputs can't begin as {len(images)} images; "
                f"give prior_args n_inputs, {len(images)} at most"
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        some = images[order[: self.n_inputs].to(images.device)]
        with torch.no_grad():
            self.logits.copy_((some.float() / 255).clamp(0.02, 0.98).logit())

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs u. Shapes: -> (K, C, H, W), in [0, 1]."""
        return self.logits.sigmoid()

    def components(self) -> Normal:
        """q(z | u_k) of every pseudo-input. Shapes: -> Normal (K, D)."""
        return self.encode(self.inputs) if torch.is_grad_enabled() else self._again()

    @torch.compiler.disable
    def _again(self) -> Normal:
        """The components as they were, while no weight that they depend on has changed.

        By the sums of the weights: fused optimisers do not raise a tensor's version.
        """
        weights = (self.logits, *self.encode.__self__.encoder.parameters())
        state = torch.stack([w.detach().double().sum() for w in weights]).tolist()
        state.append(torch.is_autocast_enabled(self.logits.device.type))  # bf16 rounds otherwise
        if self._kept[0] != state:
            self._kept = state, self.encode(self.inputs)
        return self._kept[1]

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z). Shapes: (..., D) -> (...). Units: nats."""
        each = self.components().log_prob(z.unsqueeze(-2)).sum(-1)  # (..., K)
        # log (1/K) sum_k q(z | u_k)
        return each.logsumexp(-1) - math.log(self.n_inputs)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` draws, on the generator's device (the CPU without one). Shapes: -> (n, D)."""
        parts, device = self.components(), generator.device if generator else None
        which = torch.randint(self.n_inputs, (n,), generator=generator, device=device)
        noise = torch.randn(n, self.latent_dim, generator=generator, device=device)
        return parts.loc.to(noise)[which] + parts.scale.to(noise)[which] * noise


class Flow(nn.Module):
    """z = f^-1(u), u from N(0, I): f is a RealNVP, `n_layers` affine couplings of zuko's.

    Each coupling scales and shifts every other dimension by what an MLP (`n_hidden` layers of
    `hidden` SiLU units) makes of the rest; f begins as the identity. Computed in fp32 always.
    Source: Dinh et al. 2017, equations 7 and 8; as a prior, Huang et al. 2017.
    """

    def __init__(self, latent_dim: int, n_layers: int = 8, hidden: int = 256, n_hidden: int = 2):
        super().__init__()
        if latent_dim < 2:
            raise ValueError("prior flow couples dimensions, and latent_dim is 1: take prior vamp")
        if min(n_layers, hidden, n_hidden) < 1:
            raise ValueError("prior flow: give n_layers, hidden and n_hidden of at least 1")
        self.latent_dim = latent_dim
        layers = {"hidden_features": [hidden] * n_hidden, "activation": nn.SiLU}
        with torch.device("cpu"):  # zuko counts its masks, which it can't where there are no values
            self.flow = zuko.flows.RealNVP(latent_dim, transforms=n_layers, **layers)
        for coupling in self.flow.transform.transforms:
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)

    @torch.compiler.disable
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z). Shapes: (..., D) -> (...). Units: nats."""
        with torch.autocast(z.device.type, enabled=False):
            # log N(f(z); 0, I) + log |det df/dz|
            return self.flow().log_prob(z.float())

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` draws, on the generator's device (the CPU without one). Shapes: -> (n, D)."""
        device = generator.device if generator else None
        u = torch.randn(n, self.latent_dim, generator=generator, device=device)
        to = next(self.parameters()).device
        with torch.autocast(to.type, enabled=False):
            return self.flow().transform.inv(u.to(to)).to(u.device)


class Fitted(nn.Module):
    """A density that was fitted to latents, to be set in the place of a model's prior."""

    def __init__(self, density: torch.distributions.Distribution):
        super().__init__()
        self.density = density

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z). Shapes: (..., D) -> (...). Units: nats."""
        return self.density.log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` draws, on the CPU. Shapes: -> (n, D)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.randint(2**62, (), generator=generator).item())
            return self.density.sample((n,))


@torch.inference_mode()
def spread(prior) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a prior in each dimension; by 10,000 draws, if not N(0, I).

    Shapes: -> (D,), (D,).
    """
    if isinstance(prior, StandardNormal):
        return torch.zeros(prior.latent_dim), torch.ones(prior.latent_dim)
    z = prior.sample(10_000, torch.Generator().manual_seed(0))
    return z.mean(0), z.std(0)


PRIORS = {"standard": StandardNormal, "vamp": VampPrior, "flow": Flow}

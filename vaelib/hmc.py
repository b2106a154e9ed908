"""Hamiltonian Monte Carlo: many chains side by side, each with a step size of its own.

Source: Duane et al. 1987; Neal 2011, "MCMC using Hamiltonian dynamics", sections 3 and 5.4.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vaelib.files import UserError

JITTER = 0.2  # each step size is drawn anew from 0.8 to 1.2 of itself: no orbit closes on itself


class SamplerError(UserError):
    """The sampler can't go on; the message gives its step size and its acceptance."""


class Draws(NamedTuple):
    """What `sample` returns; S draws of each of N chains."""

    z: Tensor  # (S, N, D)
    acceptance: Tensor  # (N,) mean probability of acceptance while they were drawn
    step_size: Tensor  # (N,)


def transition(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    step_size: Tensor,
    n_leapfrog: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """One proposal for each chain, taken or not; and the probability of taking it.

    `log_density` may lack a constant: z (N, D) -> (N,). A proposal at which it, or its gradient,
    is no finite number is never taken. Random numbers come from a generator on the CPU.
    Shapes: z (N, D), step_size (N,) -> (N, D), (N,); n_leapfrog at least 1. Raises SamplerError
    where a chain stands at such a place already.
    """
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    u, jitter = torch.rand(2, len(z), generator=generator, dtype=z.dtype).to(z.device)
    step = (step_size * (1 + JITTER * (2 * jitter - 1))).unsqueeze(1)  # (N, 1)
    before, slope = with_gradient(log_density, z)
    if not _finite(before, slope).all():
        raise SamplerError(
            f"the sampler stands where the log-density or its gradient is not finite, in "
            f"{int((~_finite(before, slope)).sum())} of {len(z)} chains (step size "
            f"{step_size.median():.3g}); start elsewhere"
        )
    # leapfrog: half a step of the momentum, whole steps of both in turns, half a step
    proposal, momentum = z, noise + 0.5 * step * slope
    sound = torch.ones_like(step, dtype=torch.bool)  # of orbits that have left, no more is asked
    for i in range(n_leapfrog):
        moved = proposal + step * momentum
        sound = sound & moved.isfinite().all(1, keepdim=True)
        proposal = torch.where(sound, moved, z)
        after, slope = with_gradient(log_density, proposal)
        sound = sound & _finite(after, slope).unsqueeze(1)
        momentum = momentum + (0.5 if i == n_leapfrog - 1 else 1.0) * step * slope
    # accept with probability min(1, exp(H(z, p) - H(z', p'))), H = -log density + |p|^2 / 2
    change = after - before + 0.5 * (noise.square() - momentum.square()).sum(1)
    sound = sound.squeeze(1) & change.isfinite()
    acceptance = torch.where(sound, change.clamp(max=0).exp(), 0.0)
    return torch.where((u < acceptance).unsqueeze(1), proposal, z), acceptance


def adapted(
    step_size: Tensor, acceptance: Tensor, number: int | Tensor, target: float = 0.9
) -> Tensor:
    """The step sizes after adaptation number `number` (from 1 on), towards the target acceptance.

    Robbins-Monro on the logarithm, by ever smaller amounts.
    Shapes: (N,), (N,), () or (N,) -> (N,). Source: Andrieu & Thoms 2008, on adaptive MCMC.
    """
    # log s <- log s + t^-0.6 (a - target)
    return step_size * (number**-0.6 * (acceptance - target)).exp()


def sample(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    n_samples: int,
    n_leapfrog: int = 4,
    n_adapt: int = 500,
    thin: int = 1,
    step_size: float | Tensor = 0.1,
    target: float = 0.9,
    seed: int = 0,
) -> Draws:
    """Draws of each chain after `n_adapt` transitions that move there and settle the step sizes.

    Of every `thin` transitions the last is kept. Raises SamplerError where a chain takes fewer
    than one proposal in five after that.
    Shapes: log_density z (N, D) -> (N,), z (N, D), step_size () or (N,) -> see `Draws`.
    """
    if min(n_samples, n_leapfrog, thin) < 1:
        raise ValueError(
            f"n_samples {n_samples}, n_leapfrog {n_leapfrog}, thin {thin}: give at least 1 of each"
        )
    generator = torch.Generator().manual_seed(seed)
    step_size = torch.as_tensor(step_size, dtype=z.dtype, device=z.device).expand(len(z))
    for number in range(1, n_adapt + 1):
        z, acceptance = transition(log_density, z, step_size, n_leapfrog, generator)
        step_size = adapted(step_size, acceptance, number, target)
    kept, total = [], torch.zeros_like(step_size)
    for number in range(n_samples * thin):
        z, acceptance = transition(log_density, z, step_size, n_leapfrog, generator)
        total = total + acceptance
        if number % thin == thin - 1:
            kept.append(z)
    acceptance = total / (n_samples * thin)
    refuse_stuck(acceptance, step_size)
    return Draws(torch.stack(kept), acceptance, step_size)


def refuse_stuck(acceptance: Tensor, step_size: Tensor, least: float = 0.2) -> None:
    """SamplerError where a chain takes too few proposals to draw from the density. Shapes: (N,)."""
    if (stuck := acceptance < least).any():
        raise SamplerError(
            f"the sampler is stuck in {int(stuck.sum())} of {len(stuck)} chains: acceptance "
            f"{acceptance[stuck].min():.3f} with step size {step_size[stuck].max():.3g}; give it a "
            "smaller step size, more adaptation, or a smoother density"
        )


def with_gradient(log_density: Callable, z: Tensor) -> tuple[Tensor, Tensor]:
    """log density and its gradient. Shapes: z (..., D) -> (...), (..., D)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = log_density(z)
        (slope,) = torch.autograd.grad(values.sum(), z)
    return values.detach(), slope


def _finite(values: Tensor, slope: Tensor) -> Tensor:
    """Which chains have a finite density and gradient. Shapes: (N,), (N, D) -> (N,)."""
    return values.isfinite() & slope.isfinite().all(1)

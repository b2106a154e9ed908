"""Paths and grids through latent space: tensors in, tensors out."""

from typing import Literal

import torch
from torch import Tensor


def linear(z_start: Tensor, z_end: Tensor, n: int) -> Tensor:
    """`n` points on the straight line from one latent to another, both included.

    Shapes: (D,), (D,) -> (n, D).
    """
    t = torch.linspace(0, 1, n, device=z_start.device).unsqueeze(1)  # (n, 1)
    # z(t) = (1 - t) z_start + t z_end
    return (1 - t) * z_start + t * z_end


def spherical(z_start: Tensor, z_end: Tensor, n: int) -> Tensor:
    """`n` points on the arc from one latent to another, both included.

    In many dimensions prior draws lie near a sphere of radius sqrt(D), and the middle of a
    straight line between two of them does not; the arc keeps to the sphere.
    Shapes: (D,), (D,) -> (n, D). Source: Shoemake 1985; for latents, White 2016.
    """
    cosine = torch.dot(z_start, z_end) / (z_start.norm() * z_end.norm()).clamp_min(1e-12)
    angle = torch.acos(cosine.clamp(-1, 1))
    if torch.sin(angle) < 1e-4:  # same or opposite direction: the arc is a line, or any
        return linear(z_start, z_end, n)
    t = torch.linspace(0, 1, n, device=z_start.device).unsqueeze(1)  # (n, 1)
    # z(t) = [sin((1 - t) w) z_start + sin(t w) z_end] / sin(w), w the angle between them
    return (torch.sin((1 - t) * angle) * z_start + torch.sin(t * angle) * z_end) / torch.sin(angle)


def traversal(z: Tensor, dim: int, values: Tensor) -> Tensor:
    """Copies of one latent with one dimension set to each of `values`.

    Shapes: z (D,), values (n,) -> (n, D).
    """
    path = z.repeat(len(values), 1)  # (n, D)
    path[:, dim] = values
    return path


def manifold(
    n: int, spacing: Literal["inverse_cdf", "linear"] = "inverse_cdf", limit: float = 3.0
) -> Tensor:
    """An n x n grid over a 2-D latent space, row by row from the top left.

    "inverse_cdf" puts equal prior probability between neighbours (Kingma & Welling 2014,
    appendix A); "linear" spaces them evenly on [-limit, limit].
    Shapes: -> (n * n, 2); z[:, 0] grows to the right, z[:, 1] upwards.
    """
    if spacing == "inverse_cdf":
        # z = Phi^-1(u), u = (i + 1/2) / n
        axis = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    else:
        axis = torch.linspace(-limit, limit, n)
    down, right = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    return torch.stack([right, down], dim=-1).reshape(-1, 2)


def order_by_kl(kl_per_dim: Tensor) -> Tensor:
    """Latent dimensions from the one that carries most nats to the one that carries least.

    Shapes: (B, D) nats -> (D,) int64.
    """
    return kl_per_dim.mean(0).argsort(descending=True)

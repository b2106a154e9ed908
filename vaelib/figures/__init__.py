"""One function per kind of picture. Each returns a Figure; none shows or writes anything."""

from vaelib.figures.charts import (
    latent_histogram,
    latent_map,
    latent_maps,
    latent_plane,
    latent_variance,
    loss_curve,
    mismatch,
    prior_contours,
)
from vaelib.figures.grids import (
    image_grid,
    interpolations,
    manifold,
    reconstructions,
    samples,
    tile,
    traversals,
)
from vaelib.figures.network import architecture
from vaelib.figures.style import BLUE, CLASSES, GREY, ORANGE, Figure, colours, finite, look

__all__ = [
    "BLUE", "CLASSES", "GREY", "ORANGE", "Figure", "architecture", "colours", "finite",
    "image_grid", "interpolations", "latent_histogram", "latent_map", "latent_maps",
    "latent_plane", "latent_variance", "look", "loss_curve", "manifold", "mismatch",
    "prior_contours", "reconstructions", "samples", "tile", "traversals",
]  # fmt: skip

"""Variational autoencoders to see, touch and check.

The modules in the order of their dependencies; each imports only those before it:
blocks, likelihoods, models, objectives, data, evaluation, checkpoints, recipes, training, latents,
figures, gallery, widgets, exercises, __main__.
"""

from vaelib.checkpoints import load_checkpoint
from vaelib.data import DataError, load
from vaelib.evaluation import evaluate
from vaelib.models import VAE, CheckpointError
from vaelib.training import TrainConfig, TrainingError, fit

__all__ = [
    "VAE",
    "CheckpointError",
    "DataError",
    "TrainConfig",
    "TrainingError",
    "evaluate",
    "fit",
    "load",
    "load_checkpoint",
]

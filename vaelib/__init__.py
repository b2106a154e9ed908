"""Variational autoencoders to see, touch and check.

The rooms in reading order; each imports only those before it: files, choices, recipes, blocks,
likelihoods, priors, models, objectives, data, hardware, evaluation, checkpoints, diagnosis,
stream, run, training, experiments, latents, figures, film, gallery, widgets, exercises, export,
publishing, arguments, __main__.
"""

from vaelib.checkpoints import load_checkpoint
from vaelib.data import DataError, load
from vaelib.diagnosis import TrainingError
from vaelib.evaluation import evaluate
from vaelib.files import CheckpointError
from vaelib.models import VAE
from vaelib.recipes import TrainConfig
from vaelib.training import fit

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

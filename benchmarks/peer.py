"""A peer to compare with: pythae's VAE (https://pypi.org/project/pythae) in its default training.

`pip install pythae` beside this project; the benchmarks leave it out where it is not there. Its
defaults: an MLP 784-512-10, Adam at 1e-4, batches of 64. Two things are ours: the reconstruction
is scored by cross-entropy, not squared errors, and the pixels are binarised (once, before
training), so that the nats are those of the same likelihood.
"""

import json
import sys
import tempfile
import time
from types import SimpleNamespace

import psutil
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn
from torch.distributions import Bernoulli, Normal

import vaelib
from vaelib import evaluation
from vaelib.data import binarise
from vaelib.priors import StandardNormal


class TimeIsUp(Exception):
    """Ends the training."""


class Clock(TrainingCallback):
    """Counts the steps, and ends the training some seconds after the process began."""

    def __init__(self, seconds: float):
        self.seconds, self.steps = seconds, 0

    def on_train_step_end(self, training_config, **kwargs):
        self.steps += 1
        if time.time() - psutil.Process().create_time() > self.seconds:
            raise TimeIsUp


class Seen(nn.Module):
    """Its model as `evaluation.elbo_terms` asks it."""

    image_shape = (1, 28, 28)

    def __init__(self, model: VAE):
        super().__init__()
        self.model, self.latent_dim = model, model.latent_dim
        self.prior = StandardNormal(self.latent_dim)
        self.likelihood = SimpleNamespace(binary=True)

    def forward(self, x, eps):
        found = self.model.encoder(x)
        q_z = Normal(found.embedding, (0.5 * found.log_covariance).exp(), validate_args=False)
        z = q_z.loc + q_z.scale * eps
        probs = self.model.decoder(z.flatten(0, -2)).reconstruction.unflatten(0, z.shape[:-1])
        return q_z, z, Bernoulli(probs=probs.clamp(1e-6, 1 - 1e-6), validate_args=False)


def main(seconds: float, seed: int) -> None:
    """Train until so many seconds after this process began; print test -ELBO as JSON."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x = binarise(vaelib.load("mnist", "train").images, generator)
    model = VAE(VAEConfig(input_dim=(1, 28, 28), reconstruction_loss="bce"))
    clock = Clock(seconds)
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            model, BaseDataset(x, torch.zeros(len(x))), None,
            BaseTrainerConfig(output_dir=folder, no_cuda=True, seed=seed), [clock],
        )  # fmt: skip
        try:
            trainer.train(log_output_dir=folder)
        except TimeIsUp:
            wall = time.time() - psutil.Process().create_time()
    digits = vaelib.load("mnist", "test")
    nats = -evaluation.elbo_terms(Seen(trainer.model).eval(), digits)[0].elbo.mean().item()
    print(json.dumps({"nats": nats, "wall": wall, "images": 64 * clock.steps}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

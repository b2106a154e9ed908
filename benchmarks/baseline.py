"""The plain way, to compare with: DataLoader, ToTensor, Adam 1e-3, batch 128, fp32, eager.

The model is a 784-400-20 MLP with ReLU, as in many a tutorial; the loop trains any model that
gives its pixels' logits and q(z | x), so that the same model can go through both loops.
"""

import json
import sys
import time

import psutil
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToPILImage, ToTensor

from vaelib.priors import StandardNormal


class Plain(nn.Module):
    """784-400-20-400-784; `encode` and `decode` give distributions, as `vaelib.VAE`'s do."""

    image_shape, latent_dim = (1, 28, 28), 20

    def __init__(self):
        super().__init__()
        self.likelihood = nn.Identity()
        self.likelihood.binary = True
        self.prior = StandardNormal(20)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40)
        )
        self.decoder = nn.Sequential(
            nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28))
        )

    def encode(self, x):
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        return Normal(mean, (0.5 * logvar).exp(), validate_args=False)

    def decode(self, z):
        return Bernoulli(logits=self.decoder(z), validate_args=False)

    def forward(self, x, eps):
        q_z = self.encode(x)
        z = q_z.loc + q_z.scale * eps
        return q_z, z, self.decode(z)


class Pictures(Dataset):
    """uint8 images one by one through PIL and a transform, as torchvision's MNIST gives them."""

    def __init__(self, images):
        self.images, self.to_picture, self.transform = images, ToPILImage(), ToTensor()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.to_picture(self.images[index]))


def train(model, images, seconds: float, batch_size: int = 128) -> int:
    """Train for so many seconds of its own loop; returns how many images it saw."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Pictures(images), batch_size, shuffle=True)
    seen, end = 0, time.perf_counter() + seconds
    while True:
        for grey in loader:
            x = torch.bernoulli(grey)
            optimizer.zero_grad()
            q_z, _, p_x = model(x, torch.randn(len(x), model.latent_dim))
            error = binary_cross_entropy_with_logits(p_x.logits, x, reduction="sum")
            prior = Normal(torch.zeros_like(q_z.loc), torch.ones_like(q_z.scale))
            loss = (error + kl_divergence(q_z, prior).sum()) / len(x)
            loss.backward()
            optimizer.step()
            seen += len(x)
            if time.perf_counter() > end:
                return seen


@torch.no_grad()
def evaluate(model, images, batch_size: int = 128) -> float:
    """Mean one-sample ELBO in nats, batch by batch through the same DataLoader."""
    total = 0.0
    for grey in DataLoader(Pictures(images), batch_size):
        x = torch.bernoulli(grey)
        q_z, _, p_x = model(x, torch.randn(len(x), model.latent_dim))
        prior = Normal(torch.zeros_like(q_z.loc), torch.ones_like(q_z.scale))
        total += (p_x.log_prob(x).sum() - kl_divergence(q_z, prior).sum()).item()
    return total / len(images)


def main(seconds: float, seed: int) -> None:
    """Train until so many seconds after this process began; print test -ELBO as JSON."""
    import vaelib
    from vaelib import evaluation

    torch.manual_seed(seed)
    model, images = Plain(), vaelib.load("mnist", "train").images
    passed = time.time() - psutil.Process().create_time()
    seen = train(model, images, seconds - passed)
    wall = time.time() - psutil.Process().create_time()
    digits = vaelib.load("mnist", "test")
    nats = -evaluation.elbo_terms(model.eval(), digits)[0].elbo.mean().item()
    print(json.dumps({"nats": nats, "wall": wall, "images": seen}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

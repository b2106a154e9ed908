"""How far a model's samples are from held-out images: what a classifier can tell, and Frechet's.

No network is downloaded: `two_sample` trains its classifier anew for each question, and the
Frechet distance is taken in the features of a digit classifier of ours, classifier.safetensors,
which `python -m vaelib.samples` trains and writes.
"""

import itertools
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from vaelib import data, files
from vaelib.data import Images, seen_by
from vaelib.data.images import binarise
from vaelib.evaluation import posteriors
from vaelib.wake_sleep import dream

CLASSIFIER = Path(__file__).parent / "classifier.safetensors"


class Convnet(nn.Module):
    """Three convolutions that halve the picture, each channel's largest value, a linear map."""

    def __init__(self, channels: int, n_classes: int, width: int = 16):
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width)
        layers = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, 4 * width)."""
        return self.layers(x).amax((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train(net: nn.Module, images, labels: Tensor, n_steps: int, seed: int, batch: int = 100):
    """Adam on the cross-entropy, its rate falling to 0. `images(indices)` gives (B, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, n_steps)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(n_steps):
        if len(order) < batch:
            order = torch.randperm(len(labels), generator=generator)
        some, order = order[:batch], order[batch:]
        loss = nn.functional.cross_entropy(net(images(some)), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def two_sample(a: Tensor, b: Tensor, seed: int = 0, n_steps: int = 300) -> list[float]:
    """How often a classifier tells images of `a` from those of `b`: 0.5 where it can't.

    A small convolutional network learns from every second one of both and is asked of the others.
    Shapes: a and b (N, C, H, W), as many of each, at least four.
    Returns [accuracy, its standard error were it 0.5]. Source: Lopez-Paz & Oquab 2017, section 3.
    """
    if a.shape != b.shape or len(a) < 4:
        raise ValueError(
            f"images of shape {tuple(a.shape)} and {tuple(b.shape)}: give as many of each, of one "
            "size, four at least"
        )
    known, asked = (torch.cat([a[first::2], b[first::2]]).float() for first in (0, 1))
    mean, std = known.mean(), known.std().clamp_min(1e-6)
    labels, truth = (torch.arange(len(x)) // (len(x) // 2) for x in (known, asked))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Convnet(known.shape[1], 2)
    train(net, ((known - mean) / std).__getitem__, labels, n_steps, seed)
    with torch.inference_mode():
        said = torch.cat([net((x - mean) / std).argmax(1) for x in asked.split(500)])
    return [(said == truth).double().mean().item(), math.sqrt(0.25 / len(asked))]


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two sets of features: of the Gaussians with their means and covariances.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). Shapes: (N, F), (M, F), in float64 inside.
    Source: Heusel et al. 2017, equation 6; their features are of another network.
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((t.double().mean(0), t.double().T.cov()) for t in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # tr (C_a C_b)^(1/2) is that of the symmetric (C_a^(1/2) C_b C_a^(1/2))^(1/2)
    middle = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * middle).item()


def classifier() -> Convnet:
    """The digit classifier, of binarised digits."""
    net = Convnet(1, 10, 32)
    net.load_state_dict(files.read_tensors(CLASSIFIER)[0])
    return net.eval()


@torch.inference_mode()
def features(net: Convnet, x: Tensor) -> Tensor:
    """Shapes: (N, 1, 28, 28) -> (N, 128)."""
    return torch.cat([net.features(some) for some in x.split(500)])


@torch.inference_mode()
def drawn(model, z: Tensor, seed: int, mean: bool = False) -> Tensor:
    """p(x | z) at some z: a draw, or the mean. Shapes: (N, D) -> (N, C, H, W) on the CPU."""
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    parts = [some.to(device) for some in z.split(100)]
    found = [model.decode(z).mean if mean else dream(model, z, generator) for z in parts]
    return torch.cat([x.cpu() for x in found])


def of_model(model, images: Images, seed: int = 0, n: int = 1000) -> dict:
    """How a model's samples stand to held-out images.

    `two_sample`, n draws from p(x | z) p(z) against n images (or all, of fewer), drawn by the seed,
    as the model sees them, whose noise alone may tell; `two_sample_means`, the means of p(x | z) at
    prior draws against those at the images' own means of q(z | x); and of binarised digits
    `frechet`, of as many draws as there are images.
    """
    check(images)
    n = min(n, len(images))
    digits = model.image_shape == (1, 28, 28) and model.likelihood.binary
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)  # or they come digit by digit
    images = images[order if digits else order[:n]]
    x = seen_by(model, images.images.cpu(), generator)
    z = model.prior.sample(len(images), generator)
    codes = posteriors(model, images.subset(n)).loc
    draws = drawn(model, z, seed)
    found = {
        "n": n,
        "two_sample": two_sample(x[:n], draws[:n], seed),
        "two_sample_means": two_sample(*(drawn(model, t, seed, True) for t in (codes, z[:n]))),
    }
    if digits:
        net = classifier()
        found["frechet"] = frechet(features(net, x), features(net, draws))
    return found


def check(images: Images, least: int = 100) -> None:
    """ValueError where there are too few images for `of_model`."""
    if len(images) < least:
        raise ValueError(f"{images.title} has {len(images):,} images; samples need {least:,}")


def main() -> None:
    """Train the digit classifier on MNIST, dynamically binarised, and write it as fp16."""
    digits, test = data.load("mnist", "train"), data.load("mnist", "test")
    torch.manual_seed(0)
    generator, net = torch.Generator().manual_seed(0), Convnet(1, 10, 32)
    train(net, lambda i: binarise(digits.images[i], generator), digits.labels, 3000, 0)
    files.write_tensors(CLASSIFIER, {k: w.half() for k, w in net.state_dict().items()})
    net, x = classifier(), binarise(test.images, generator)
    with torch.inference_mode():
        right = (net(x).argmax(1) == test.labels).float().mean()
    order = torch.randperm(len(digits), generator=generator)[: len(test)]
    theirs = features(net, binarise(digits.images[order], generator))
    distance = frechet(theirs, features(net, x))
    print(f"{CLASSIFIER}: {right:.4f} of the test digits are right")
    print(f"Frechet distance of as many training digits to them: {distance:.1f}")


if __name__ == "__main__":
    main()

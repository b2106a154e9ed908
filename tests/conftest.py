"""What the tests share: no network, few threads, digits that are always at hand."""

import pytest
import torch

from vaelib import data
from vaelib.models import VAE


@pytest.fixture(scope="session")
def digits() -> data.Images:
    """The 1,000 validation digits of mnist-5k."""
    return data.load("mnist-5k", "val")


@pytest.fixture
def small_vae() -> VAE:
    """A convolutional VAE small enough for a test, with weights that matter everywhere."""
    torch.manual_seed(0)
    model = VAE(latent_dim=3, widths=(8, 16))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()

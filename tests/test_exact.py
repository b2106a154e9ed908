"""log p(x) by quadrature: against all images there are, and against draws from the prior."""

import itertools
import math

import pytest
import torch

from vaelib import VAE, exact, priors
from vaelib.likelihoods import log_likelihood


def steep(latent_dim: int = 2, **keys) -> VAE:
    torch.manual_seed(3)
    model = VAE((1, 2, 3), latent_dim, "mlp", hidden=16, **keys)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # so that z says something of x
    return model.eval()


def images() -> torch.Tensor:
    """All 64 images of 2 x 3 pixels."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, 1, 2, 3)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_probabilities_of_all_images_sum_to_one(latent_dim):
    log_px = exact.log_px(steep(latent_dim), images())
    assert log_px.shape == (64,)
    assert log_px.std() > 0.5
    assert abs(log_px.logsumexp(0)) < 1e-5


def test_it_is_the_mean_of_p_x_given_z_over_the_prior():
    model, x = steep(), images()[::7]
    z = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p_x = model.decode(z)
        given_z = torch.stack([log_likelihood(p_x, image[None]) for image in x])
    drawn = given_z.double().logsumexp(1) - math.log(len(z))
    assert (exact.log_px(model, x) - drawn).abs().max() < 0.02
    assert (exact.log_px(model, x, spacing=0.1, chunk=77) - drawn).abs().max() < 0.02


def test_it_is_the_same_where_the_prior_lies_elsewhere():
    model, x = steep(), images()[::5]
    expected = exact.log_px(model, x)
    # z' = 3 z + (8, -20): another prior, and a decoder that takes it back
    shift, plain = torch.tensor([8.0, -20.0]), model.decoder
    model.decoder = torch.nn.Sequential(Back(shift), plain)
    density = torch.distributions.MultivariateNormal(shift, 9 * torch.eye(2))
    model.prior = priors.Fitted(density)
    torch.testing.assert_close(exact.log_px(model, x), expected, rtol=0, atol=2e-4)


class Back(torch.nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, z):
        return (z - self.shift) / 3


def test_what_it_can_not_integrate_is_refused():
    with pytest.raises(ValueError, match="3 latents and pixels that are coin flips: the grid is"):
        exact.log_px(steep(3), images())
    with pytest.raises(ValueError, match="2 latents and pixels that are densities: the grid is"):
        exact.log_px(steep(2, likelihood="gaussian"), images())

"""Blocks and models: shapes, and no way from x to the picture but through z."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vaelib.blocks import ConvBlock, Downsample, ResidualBlock, Upsample
from vaelib.models import VAE

SIZES = [(28, 28), (28, 20), (32, 32), (64, 64), (128, 128), (27, 33)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("widths", [(8, 16), (4, 8, 16)])
def test_unet_returns_the_input_size(size, channels, widths):
    model = VAE((channels, *size), latent_dim=5, widths=widths)
    x = torch.rand(2, channels, *size)
    q_z = model.encode(x)
    assert q_z.batch_shape == (2, 5)
    assert model.decode(q_z.loc).mean.shape == x.shape
    assert model.decode(torch.randn(4, 2, 5)).mean.shape == (4, *x.shape)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_mlp_is_the_papers_pair_of_one_hidden_layer(likelihood):
    model = VAE((1, 28, 20), latent_dim=2, backbone="mlp", hidden=200, likelihood=likelihood)
    # two weight matrices and biases a side: 560 -> 200 -> 4, and 2 -> 200 -> 560
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [561 * 200 + 201 * 4, 3 * 200 + 201 * 560]
    assert model.decode(torch.zeros(3, 2)).mean.shape == (3, 1, 28, 20)
    x = torch.rand(1, 1, 28, 20)
    w, b = model.encoder.hidden[0].weight, model.encoder.hidden[0].bias
    hidden = torch.tanh(x.reshape(1, -1) @ w.T + b)
    expected = hidden @ model.encoder.to_latent.weight[:2].T + model.encoder.to_latent.bias[:2]
    torch.testing.assert_close(model.encode(x).loc, expected)


def test_mlp_with_two_hidden_layers_is_the_iwae_papers():
    # Burda et al. 2016: 784 - 200 - 200 - 50 latents - 200 - 200 - 784
    model = VAE(latent_dim=50, backbone="mlp", hidden=200, n_hidden=2)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [785 * 200 + 201 * 200 + 201 * 100, 51 * 200 + 201 * 200 + 201 * 784]
    with pytest.raises(ValueError, match="at least 1 of each"):
        VAE(backbone="mlp", n_hidden=0)


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (ConvBlock(8, 16), (16, 9, 7)),
        (Downsample(8, 16), (16, 5, 4)),
        (Upsample(8, 16), (16, 18, 14)),
        (ResidualBlock(8), (8, 9, 7)),
    ],
)
def test_block_shapes(block, shape):
    assert block(torch.randn(2, 8, 9, 7)).shape == (2, *shape)


def test_unet_has_the_parameters_on_paper():
    # 3x3 convolutions, with a bias where no norm follows; a norm has a scale and a shift
    def conv(n_in, n_out, bias=True):
        return 9 * n_in * n_out + n_out * bias

    def norm(n):
        return 2 * n

    a, b, d, pixels = 8, 16, 3, 7 * 7
    block = norm(b) + conv(b, b, False) + norm(b) + conv(b, b)  # one residual block
    narrow = conv(a, a, False) + norm(a)
    encoder = conv(1, a) + narrow + conv(a, b) + block + norm(b) + (pixels * b + 1) * 2 * d
    decoder = (d + 1) * pixels * b + block + norm(b) + conv(b, 4 * a) + narrow + conv(a, 4)
    model = VAE(latent_dim=d, widths=(a, b))
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [encoder, decoder]


def test_residual_block_starts_as_the_identity():
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(ResidualBlock(8)(x), x)


def test_pixel_shuffle_layout():
    # the four channels of one output channel become a 2x2 square, row by row
    up = Upsample(1, 1)
    torch.nn.init.zeros_(up.conv.weight)
    up.conv.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(
        up(torch.zeros(1, 1, 1, 1)), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    )


@pytest.mark.parametrize("backbone", ["unet", "mlp"])
def test_no_path_from_x_to_the_picture_but_z(backbone):
    torch.manual_seed(0)
    model = VAE(latent_dim=4, backbone=backbone, widths=(8, 16))
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    eps = torch.randn(2, 4)
    _, z, p_x = model(x, eps)
    # through z the picture does depend on x ...
    assert torch.autograd.grad(p_x.mean.sum(), x, retain_graph=True)[0].abs().sum() > 0
    # ... and with z held, not at all
    held = model.decode(z.detach()).mean
    torch.testing.assert_close(held, p_x.mean)
    assert torch.autograd.grad(held.sum(), x, allow_unused=True)[0] is None


def test_images_of_a_batch_do_not_see_each_other(small_vae):
    x = torch.rand(4, 1, 28, 28)
    alone = torch.cat([small_vae.encode(image.unsqueeze(0)).loc for image in x])
    torch.testing.assert_close(small_vae.encode(x).loc, alone, rtol=1e-4, atol=1e-5)


def test_wrong_arguments_say_what_is_right():
    with pytest.raises(ValueError, match="choose unet or mlp"):
        VAE(backbone="resnet")
    with pytest.raises(ValueError, match="choose one of bernoulli"):
        VAE(likelihood="poisson")
    with pytest.raises(ValueError, match="sigma > 0"):
        VAE(likelihood="gaussian", sigma=0.0)
    with pytest.raises(ValueError, match=r"this model takes \(B, 1, 28, 28\)"):
        VAE(widths=(8, 16)).encode(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match="this model has D = 2"):
        VAE(widths=(8, 16)).decode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="widths"):
        VAE(widths=())
    with pytest.raises(ValueError, match="widths"):
        VAE(widths=(8, 0))


@pytest.mark.parametrize(("start", "bound"), [(30.0, 8.0), (1e30, 8.0), (-30.0, -12.0)])
def test_a_log_variance_beyond_its_bounds_is_bounded_and_comes_back(start, bound):
    torch.manual_seed(0)
    model = VAE((1, 4, 4), 2, "mlp", hidden=4)
    to_latent = model.encoder.to_latent
    with torch.no_grad():
        to_latent.bias[2:] = start
    x = torch.rand(8, 1, 4, 4)
    q_z = model.encode(x)
    torch.testing.assert_close(q_z.scale.log(), torch.full((8, 2), bound / 2))
    kl = kl_divergence(q_z, Normal(torch.zeros(2), 1.0)).sum()
    (slope,) = torch.autograd.grad(kl, to_latent.bias)
    # d KL / d logvar = (exp(logvar) - 1) / 2, at the bound: it pushes back inside
    torch.testing.assert_close(slope[2:], torch.full((2,), 4 * (math.exp(bound) - 1)))

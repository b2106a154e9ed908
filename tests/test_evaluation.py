"""Numbers of a block of metrics at their limits, and the lines that show them."""

import math

import pytest
import torch
from torch.distributions import Normal

from vaelib import evaluation, reports
from vaelib.data import Images
from vaelib.models import VAE


def test_a_dimension_is_active_above_a_hundredth():
    # two values a and -a have the variance 2 a^2 (over N - 1): 0.0098 and 0.0102
    means = torch.tensor([[0.07, 0.0714], [-0.07, -0.0714]])
    assert evaluation.active_units(Normal(means, torch.ones(2, 2))) == 1


@pytest.mark.parametrize(
    ("shape", "small"),
    [((1, 32, 32), True), ((3, 32, 32), True), ((1, 16, 64), True), ((1, 33, 32), False)],
)
def test_larger_images_have_less_of_the_bound_to_compute(shape, small):
    found = evaluation.quick(VAE(shape, backbone="mlp", hidden=1))
    assert found == evaluation.quick(VAE((1, 1, 1) if small else (1, 64, 64), widths=(1,)))
    more = evaluation.quick(VAE((1, 1, 1), widths=(1,)))
    less = evaluation.quick(VAE((1, 64, 64), widths=(1,)))
    assert all(less[key] < more[key] for key in more)


def test_psnr_counts_what_lies_outside_the_range_as_its_end():
    # decoded far above and far below: white and black, 5 levels from the images
    model = VAE((1, 2, 2), 1, "mlp", hidden=1, likelihood="gaussian").eval()
    model.decode = lambda z: model.likelihood(z.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2))
    q_z = Normal(torch.tensor([[7.0], [-7.0]]), torch.ones(2, 1))
    levels = torch.tensor([250, 5], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    found = evaluation.psnr(model, Images("made-up", "test", levels), q_z)
    torch.testing.assert_close(found, torch.full((2,), 10 * math.log10(255**2 / 25)))


def test_a_block_has_the_nats_of_each_dimension_and_its_report_every_number():
    torch.manual_seed(0)
    model = VAE((1, 6, 6), 3, "mlp", hidden=4, likelihood="learned_gaussian", sigma=0.125).eval()
    images = Images("made-up", "test", torch.randint(256, (9, 1, 6, 6), dtype=torch.uint8))
    block = evaluation.evaluate(model, images, 2, 4)
    assert len(block["kl_per_dim"]) == 3
    assert sum(block["kl_per_dim"]) == pytest.approx(block["kl"][0], abs=1e-3)
    found = {}
    for line in reports.report(block)[1:]:
        words = line.replace(",", " ").split()
        numbers = [word for word in words if word.replace(".", "").lstrip("-").isdecimal()]
        found[words[0]] = numbers
    assert found["bits"] == [f"{block['bits_per_dim']:.3f}"]
    assert found["PSNR"] == [f"{value:.3f}" for value in block["psnr"]]
    assert found["sigma"] == ["0.12500"]
    assert found["active"] == [str(block["active_units"])]
    assert found["-ELBO"][:2] == [f"{value:.3f}" for value in block["neg_elbo"]]

"""Figures and latents: pixels where they belong, paths through the points they should."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal

from vaelib import figures, gallery, latents, widgets
from vaelib.evaluation import elbo_terms


def test_tile_puts_every_pixel_in_its_place():
    images = torch.arange(5).reshape(5, 1, 1, 1).expand(5, 1, 2, 3) / 10
    page = figures.tile(images, n_columns=3, gap=1)
    assert page.shape == (5, 11, 3)  # two rows of 2 and a gap, three columns of 3 and two gaps
    assert page[0, 0, 0] == pytest.approx(0.0)
    assert page[0, 4, 0] == pytest.approx(0.1)
    assert page[3, 4, 0] == pytest.approx(0.4)
    assert (page[2] == 1).all()  # the gap is white
    assert (page[3:, 8:] == 1).all()  # and so is what is left over


def test_tile_keeps_colours():
    red = torch.tensor([1.0, 0.0, 0.5]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    np.testing.assert_allclose(figures.tile(red, 1)[0, 0], [1.0, 0.0, 0.5])


def test_reconstructions_stand_under_their_inputs():
    x = torch.arange(5).reshape(5, 1, 1, 1).expand(5, 1, 2, 2) / 10
    page = figures.reconstructions(x, x + 0.5, n_columns=3).axes[0].images[0].get_array()
    column = page[:, 0, 0]  # rows of 2 pixels and gaps of 2: inputs, reconstructions, twice
    np.testing.assert_allclose(column[[0, 4, 8, 12]], [0.0, 0.5, 0.3, 0.8], atol=1e-6)
    assert (page[8:, 8:] == 1).all()  # the place of a sixth image stays white


def png(figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def test_every_kind_of_figure_draws_and_repeats_itself(small_vae, digits):
    from vaelib.models import VAE

    flat = VAE(latent_dim=2, backbone="mlp", hidden=8).eval()
    rows = [
        {"step": s, "train_elbo": -120.0 - s, "val_elbo": -119.0 - s, "val_kl": 20.0}
        for s in (1, 2, 3)
    ]
    few = digits.subset(40)
    draws = {
        "samples": lambda: gallery.sample(small_vae, "m", 9),
        "reconstruct": lambda: gallery.reconstruct(small_vae, "m", few, 5),
        "interpolate": lambda: gallery.interpolate(small_vae, "m", few, 4, 2),
        "between prior draws": lambda: gallery.interpolate(small_vae, "m", None, 4, 2),
        "traverse": lambda: gallery.traverse(small_vae, "m", few, [0.1, 3.0, 2.0]),
        "traverse one": lambda: gallery.traverse(small_vae, "m", None, None, traverse_dim=1),
        "histogram": lambda: gallery.latent_histogram(small_vae, "m", few),
        "map": lambda: gallery.visualize_latent(flat, "m", few),
        "manifold": lambda: gallery.manifold(flat, "m", 4),
        "loss": lambda: figures.loss_curve(rows),
        "architecture": lambda: figures.architecture(small_vae),
        "architecture of the MLP": lambda: figures.architecture(flat),
    }
    for name, draw in draws.items():
        first = png(draw())
        assert first == png(draw()), name
        levels = {level for _, level in Image.open(io.BytesIO(first)).convert("L").getcolors(256)}
        assert len(levels) > 15, name


def test_histogram_of_normal_draws_follows_the_density():
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    axes = figures.latent_histogram(z, torch.tensor([1.0])).axes[0]
    heights = axes.patches[0].get_data().values
    edges = axes.patches[0].get_data().edges
    middle = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(middle**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(heights, density, atol=0.04)
    np.testing.assert_allclose(axes.lines[0].get_ydata().max(), 0.3989, atol=1e-4)


def test_architecture_shows_real_shapes(small_vae):
    texts = {t.get_text() for t in figures.architecture(small_vae).axes[0].texts}
    assert {"1x28x28", "8x14x14", "16x7x7", "6", "3", "conv_in", "Upsample", "z"} <= texts


@pytest.mark.parametrize("path", [latents.linear, latents.spherical])
def test_paths_start_and_end_where_told(path):
    a, b = torch.randn(2, 20)
    way = path(a, b, 7)
    assert way.shape == (7, 20)
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)


def test_spherical_keeps_the_norm_and_equal_angles():
    a, b = torch.nn.functional.normalize(torch.randn(2, 50), dim=1) * 7
    way = latents.spherical(a, b, 9)
    torch.testing.assert_close(way.norm(dim=1), torch.full((9,), 7.0))
    cosines = torch.nn.functional.cosine_similarity(way[:-1], way[1:])
    torch.testing.assert_close(cosines, cosines[:1].expand(8), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(latents.spherical(a, a, 3), a.expand(3, -1))
    torch.testing.assert_close(latents.spherical(a, -a, 3)[1], 0 * a)


def test_manifold_has_equal_probability_between_neighbours():
    z = latents.manifold(10)
    across = z[:10, 0].double()
    cdf = Normal(0.0, 1.0).cdf(across)
    torch.testing.assert_close(cdf, (torch.arange(10) + 0.5).double() / 10, atol=1e-6, rtol=0)
    assert z[0, 1] > z[-1, 1]  # upwards
    assert z[0, 0] < z[9, 0]  # to the right
    line = latents.manifold(5, "linear", 2.0)
    torch.testing.assert_close(line[:5, 0], torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))


def test_traversal_moves_one_dimension():
    z = torch.randn(5)
    way = latents.traversal(z, 3, torch.tensor([-1.0, 2.0]))
    assert way[:, 3].tolist() == [-1.0, 2.0]
    torch.testing.assert_close(way[:, [0, 1, 2, 4]], z[[0, 1, 2, 4]].expand(2, 4))


def test_slider_pictures(small_vae):
    image = Image.open(io.BytesIO(widgets.picture(small_vae, [0.0, 0.0, 0.0])))
    assert image.size == (224, 224)
    with torch.inference_mode():
        mean = small_vae.decode(torch.zeros(1, 3)).mean[0, 0]
    shown = torch.from_numpy(np.asarray(image)[4::8, 4::8].copy()) / 255
    torch.testing.assert_close(shown, mean, atol=1 / 255, rtol=0)


def test_moving_a_slider_changes_the_picture(small_vae):
    box = widgets.latent_sliders(small_vae)
    sliders, image = box.children[0].children, box.children[1]
    assert [s.description for s in sliders] == ["z[0]", "z[1]", "z[2]"]
    before = image.value
    sliders[1].value = 2.0
    assert image.value == widgets.picture(small_vae, [0.0, 2.0, 0.0]) != before
    sliders[1].value = 0.0
    assert image.value == before
    box = widgets.path_slider(small_vae, [0.0, 0.0, 0.0], [2.0, 1.0, 0.0])
    box.children[0].children[0].value = 0.5
    assert box.children[1].value == widgets.picture(small_vae, [1.0, 0.5, 0.0])


def test_posterior_draws_have_total_variance(small_vae, digits):
    # what the histogram shows: Var(z) = Var(E[z | x]) + E[Var(z | x)]
    q_z = elbo_terms(small_vae, digits)[1]
    z = q_z.loc + q_z.scale * torch.randn(q_z.loc.shape)
    expected = q_z.loc.var(0) + q_z.variance.mean(0)
    torch.testing.assert_close(z.var(0), expected, rtol=0.15, atol=0.02)


def test_mixture_finds_two_known_blobs_and_draws_from_them():
    torch.manual_seed(0)
    centres = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 1.0, 0.0]])
    z = centres[torch.randint(2, (4000,))] + torch.randn(4000, 3) * torch.tensor([0.3, 0.5, 2.0])
    density = latents.fit_mixture(z, 2)
    # log (1/2) sum_m N(z; c_m, diag): written out
    scale = torch.tensor([0.3, 0.5, 2.0])
    true = torch.stack([Normal(c, scale).log_prob(z).sum(1) for c in centres])
    true = true.logsumexp(0) - math.log(2)
    assert density.log_prob(z).mean() == pytest.approx(true.mean().item(), abs=0.02)
    drawn = latents.draw(density, 4000, seed=1)
    assert torch.equal(drawn, latents.draw(density, 4000, seed=1))
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(z.T), atol=0.25, rtol=0.1)


def test_attribute_directions_of_two_gaussians():
    # with a shared covariance the best linear classifier's normal is S^-1 (m1 - m0)
    torch.manual_seed(0)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    shift = torch.tensor([1.0, 0.2, 0.0])
    has = torch.rand(20_000) < 0.3
    z = torch.randn(20_000, 3) @ root.T + has.unsqueeze(1) * shift
    difference, normal = latents.attribute_directions(z, has)
    torch.testing.assert_close(difference, shift, atol=0.08, rtol=0)
    fisher = torch.linalg.solve(root @ root.T, shift)
    cosine = torch.dot(normal, fisher) / normal.norm() / fisher.norm()
    assert cosine > 0.995
    # both move the classifier's score by the same amount
    assert torch.dot(normal, normal) == pytest.approx(
        torch.dot(difference, normal).item(), rel=1e-4
    )
    assert (
        latents.auc(torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([True, True, False, False]))
        == 0.875
    )


def test_both_loss_curves_stay_inside_the_axes():
    step = {"train_elbo": 16_000.0, "val_elbo": 15_000.0, "val_kl": 300.0}  # a density: above 0
    left = figures.loss_curve([step | {"step": n} for n in (1, 2)]).axes[0]
    bottom, top = left.get_ylim()
    assert all(bottom < y < top for line in left.lines for y in line.get_ydata())

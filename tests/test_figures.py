"""Figures and latents: pixels where they belong, paths through the points they should."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Normal

from vaelib import (
    checkpoints,
    data,
    derived,
    figures,
    files,
    film,
    gallery,
    latents,
    publishing,
    widgets,
)  # fmt: skip
from vaelib.evaluation import elbo_terms
from vaelib.files import CheckpointError
from vaelib.models import VAE
from vaelib.priors import PRIORS


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


@pytest.mark.parametrize("shape", [(4, 2, 5, 5), (4, 4, 5, 5), (0, 1, 5, 5), (4, 5, 5)])
def test_what_is_no_row_of_pictures_is_refused_in_one_line(shape):
    with pytest.raises(ValueError, match=r"takes \(N, C, H, W\)") as caught:
        figures.tile(torch.zeros(shape), 2)
    assert "\n" not in str(caught.value)


def test_reconstructions_stand_under_their_inputs():
    x = torch.arange(5).reshape(5, 1, 1, 1).expand(5, 1, 2, 2) / 10
    page = figures.reconstructions(x, x + 0.5, n_columns=3).axes[0].images[0].get_array()
    # rows of 2 pixels: an input, 2 of white, its reconstruction, and 6 of white to the next pair
    np.testing.assert_allclose(page[[0, 4, 12, 16], 0, 0], [0.0, 0.5, 0.3, 0.8], atol=1e-6)
    assert (page[12:, 8:] == 1).all()  # the place of a sixth image stays white


def png(figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def test_every_kind_of_figure_draws_and_repeats_itself(small_vae, digits):
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
        "variance": lambda: gallery.latent_variance(small_vae, "m", few),
        "loss": lambda: figures.loss_curve(rows),
        "architecture": lambda: figures.architecture(small_vae),
        "architecture of the MLP": lambda: figures.architecture(flat),
    }
    for name, draw in draws.items():
        first = png(draw())
        assert first == png(draw()), name
        levels = {level for _, level in Image.open(io.BytesIO(first)).convert("L").getcolors(256)}
        assert len(levels) > 15, name


@pytest.fixture
def wide(monkeypatch):
    """Makes models with a prior that is not N(0, I), and has no closed form of its KL."""

    class Wide(nn.Module):
        """N(1, 4 I)."""

        def __init__(self, latent_dim: int):
            super().__init__()
            self.latent_dim = latent_dim

        def log_prob(self, z):
            return Normal(1.0, 2.0).log_prob(z).sum(-1)

        def sample(self, n, generator=None):
            return 1 + 2 * torch.randn(n, self.latent_dim, generator=generator)

    monkeypatch.setitem(PRIORS, "wide", Wide)
    torch.manual_seed(0)
    return lambda n: VAE(latent_dim=n, backbone="mlp", hidden=8, prior="wide").eval()


def panels(figure) -> list:
    """Of a sheet of histograms those of the dimensions."""
    return [axes for axes in figure.axes if axes.get_title().startswith("z[") and axes.patches]


def words(figure) -> str:
    """All that is written on a figure."""
    titles = [figure.get_suptitle()] + [axes.get_title() for axes in figure.axes]
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    return "\n".join(titles + labels)


def test_draws_are_the_priors(wide, small_vae):
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(gallery.draws(small_vae, 5, 3)[0], torch.randn(5, 3, generator=generator))
    z = gallery.draws(wide(2), 20_000, 3)[0]
    torch.testing.assert_close(z.mean(0), torch.ones(2), atol=0.06, rtol=0)
    torch.testing.assert_close(z.std(0), 2 * torch.ones(2), atol=0.06, rtol=0)


def test_the_standard_prior_is_named_where_it_is_the_models(wide, small_vae, digits):
    few = digits.subset(40)
    assert "N(0, I)" in words(gallery.sample(small_vae, "m", 4))
    assert "N(0, 1)" in words(gallery.latent_histogram(small_vae, "m", few))
    assert "N(0, 1)" in words(gallery.latent_variance(small_vae, "m", few))
    assert " nats" in words(gallery.traverse(small_vae, "m", few, None))
    model = wide(2)
    for figure in (
        gallery.sample(model, "m", 4),
        gallery.latent_histogram(model, "m", few),
        gallery.latent_variance(model, "m", few),
        gallery.traverse(model, "m", few, None),
        gallery.interpolate(model, "m", None, 2, 2),
        gallery.manifold(model, "m", 3, "linear"),
        gallery.visualize_latent(model, "m", few),
    ):
        assert "N(0" not in words(figure)
        assert " nats" not in words(figure)
    assert "the wide prior" in words(gallery.sample(model, "m", 4))
    _, prior = panels(gallery.latent_histogram(model, "m", few))[0].patches
    values, edges, _ = prior.get_data()
    assert values[np.searchsorted(edges, 4.0) - 1] > 0.03  # N(4; 1, 4) is 0.065, N(4; 0, 1) 0.0001
    with pytest.raises(ValueError, match="take spacing linear"):
        gallery.manifold(model, "m", 3)


def test_without_nats_the_dimension_whose_mean_varies_most_comes_first(wide, digits):
    model = wide(5)
    with torch.no_grad():
        model.encoder.to_latent.weight[:5] *= torch.tensor([1.0, 5.0, 0.1, 3.0, 2.0])[:, None]
    order = elbo_terms(model, digits)[1].loc.var(0).argsort(descending=True).tolist()
    names = [f"z[{d}]" for d in order]
    assert gallery.order_dims(model, digits) == (order, None)
    assert gallery.order_dims(model, None) == ([0, 1, 2, 3, 4], None)
    traversals = gallery.traverse(model, "m", digits, None).axes[0].get_yticklabels()
    assert [label.get_text() for label in traversals] == names


def test_a_fresh_run_is_traversed_by_the_kl_of_its_images(small_vae, digits):
    kl = elbo_terms(small_vae, digits)[0].kl_per_dim.mean(0)
    order, nats = gallery.order_dims(small_vae, digits)
    assert order == kl.argsort(descending=True).tolist()
    assert nats == pytest.approx(kl.tolist())
    assert gallery.order_dims(small_vae, digits, [1.0, 3.0, 2.0]) == ([1, 2, 0], [1.0, 3.0, 2.0])


def test_contours_are_those_of_the_standard_prior_alone(wide, digits):
    standard = VAE(latent_dim=2, backbone="mlp", hidden=8).eval()
    for model, radii in ((standard, [1, 2, 3]), (wide(2), [])):
        lines = gallery.visualize_latent(model, "m", digits).axes[0].lines
        found = [np.hypot(*line.get_data()) for line in lines if len(line.get_xdata()) == 200]
        assert [radius.mean() for radius in found] == pytest.approx(radii)
        assert all(np.ptp(radius) < 1e-9 for radius in found)


def test_a_film_has_contours_where_the_prior_is_standard(wide, digits, tmp_path, monkeypatch):
    contours = []
    monkeypatch.setattr(film, "prior_contours", lambda *_, **__: contours.append(1))
    for model, n in ((VAE(latent_dim=2, backbone="mlp", hidden=8), 1), (wide(2), 0)):
        contours.clear()
        checkpoints.save(model, tmp_path)
        film_so_far = {"z": torch.zeros(1, 3, 2), "steps": torch.tensor([7])}
        files.write_tensors(tmp_path / files.FILM, film_so_far)
        film.save(tmp_path, digits, tmp_path / "film.gif")
        assert len(contours) == n


def test_captions_call_images_what_they_are(digits):
    flat = VAE(latent_dim=2, backbone="mlp", hidden=8).eval()
    axes = gallery.visualize_latent(flat, "m", digits.subset(50)).axes[0]
    assert "50 digits of mnist-5k val" in axes.figure.get_suptitle()
    means, labels = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, -9.0]]), torch.tensor([0, 1, 1])
    axes = figures.latent_map(means, labels, things="faces").axes[0]
    assert axes.get_xlabel() == "z[0]   (2 faces lie outside)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "1"]


def test_maps_side_by_side_hold_every_dot_and_the_same_prior():
    means = {"near": torch.randn(50, 2), "far": 40 * torch.randn(50, 2)}
    figure = figures.latent_maps(means, torch.arange(50) % 3, "two maps")
    for axes, (name, z) in zip(figure.axes, means.items(), strict=True):
        assert axes.get_title(loc="left") == name
        shown = axes.collections[0].get_offsets()[:, 0]
        assert sorted(shown) == pytest.approx(sorted(z[:, 0].tolist()))
        assert axes.get_xlim() == axes.get_ylim()
        assert max(3.3, z.abs().max()) <= axes.get_xlim()[1]
        radii = [line.get_xydata()[0, 0] for line in axes.lines]
        assert radii == pytest.approx([1, 2, 3])
    with pytest.raises(ValueError, match="means"):
        figures.latent_maps({"broken": torch.full((5, 2), math.nan)}, torch.zeros(5))


def test_histogram_of_other_priors_shows_their_draws():
    generator = torch.Generator().manual_seed(0)
    z, draws = (torch.randn(20_000, 2, generator=generator) for _ in range(2))
    draws[:, 1] = 0.5 * draws[:, 1] + 1
    axes = figures.latent_histogram(z, prior_draws=draws).axes[0]
    # E|u - (1 + v / 2)| when u and v rise together: E|1 - u / 2|, written out
    far = 0.5 * math.sqrt(2 / math.pi) * math.exp(-2) + math.erf(math.sqrt(2))
    assert axes.get_title().split() == ["z[1]", f"{far:.2f}"]
    values, edges, _ = axes.patches[1].get_data()
    density = Normal(1.0, 0.5).log_prob(torch.tensor(edges[1:] + edges[:-1]) / 2).exp().numpy()
    np.testing.assert_allclose(values, density, atol=0.06)


def test_histogram_of_normal_draws_follows_the_density():
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    axes = figures.latent_histogram(z, torch.tensor([1.0])).axes[0]
    assert axes.get_title().split() == ["z[0]", "1.00"]
    heights = axes.patches[0].get_data().values
    edges = axes.patches[0].get_data().edges
    middle = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(middle**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(heights, density, atol=0.04)
    np.testing.assert_allclose(axes.lines[0].get_ydata().max(), 0.3989, atol=1e-4)


def test_no_draw_lies_outside_a_histogram():
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    z[0, 1], z[:, 2] = -11.3, 0.01 * z[:, 2]
    for axes in figures.latent_histogram(z).axes:
        (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        values, edges, _ = axes.patches[0].get_data()
        assert low <= edges[0] <= -11.3
        assert z.max() <= edges[-1] <= high
        assert bottom == 0
        assert values.max() < top
        # every draw is in a bar
        assert (values * np.diff(edges)).sum() == pytest.approx(1.0)


def test_mismatch_is_the_wasserstein_distance():
    stats = pytest.importorskip("scipy.stats")
    u = Normal(0.0, 1.0).icdf((torch.arange(20_000) + 0.5) / 20_000)
    z = torch.stack([u, u + 0.7, 2 * u, u.abs() * torch.tensor([1.0, -1.0]).repeat(10_000)], 1)
    # N(m, 1): |m|; N(0, s^2): |s - 1| E|u|; the last has every other of its signs turned
    expected = [0.0, 0.7, math.sqrt(2 / math.pi)]
    np.testing.assert_allclose(figures.mismatch(z)[:3], expected, atol=2e-3)
    other = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    found = figures.mismatch(z[torch.randperm(20_000)], other)
    for dim in range(4):
        distance = stats.wasserstein_distance(z[:, dim].numpy(), other[:, dim].numpy())
        assert found[dim].item() == pytest.approx(distance, abs=1e-3)


def test_dimensions_come_in_the_order_of_their_mismatch(small_vae, digits):
    z, (spread, width), _ = gallery.against_prior(small_vae, digits, 0)
    order = figures.mismatch(z).argsort(descending=True)
    sheet, alone = (
        draw(small_vae, "m", digits) for draw in (gallery.latent_histogram, gallery.latent_variance)
    )
    assert [axes.get_title().split()[0] for axes in panels(sheet)] == [f"z[{d}]" for d in order]
    order = spread.argsort(descending=True)  # the bars have their own
    for axes in (sheet.axes[0], alone.axes[0]):
        assert [t.get_text() for t in axes.get_xticklabels()] == [f"z[{d}]" for d in order]
        heights = np.array([bar.get_height() for bar in axes.patches[:6]]).reshape(2, 3)
        np.testing.assert_allclose(heights, torch.stack([spread, width])[:, order], rtol=1e-5)
        # the law of total variance, by the draws themselves
        np.testing.assert_allclose(heights.sum(0), z.var(0)[order], rtol=0.15, atol=0.02)


@pytest.mark.parametrize(
    ("keys", "shapes", "names"),
    [
        (
            {"latent_dim": 3, "widths": (8, 16)},
            "1x28x28 8x14x14 16x7x7 6 3 784",
            "conv_in down_blocks ConvBlock Downsample mid_block to_latent from_latent up_blocks "
            "Upsample conv_out",
        ),
        (
            {
                "image_shape": (3, 64, 48),
                "widths": (4, 5, 6, 7, 8, 9),
                "likelihood": "pixel_gaussian",
            },
            "3x64x48 4x32x24 5x16x12 9x1x1 9 6x64x64 4 2",
            "conv_in mid_block conv_out",
        ),
        (
            {"backbone": "mlp", "hidden": 9, "n_hidden": 2, "latent_dim": 1},
            "1x28x28 9 2 1 784",
            "hidden Linear to_latent to_image",
        ),
    ],
)
def test_architecture_shows_real_shapes_and_the_draw(keys, shapes, names):
    figure = figures.architecture(VAE(**keys), "m")
    texts = {t.get_text().replace("\n", "").replace("\u00d7", "x") for t in figure.axes[0].texts}
    assert {*shapes.split(), *names.split()} <= texts
    if "widths" in keys and len(keys["widths"]) > 4:  # a box for each level
        assert {"down_blocks: ConvBlock, Downsample", "up_blocks: Upsample, ConvBlock"} <= texts
    assert {"encoder: q(z | x)", "decoder: p(x | z)", "\u03bc", "\u03c3", "\u03b5", "z"} <= texts
    assert {"z=\u03bc+\u03c3\u00b7\u03b5", "\u03b5 ~ N(0, I)"} <= texts


def test_the_originals_column_is_marked(small_vae, digits):
    figure = gallery.traverse(small_vae, "m", digits, [0.1, 3.0, 2.0], n_traverse=3)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["own z", "\u22123", "0", "+3"]
    (frame,) = axes.patches
    left, right = frame.get_x(), frame.get_x() + frame.get_width()
    assert left < axes.get_xticks()[0] < right < axes.get_xticks()[1]
    _, z = gallery.encode_some(small_vae, digits, 1, 0)
    page = axes.images[0].get_array()
    for row in range(3):
        shown = page[30 * row : 30 * row + 28, :28, 0]
        np.testing.assert_allclose(shown, gallery.decode(small_vae, z)[0, 0], atol=1e-6)
    steps = gallery.attribute_steps(
        small_vae, "m", digits, {"a": torch.ones(3)}, torch.tensor([-1.0, 0.0, 1.0]), 1
    )
    (axes,) = steps.axes
    (frame,) = axes.patches
    at = [abs(tick - frame.get_x() - frame.get_width() / 2) for tick in axes.get_xticks()]
    assert np.argmin(at) == 1
    assert axes.get_xticklabels()[1].get_text() == "0"


@pytest.mark.parametrize("spacing", ["inverse_cdf", "linear"])
def test_ticks_of_a_manifold_are_even_and_in_their_places(spacing):
    n, z = 20, latents.manifold(20, spacing)[:20, 0]
    (axes,) = figures.manifold(torch.zeros(n * n, 1, 4, 6), z).axes
    numbers = [t.get_text().replace("\u2212", "-") for t in axes.get_xticklabels()]
    values = np.array([float(number) for number in numbers])
    assert len(values) >= 5
    np.testing.assert_allclose(np.diff(values), np.diff(values)[0])
    inside = (axes.get_xticks() + 0.5) / (6 * n)  # from 0 to 1 over the picture
    if spacing == "linear":  # -3 and 3 are the middles of the outermost cells
        expected = (values + 3) / 6 * (n - 1) / n + 0.5 / n
    else:
        expected = Normal(0.0, 1.0).cdf(torch.tensor(values)).numpy()
    np.testing.assert_allclose(inside, expected, atol=0.006)
    np.testing.assert_allclose(
        axes.get_yticks(), 4 * n - 1 - (axes.get_xticks() + 0.5) / 6 * 4 + 0.5
    )


@pytest.mark.parametrize("name", ["sample", "traverse", "latent_histogram", "visualize_latent"])
def test_weights_that_are_no_numbers_are_one_line(digits, name):
    model = VAE(latent_dim=2, widths=(4,)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    more = {"sample": (), "traverse": (None, None)}.get(name, (digits.subset(20),))
    with pytest.raises(ValueError, match="not finite: are the model's weights") as caught:
        getattr(gallery, name)(model, "m", *more)
    assert "\n" not in str(caught.value)


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
    z = derived.drawn(small_vae, digits)
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


@pytest.mark.parametrize("name", checkpoints.published())
def test_no_curve_is_cut_off(name):
    rows = files.read_json(checkpoints.find(name) / files.HISTORY)
    every = figures.loss_curve(rows, name).axes
    has_kl = "val_kl" in rows[0]  # an autoencoder's curve has no such part
    whole, *later = every[:-1] if has_kl else every  # later only where it shows more
    for axes in every:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            assert all(bottom < y < top for y in line.get_ydata())
            assert all(left < x < right for x in line.get_xdata())
    assert len(whole.lines[0].get_xdata()) == len(rows)
    assert all(len(axes.lines[0].get_xdata()) < len(rows) for axes in later)
    assert name != "mnist-50d" or later
    assert has_kl == ("KL" in every[-1].get_ylabel())
    assert not has_kl or every[-1].get_ylim()[0] == 0


def test_a_run_made_longer_says_so():
    rows = [{"step": s, "train_elbo": -9.0, "val_elbo": -8.0, "val_kl": 1.0} for s in (5, 10)]
    figure = figures.loss_curve(rows, "m", [[5, 7]])
    told = [text.get_text() for text in figure.texts]
    assert any("made longer at step 5 (of 7 planned)" in text for text in told)
    assert all(5 in axes.lines[-1].get_xdata() for axes in figure.axes)
    assert not any("planned" in text.get_text() for text in figures.loss_curve(rows, "m").texts)


def test_a_loss_curve_shows_the_columns_there_are():
    rows = [{"step": s, "train_objective": -9.0 * s, "val_objective": -8.0 * s} for s in (1, 2)]
    (axes,) = figures.loss_curve(rows).axes
    assert axes.get_ylabel() == "-objective (nats per image)"
    assert axes.lines[0].get_ydata().tolist() == [9.0, 18.0]
    rows = [row | {"val_elbo": -7.0, "train_elbo": -6.0, "val_kl": 3.0} for row in rows]
    left, right = figures.loss_curve(rows).axes  # two rows have no later part
    assert left.get_ylabel() == "-ELBO (nats per image)"
    assert right.lines[0].get_ydata().tolist() == [3.0, 3.0]


@pytest.mark.parametrize("shape", [(1, 20, 12), (3, 12, 20)])
def test_pictures_of_any_shape(shape):
    model = VAE(shape, 2, widths=(4, 8), likelihood="gaussian").eval()
    pixels = torch.randint(255, (30, *shape), dtype=torch.uint8)
    images = data.Images("own", "val", pixels, labels=torch.arange(30) % 3)
    for figure in (
        gallery.sample(model, "m", 4),
        gallery.reconstruct(model, "m", images, 5),
        gallery.interpolate(model, "m", images, 2, 2),
        gallery.traverse(model, "m", images, None),
        gallery.visualize_latent(model, "m", images),
        gallery.latent_histogram(model, "m", images),
        gallery.manifold(model, "m", 3),
        gallery.attribute_steps(model, "m", images, {"a": torch.ones(2)}, torch.ones(3), 1),
        figures.architecture(model),
    ):
        assert len(png(figure)) > 1000
    page = gallery.manifold(model, "m", 3).axes[0].images[0].get_array()
    assert page.shape[:2] == (3 * shape[1], 3 * shape[2])
    slider = Image.open(io.BytesIO(widgets.picture(model, [0.0, 0.0], height=60)))
    assert slider.size == (round(60 * shape[2] / shape[1]), 60)
    assert slider.mode == ("L" if shape[0] == 1 else "RGB")


def test_images_are_asked_for_at_the_models_size(tmp_path, monkeypatch):
    model, asked = VAE((3, 10, 14), 2, widths=(4,)), []
    monkeypatch.setattr(data, "load", lambda *names, **how: asked.append((names, how)))
    files.write_recipe(tmp_path, {"data": "images:/photos"})
    derived.images_for(model, tmp_path)
    files.write_recipe(tmp_path, {"data": "mnist-5k"})
    derived.images_for(model, tmp_path, fallback=True)  # it has no test split
    size = {"image_size": (10, 14), "channels": 3}
    assert asked == [
        (("images:/photos", "test"), {"fallback": False} | size),
        (("mnist-5k", "val"), {"fallback": True} | size),
    ]


def test_a_recipe_that_names_no_data_is_one_line(small_vae, tmp_path):
    for recipe in (None, {}, {"steps": 3}):
        if recipe is not None:
            files.write_recipe(tmp_path, recipe)
        with pytest.raises(CheckpointError, match="names no data; write a line") as caught:
            derived.images_for(small_vae, tmp_path)
        assert "\n" not in str(caught.value)
        assert files.RECIPE in str(caught.value)


@pytest.fixture
def has_images(monkeypatch, digits):
    """Gives every model so many training and validation images."""

    def give(n_train: int, n_val: int) -> None:
        splits = {"train": digits[:n_train], "val": digits[500 : 500 + n_val]}
        monkeypatch.setattr(derived, "images_for", lambda _, __, split, **_name: splits[split])

    return give


@pytest.mark.parametrize(("n_train", "n_val"), [(2, 1), (15, 2), (19, 5), (20, 5), (45, 10)])
def test_a_density_is_fitted_to_few_images_too(small_vae, tmp_path, has_images, n_train, n_val):
    checkpoints.save(small_vae, tmp_path)
    has_images(n_train, n_val)
    density = derived.aggregate(small_vae, tmp_path)
    assert density.mixture_distribution.probs.numel() <= max(1, n_train // 20)
    z = latents.draw(density, 50)
    assert torch.isfinite(z).all()
    again = latents.draw(derived.aggregate(small_vae, tmp_path), 50)  # as it was kept
    assert torch.equal(z, again)


def test_a_density_of_other_images_leaves_the_models_own_alone(small_vae, tmp_path, monkeypatch):
    checkpoints.save(small_vae, tmp_path)
    files.write_recipe(tmp_path, {"data": "mnist-5k"})
    full = data.load
    monkeypatch.setattr(data, "load", lambda *a, **k: full(*a, **k).subset(60))
    own = derived.aggregate(small_vae, tmp_path)
    kept = (tmp_path / files.LATENTS).read_bytes()
    monkeypatch.setattr(data, "load", lambda *a, **k: full(*a, **k)[100:160])
    other = derived.aggregate(small_vae, tmp_path, "mnist-5k")
    means = [density.component_distribution.loc for density in (own, other)]
    assert not torch.equal(*means)
    assert (tmp_path / files.LATENTS).read_bytes() == kept
    monkeypatch.setattr(data, "load", full)
    with pytest.raises(data.DataError):  # and not the model's own in its place
        derived.aggregate(small_vae, tmp_path, f"images:{tmp_path / 'none'}")


@pytest.mark.parametrize(("n_train", "n_val"), [(0, 5), (1, 5), (9, 0)])
def test_too_few_images_for_a_density_are_one_line(small_vae, tmp_path, has_images, n_train, n_val):
    checkpoints.save(small_vae, tmp_path)
    has_images(n_train, n_val)
    with pytest.raises(ValueError, match="too few") as caught:
        derived.aggregate(small_vae, tmp_path)
    assert "\n" not in str(caught.value)


def test_attributes_that_are_shown():
    table = {name: {"directions": torch.full((2, 3), i)} for i, name in enumerate("abcdefgh")}
    assert list(derived.shown_directions(table)) == [*"abcdef"]
    table |= {"Smiling": {"directions": torch.stack([torch.ones(3), torch.zeros(3)])}}
    (way,) = derived.shown_directions(table).values()
    assert way.tolist() == [1.0, 1.0, 1.0]


def test_published_pictures_are_drawn_in_their_place(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(derived, "images_for", lambda *_: digits)
    monkeypatch.setattr(publishing, "PUBLISHED_PAGES", tmp_path)
    pictures, assets = tmp_path / "assets", publishing.ASSETS
    monkeypatch.setattr(publishing, "ASSETS", pictures)
    found = {str(path.relative_to(pictures)) for path in publishing.draw_published("mnist-2d")}
    assert {str(p.relative_to(pictures)) for p in pictures.rglob("*.*")} == found
    series = tuple(f"{name}-" for name in checkpoints.published() if name.startswith("mnist-2d-"))
    own = [path for path in assets.glob("*/mnist-2d-*") if not path.name.startswith(series)]
    assert found == {str(path.relative_to(assets)) for path in own}
    for path in pictures.rglob("*.png"):
        with Image.open(path) as image:
            assert image.mode in ("L", "P"), path  # charts and digits are stored small


def test_the_manifest_is_that_of_the_published_files(tmp_path, monkeypatch):
    committed = files.read_json(checkpoints.MANIFEST)
    monkeypatch.setattr(checkpoints, "MANIFEST", tmp_path / "manifest.json")
    publishing.write_manifest()
    assert files.read_json(tmp_path / "manifest.json") == committed


def test_tables_are_written_between_their_markers(tmp_path, monkeypatch):
    published = publishing.PUBLISHED
    text = "a\n<!-- faces: written by `vaelib figures` -->\nold\n<!-- end of faces -->\nb\n"
    for path in ("README.md", "checkpoints/README.md"):
        files.write_text(tmp_path / path, text)
    monkeypatch.setattr(publishing, "PUBLISHED", tmp_path / "checkpoints")
    publishing.write_tables()
    for path in ("README.md", "checkpoints/README.md"):
        begin, end = text.split("old")
        written = (tmp_path / path).read_text()
        assert written.startswith(begin)
        assert written.endswith(end)
        assert "`celeba-64`" in written
        assert "mnist" not in written
    committed = (published / "README.md").read_text()
    files.write_text(tmp_path / "checkpoints" / "README.md", committed)
    publishing.write_tables()
    assert (tmp_path / "checkpoints" / "README.md").read_text() == committed

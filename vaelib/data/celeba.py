"""CelebA (Liu, Luo, Wang & Tang 2015), all of it or what part is there, full or half size."""

import importlib.util
import os
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from vaelib.data import folders
from vaelib.data.download import download, root, workspace
from vaelib.data.images import SPLITS, DataError, Images, Source

IMAGES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba", "list_eval_partition"
HOMES = ("celeba", "CelebA", "celebA", "celeba-dataset", "")  # under the root
CROP = 148 / 178  # the usual square around the face: 148 of 178 pixels, or 74 of 89
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
    files.sort(key=lambda name: (_order(name), name))
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


def _order(name: str) -> float:
    """The number of an image, by which it is known in the lists, padded with zeros or not."""
    stem = Path(name).stem
    return int(stem) if stem.isdecimal() else float("inf")


def _key(name: str) -> int | str:
    stem = Path(name).stem
    return int(stem) if stem.isdecimal() else stem


def _list(home: Path, folder: Path, name: str) -> tuple[Path, list[str], dict]:
    """One of CelebA's lists: its path, header, and fields by image; empty where it is not there.

    With spaces or commas, with or without a count and a header.
    """
    places = [home, home / "Anno", home / "Eval", folder, folder.parent]
    paths = [place / f"{name}{ending}" for ending in (".txt", ".csv") for place in places]
    path = next((path for path in paths if path.is_file()), paths[0])
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}); fetch it again") from error
    header, rows = [], {}
    for line in text.splitlines():
        fields = line.replace(",", " ").replace('"', " ").split()
        if fields and Path(fields[0]).suffix.lower() in (".jpg", ".png", ".jpeg"):
            rows[_key(fields[0])] = fields[1:]
        elif fields and not rows and not line.strip().isdecimal():
            header = fields[1:] if "," in line else fields  # tables name the images' column too
    return path, header, rows


def _official(home: Path, folder: Path, files: list[str]) -> dict[str, int]:
    """The official split of each image: 0, 1 or 2; empty without the list."""
    path, _, rows = _list(home, folder, PARTITION)
    found = {name: rows.get(_key(name), [""])[:1] for name in files} if rows else {}
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
    found = [rows.get(_key(name), []) for name in names]
    n = len(found[0]) if found else len(header)
    columns = header or OFFICIAL.split()
    if n != len(columns) or any(len(values) != n or not {*values} <= YES | NO for values in found):
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
    sized=True,
)

"""Judges `vaelib.diagnose` by the patients of notebook 13 and by every checkpoint.

`python experiments/clinic.py` writes clinic.json beside this file, in two to five minutes of one
core; it needs MNIST, Frey Face and CelebA. The patients are those that the notebook's cells
tagged "setup" define.
"""

from dataclasses import replace
from pathlib import Path

import nbformat

from vaelib import checkpoints, data, files
from vaelib.symptoms import examined

HERE = Path(__file__).parent
NOTEBOOK = HERE.parent / "notebooks" / "13-broken-vaes.ipynb"
GREY = {"image_size": 32, "channels": 1}
SOURCES = {"mnist-5k": {}, "sprites": {}, "celeba": {"likelihood": "learned_gaussian"}}


def clinic() -> dict:
    """What the notebook's setup cells define: PATIENTS, FIRST_HALF, patient(...)."""
    space: dict = {}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if "setup" in cell.metadata.get("tags", []):
            exec(cell.source, space)
    return space


def images_of(source: str) -> dict[str, data.Images]:
    """Training and validation images, 28x28 or 32x32 in grey."""
    found = {split: data.load(source, split, **GREY) for split in ("train", "val")}
    if source == "sprites":  # every second pixel of 64x64
        return {k: replace(v, images=v.images[:, :, ::2, ::2]) for k, v in found.items()}
    return found


def judge_patients(sources=SOURCES, seeds=(0, 1, 2)) -> list[dict]:
    """A row for each patient, source and seed: what it should show, and what was found."""
    space, rows = clinic(), []
    for source in sources:
        images = images_of(source)
        for name, how in space["PATIENTS"].items():
            if source in how.get("not_on", ()):
                continue
            for seed in seeds:
                model = space["patient"](name, images["train"], seed, **SOURCES[source])
                found, numbers = examined(model, images["val"], seed)
                row = {"patient": name, "half": 1 if name in space["FIRST_HALF"] else 2}
                row |= {"source": source, "seed": seed, "shows": how.get("shows", "nothing")}
                rows.append(row | {"found": [s.name for s in found], "numbers": numbers})
                print(rows[-1], flush=True)
    return rows


def judge_checkpoints() -> list[dict]:
    """A row for each published model: its objective, and what was found on validation images."""
    rows = []
    for name in checkpoints.published():
        recipe = files.read_recipe(checkpoints.find(name) / files.RECIPE)
        size = {k: recipe[k] for k in ("image_size", "channels") if k in recipe}
        images = data.load(recipe["data"], "val", **size)
        found, numbers = examined(checkpoints.load_checkpoint(name), images)
        row = {"checkpoint": name, "objective": recipe["objective"], "beta": recipe["beta"]}
        rows.append(row | {"found": [s.name for s in found], "numbers": numbers})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    results = {"command": "python experiments/clinic.py"}
    results |= {"checkpoints": judge_checkpoints(), "patients": judge_patients()}
    files.write_json(HERE / "clinic.json", results)

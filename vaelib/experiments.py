"""Many small trainings: a recipe, a grid of its keys, several seeds.

experiments/NAME.yaml says what is run, and `vaelib experiment NAME` writes experiments/NAME.json.
What is done is kept after each run, so that a second call goes on where the first one stopped.

    recipe: {data: mnist-5k, latent_dim: 32, steps: 600}
    grid:                      # as scikit-learn's ParameterGrid: every combination of each group
      - {likelihood: [bernoulli], kl_warmup: [0, 300]}
      - {likelihood: [gaussian], sigma: [1.0], kl_warmup: [0, 300]}
    seeds: [0, 1, 2]
"""

import time
import warnings
from pathlib import Path

import torch

from vaelib import choices, files
from vaelib.hardware import environment
from vaelib.training import build, fit

FOLDER = Path(__file__).parent.parent / "experiments"  # there in a clone alone
KEYS = ("recipe", "grid", "seeds")


class ExperimentError(files.UserError):
    """An experiment is unknown or not well described; the message says what to do."""


def find(name: str | Path) -> Path:
    """The YAML file of an experiment, by its name or its path."""
    for path in (Path(name), FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    near = choices.nearest(str(name), names)
    raise ExperimentError(
        f"no experiment {str(name)!r}{near}: neither a file nor one of {', '.join(names)}"
    )


def planned(path: Path) -> list[dict]:
    """The runs of an experiment: of each what it changes, its seed and its whole recipe."""
    from sklearn.model_selection import ParameterGrid

    plan = files.read_recipe(path)
    whole = set(plan) == set(KEYS) and isinstance(plan["recipe"], dict)
    if not whole or not isinstance(plan["seeds"], list) or not plan["seeds"]:
        raise ExperimentError(
            f"{path} needs {', '.join(KEYS)}: keys and values, a grid, a list of seeds"
        )
    try:
        grid = list(ParameterGrid(plan["grid"]))
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"{path}: the grid needs lists of values ({error})") from error
    return [
        {"keys": keys, "seed": seed, "recipe": plan["recipe"] | keys | {"seed": seed}}
        for keys in grid
        for seed in plan["seeds"]
    ]


def run(path: Path) -> Path:
    """Run what is missing, saying how far it is and how long it may take; returns the results.

    A run that was kept counts if its recipe, its images and torch's version are the same.
    """
    target, plan = path.with_suffix(".json"), planned(path)
    kept = files.read_mapping(target)["runs"] if target.exists() else []
    done, spent = [], []
    for number, wanted in enumerate(plan, 1):
        began = time.perf_counter()
        model, images, config = build(wanted["recipe"])
        wanted |= {
            "torch": torch.__version__,
            "images": {split: images[split].sha256 for split in ("train", "val")},
        }
        same = [old for old in kept if {k: old.get(k) for k in wanted} == wanted]
        if same:
            done.append(same[0])
            continue
        left = f", about {spent[-1] * (len(plan) - number + 1) / 60:.0f} min left" if spent else ""
        print(f"{path.stem}, run {number} of {len(plan)}{left}: {wanted['keys']}", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what collapses is in the results
            history = fit(model, images, config).rows
        spent.append(time.perf_counter() - began)
        done.append(wanted | {"history": history})
        results = {
            "command": f"vaelib experiment {path.stem}",
            "made_with": environment(next(model.parameters()).device),
            "runs": done + [old for old in kept if old not in done],
        }
        files.write_json(target, results)
    if (results := files.read_mapping(target))["runs"] != done:
        files.write_json(target, results | {"runs": done})  # without what is no longer planned
    print(f"{target}: {len(done)} runs, {len(spent)} of them new")
    return target


def results(name: str | Path) -> list[dict]:
    """The runs of an experiment: the keys each changes, its seed, and its last row of history."""
    path = find(name).with_suffix(".json")
    if not path.exists():
        raise ExperimentError(f"{path} is not there yet: run `vaelib experiment {path.stem}`")
    runs = files.read_mapping(path)["runs"]
    return [run["keys"] | {"seed": run["seed"]} | run["history"][-1] for run in runs]

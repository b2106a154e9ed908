"""Many small trainings: a recipe, a grid of its keys, several seeds.

experiments/NAME.yaml says what is run, and `vaelib experiment NAME` writes experiments/NAME.json.
What is done is kept after each run, so that a second call goes on where the first one stopped.

    recipe: {data: mnist-5k, latent_dim: 32, steps: 600}
    grid:                      # as scikit-learn's ParameterGrid: every combination of each group
      - {likelihood: [bernoulli], kl_warmup: [0, 300]}
      - {likelihood: [gaussian], sigma: [1.0], kl_warmup: [0, 300]}
    seeds: [0, 1, 2]           # of each; a group may have its own `seed`
    takes: half an hour        # optional: is said beforehand

Beside a recipe's keys there are some of a run: `way`, how to train; `n_train`, how many of the
training images; `also`, what to measure at each evaluation besides; `keep`, a folder beside the
results for the weights of the first seed.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from vaelib import (
    checkpoints,
    choices,
    data,
    derived,
    exact,
    files,
    mcem,
    metrics,
    samples,
    wake_sleep,
)
from vaelib.data import Images, seen_by
from vaelib.diagnosis import TrainingError
from vaelib.evaluation import bounds, elbo_terms, posteriors
from vaelib.hardware import environment
from vaelib.hmc import SamplerError
from vaelib.objectives import mmd
from vaelib.priors import Fitted
from vaelib.recipes import DataConfig
from vaelib.training import build, fit

FOLDER = Path(__file__).parent.parent / "experiments"  # there in a clone alone
KEYS = {"recipe", "grid", "seeds"}
BROKEN = (TrainingError, SamplerError, metrics.MetricError)  # how a run that diverges ends
WAYS = {"fit": fit, "wake_sleep": wake_sleep.fit, "mcem": mcem.fit}


def elbo_on_test(model, images: dict[str, Images]) -> dict:
    """The mean ELBO of the test images, one draw each, in nats."""
    return {"test_elbo": elbo_terms(model, images["test"])[0].elbo.mean().item()}


def at_random(images: Images, n: int) -> Images:
    """`n` images, always the same: MNIST's training split begins with 1s, 4s and 7s."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]]


def marginal(model, images: dict[str, Images], splits=("train", "test"), n: int = 100) -> dict:
    """Both estimates of log p(x) without an encoder, mean nats of some images."""
    row = {}
    for split in splits:
        some = at_random(images[split], n) if split == "train" else images[split].subset(n)
        some = some.images.cpu()
        x = seen_by(model, some, torch.Generator().manual_seed(0))
        x = x.to(next(model.parameters()).device)
        found = mcem.log_marginal(model, x, n_adapt=200)
        row |= {f"{split}_{k}": v.mean().item() for k, v in found._asdict().items()}
    return row


def factors(model, images: dict[str, Images], noisy: bool = True, n: int = 10_000) -> dict:
    """The quick scores of the codes' factors and where the KL goes, of the first images."""
    some = images["train"].subset(n)
    q_z = posteriors(model, some)
    gaps = metrics.mig(q_z.loc, some.factors, len(some))
    row = {"mig": gaps.score} | {f"mig_{name}": value for name, value in gaps.each.items()}
    row |= {f.__name__: f(q_z.loc, some.factors) for f in (metrics.factor_vae, metrics.beta_vae)}
    return row | (surgery(model, q_z) if noisy else {})


def surgery(model, q_z) -> dict:
    """Where the KL of some codes goes, one draw of each image."""
    parts = metrics.surgery(q_z, derived.drawn_from(q_z, 0), model.prior)
    return {f"q_{name}": value for name, value in parts.items()}


def codes(model, images: dict[str, Images], noisy: bool = True) -> dict:
    """How far the test images' codes lie from the prior, and what they say of the digit.

    By three measures of the distance, and by the share of digits that the five nearest codes of
    10,000 training images name right; and log p(x) of 500 images, on a grid.
    """
    from sklearn.neighbors import KNeighborsClassifier

    test, train = images["test"], at_random(images["train"], 10_000)
    q_z, known = posteriors(model, test), posteriors(model, train)
    z = derived.drawn_from(q_z, 0) if noisy else q_z.loc
    prior = model.prior.sample(len(z), torch.Generator().manual_seed(1))
    nearest = KNeighborsClassifier(5).fit(known.loc.numpy(), train.labels.numpy())
    x = seen_by(model, test.subset(500).images.cpu(), torch.Generator().manual_seed(0))
    return {
        "mmd": mmd(z, prior).item(),
        "wasserstein": metrics.sliced_wasserstein(z, prior),
        "nearest": float(nearest.score(q_z.loc.numpy(), test.labels.numpy())),
        "log_px": exact.log_px(model, x).mean().item(),
    } | (surgery(model, q_z) if noisy else {})


def rung(model, images: dict[str, Images]) -> dict:
    """On test: -ELBO, KL, the bound (100 draws, first 1,000 images) and measures of samples.

    Where the prior is N(0, I) and q(z | x) normal, also with a mixture in the prior's place, fitted
    to latents of 10,000 training images: columns that begin with "mixture_".
    """
    row = _rung(model, images["test"])
    if (model.prior_name, model.posterior_name) == ("standard", "normal"):
        parts = at_random(images["train"], 10_000), images["val"]
        own, fit = model.prior, derived.best_mixture(*(derived.drawn(model, p) for p in parts))[0]
        model.prior = Fitted(fit)
        row |= {f"mixture_{name}": v for name, v in _rung(model, images["test"]).items()}
        model.prior = own
    return row


def _rung(model, test: Images) -> dict:
    terms, _ = elbo_terms(model, test)
    x = seen_by(model, test.images[:1000].cpu(), torch.Generator().manual_seed(0))
    bound = torch.stack(list(bounds(model, x.split(1), 100)))
    row = {"neg_elbo": -terms.elbo, "kl": terms.kl, "bound": -bound}
    row["elbo_gap"] = bound - terms.elbo[: len(bound)]
    found = samples.of_model(model, test)
    scores = {name: torch.tensor(v).flatten()[0] for name, v in found.items() if name != "n"}
    return {name: v.mean().item() for name, v in (row | scores).items()}


ALSO = {"test": elbo_on_test, "marginal": marginal, "factors": factors, "codes": codes}
ALSO |= {"rung": rung, "val_marginal": partial(marginal, splits=("val",))}


class ExperimentError(files.UserError):
    """An experiment is unknown or not well described; the message says what to do."""


def find(name: str | Path) -> Path:
    """The YAML file of an experiment, by its name or its path."""
    for path in (Path(name), FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    near = choices.nearest(str(name), known())
    raise ExperimentError(
        f"no experiment {str(name)!r}{near}: neither a file nor one of {', '.join(known())}"
    )


def known() -> list[str]:
    """The names of the experiments there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def planned(path: Path) -> list[dict]:
    """The runs of an experiment: of each what it changes, its seed and its whole recipe."""
    from sklearn.model_selection import ParameterGrid

    plan = files.read_recipe(path)
    whole = set(plan) - {"takes"} == KEYS and isinstance(plan["recipe"], dict)
    if not whole or not isinstance(plan["seeds"], list) or not plan["seeds"]:
        raise ExperimentError(
            f"{path} needs recipe, grid, seeds: keys and values, a grid, a list of seeds; it may "
            "have takes"
        )
    try:
        grid = list(ParameterGrid(plan["grid"]))
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"{path}: the grid needs lists of values ({error})") from error
    found = []
    for keys in grid:
        for seed in [keys.pop("seed")] if "seed" in keys else plan["seeds"]:
            recipe = plan["recipe"] | keys | {"seed": seed}
            found.append({"keys": keys, "seed": seed, "recipe": recipe})
    return found


def started(wanted: dict) -> tuple[Callable, dict[str, Images]]:
    """A run, ready to go, and its images by split; what is off with its keys is one line."""
    recipe = dict(wanted["recipe"])
    way = choices.choose("way", recipe.pop("way", "fit"), WAYS)
    names, n_train, _ = recipe.pop("also", []), recipe.pop("n_train", None), recipe.pop("keep", 0)
    if not isinstance(names, list):
        raise ExperimentError(f"also: {names}: give a list")
    also = [choices.choose("also", name, ALSO) for name in names]
    model, images, config = build(recipe)
    if {marginal, ALSO["val_marginal"]} & set(also):
        mcem.check_dims(model.latent_dim)
    if factors in also and not images["train"].factors:
        raise ExperimentError("also: factors: these images have none; sprites have some")
    if codes in also:
        exact.check(model)
        if images["train"].labels is None:
            raise ExperimentError("also: codes: these images have no labels; mnist has")
    if {factors, codes} & set(also) and model.posterior_name != "normal":
        raise ExperimentError("also: factors and codes are for the posterior normal")
    noisy = recipe.get("objective") != "autoencoder"
    also = [partial(f, noisy=noisy) if f in (factors, codes) else f for f in also]
    if n_train is not None:
        if not 0 < n_train <= len(images["train"]):
            raise ExperimentError(f"n_train {n_train}: give 1 to {len(images['train']):,}")
        images["train"] = at_random(images["train"], n_train)
    if not also:
        return partial(way, model, images, config), images
    source = DataConfig(**{f.name: recipe[f.name] for f in fields(DataConfig) if f.name in recipe})
    size = {"image_size": source.image_size, "channels": source.channels}
    images["test"] = data.load(source.data, "test", **size)

    def measure(history) -> None:
        for function in also:
            history.rows[-1] |= function(model, images)

    return partial(way, model, images, config, on_eval=measure), images


def run(path: Path) -> Path:
    """Run what is missing, saying how long it takes and how far it is; returns the results.

    A run that diverges ends as an error once the others have run, and is tried again next time.
    A run that was kept counts if its recipe, its images and torch's version are the same; after a
    change of the code, delete the results to have all of them anew.
    """
    plan = planned(path)
    if takes := files.read_recipe(path).get("takes"):
        print(f"{path.stem}: {len(plan)} runs, which take {takes} together; what is kept counts")
    with files.locked(path.parent, f".{path.stem}{files.LOCK}"):
        return _run(path, plan)


def _run(path: Path, plan: list[dict]) -> Path:
    """The runs of a plan, by one process alone."""
    target = path.with_suffix(".json")
    kept = files.read_mapping(target)["runs"] if target.exists() else []
    done, spent, broken = [], [], []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number, wanted in enumerate(plan, 1):
        began = time.perf_counter()
        go, images = started(wanted)
        sums = {split: some.sha256 for split, some in images.items()}
        wanted |= {"torch": torch.__version__, "images": sums}
        same = [old for old in kept if {k: old.get(k) for k in wanted} == wanted]
        keep = wanted["recipe"].get("keep") if wanted["seed"] == plan[0]["seed"] else None
        if same and (not keep or (path.parent / keep / files.WEIGHTS).exists()):
            done.append(same[0])
            continue
        left = f", about {spent[-1] * (len(plan) - number + 1) / 60:.0f} min left" if spent else ""
        print(f"{path.stem}, run {number} of {len(plan)}{left}: {wanted['keys']}", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what collapses is in the results
            try:
                rows = go().rows
            except BROKEN as error:  # the others go on
                broken.append(f"run {number} ({error})")
                print(f"{path.stem}, {broken[-1]}", flush=True)
                continue
        if keep:
            checkpoints.save(go.args[0], path.parent / keep)
            checkpoints.halve(path.parent / keep)
        history = [{name: round(value, 4) for name, value in row.items()} for row in rows]
        spent.append(time.perf_counter() - began)
        done.append(wanted | {"made_with": environment(device), "history": history})
        results = {"command": f"vaelib experiment {path.stem}"}
        results["runs"] = done + [old for old in kept if old not in done]
        files.write_json(target, results)
    if broken:
        raise ExperimentError(
            f"{path.stem}: {len(broken)} of {len(plan)} runs broke off, the others are kept: "
            f"{'; '.join(broken)}"
        )
    results, told = files.read_mapping(target), ""
    if results["runs"] != done:
        files.write_json(target, results | {"runs": done})
        told = f"; {len(results['runs']) - len(done)} dropped that are no longer planned"
    print(f"{target}: {len(done)} runs, {len(spent)} of them new{told}")
    return target


def runs(name: str | Path) -> list[dict]:
    """The runs of an experiment: of each its keys, seed, recipe and history."""
    path = find(name).with_suffix(".json")
    if not path.exists():
        raise ExperimentError(f"{path} is not there yet: run `vaelib experiment {path.stem}`")
    return files.read_mapping(path)["runs"]


def results(name: str | Path) -> list[dict]:
    """The runs of an experiment: the keys each changes, its seed, and its last row of history."""
    return [run["keys"] | {"seed": run["seed"]} | run["history"][-1] for run in runs(name)]

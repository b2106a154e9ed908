"""What is wrong with a run: before it starts, while it goes on, and when it breaks."""

import math
from pathlib import Path
from shlex import quote

import torch

from vaelib import checkpoints, choices, files, objectives
from vaelib.data import Images
from vaelib.evaluation import ACTIVE_THRESHOLD
from vaelib.files import UserError
from vaelib.objectives import Terms
from vaelib.recipes import TrainConfig


class TrainingError(UserError):
    """Training can't start or can't go on; the message says why and what to do."""


class Stopped(UserError):
    """A signal ended the run; its state is saved, and the message is how to go on."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.status = 128 + signal_number


LEFT_OVER = {files.RECIPE, files.LOCK, files.LOG}  # of a run that was killed before it saved


def how_to_go_on(folder: Path) -> str:
    """What to type for a run that has stopped."""
    return f"go on with: vaelib train -e {quote(str(folder))} --resume"


def refuse_occupied(folder: Path) -> None:
    """TrainingError where a run can't be started in a folder, as something is there already."""
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file: name another -e")
    there = {path.name for path in folder.glob("*")} if folder.exists() else set()
    there = {name for name in there if not files.is_temporary(name)} - LEFT_OVER
    if there & {files.STATE, files.WEIGHTS}:
        raise TrainingError(
            f"{folder} has a run: add --resume to go on with it, or name another -e"
        )
    if there:
        raise TrainingError(f"{folder} is not an empty folder: name another -e")


def finished(folder: Path, recipe: dict) -> str | None:
    """That the run in a folder has done all its steps, and how to make it longer; None if not."""
    run = checkpoints.read_run(folder / files.STATE)
    done, clocked = run["step"], run["config"]["minutes"] or recipe["clock_steps"]
    if recipe["minutes"] or not (done == recipe["steps"] or run["config"]["minutes"]):
        return None
    name = quote(str(folder))
    longer = f"To make it longer: vaelib train -e {name} --resume --steps {2 * done}"
    if clocked:
        longer = (
            "By the clock it can't be made longer; to start another from its weights: vaelib "
            f"train -c {name} --init {name} --steps {done} -e ANOTHER"
        )
    return f"{folder} is finished: all of its {done:,} steps are done. {longer}"


def check(model, data: dict[str, Images], config: TrainConfig, objective, world: int) -> None:
    """TrainingError, in one line, for a run that can't be."""
    for split in ("train", "val"):
        if not len(data[split]):
            raise TrainingError(f"the {split} split has no images; give at least one")
        shape = tuple(data[split].images.shape[1:])
        if shape != model.image_shape:
            raise TrainingError(
                f"images of {split} have shape {shape}, the model takes {model.image_shape}"
            )
    if odd := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise TrainingError(
            f"the model's weights are {odd.pop()}; give float32 ones (model.float()), and for bf16 "
            "precision bf16"
        )
    n_parts = world * config.accumulate
    if getattr(objective, "scores_batch", False) and n_parts > 1:
        raise TrainingError(
            f"{config.objective} scores a batch as a whole: give accumulate 1 and one process"
        )
    if not objectives.asks_for(objective, "beta") and (config.beta != 1 or config.kl_warmup):
        own = ", ".join(choices.own_parameters(objective, objectives.GIVEN)) or "none"
        raise TrainingError(
            f"{config.objective} has neither beta nor kl_warmup; its own parameters: {own}"
        )
    kinds = (model.prior_name, model.posterior_name)
    if getattr(objective, "needs_normals", False) and kinds != ("standard", "normal"):
        raise TrainingError(
            f"{config.objective} is for the prior standard and the posterior normal, and this "
            f"model has {' and '.join(kinds)}: take another objective"
        )
    if config.objective == "autoencoder" and list(model.prior.parameters()):
        raise TrainingError("an autoencoder asks no prior, so none is learned: leave prior out")
    if config.two_stage and not list(model.prior.parameters()):
        raise TrainingError(
            f"two_stage trains the prior alone, and {model.prior_name} has nothing to learn: "
            "give prior vamp or flow"
        )
    if config.batch_size % n_parts:
        raise TrainingError(
            f"batch_size {config.batch_size} in {n_parts} equal parts (processes times "
            f"accumulate): give a multiple of {n_parts}"
        )


def collapse(row: dict, model, config: TrainConfig, last: bool) -> tuple[str, str] | None:
    """When q(z | x) has become the prior in all or some dimensions: which case, and what to do."""
    if row["beta"] < config.beta or not {"val_kl", "active_units"} <= row.keys():
        return None  # still warming up; or z has no price; or one image says nothing of z
    dead = model.latent_dim - row["active_units"]
    # what is near the prior has less than a nat a dimension
    if row["active_units"] == 0 and row["val_kl"] > max(10, model.latent_dim):
        return "diverging", (
            f"step {row['step']}: q(z | x) is the same for every image, and its KL is"
            f" {row['val_kl']:,.0f} nats: the run is diverging. Lower lr (it is {config.lr:g})."
        )
    if row["active_units"] == 0:
        return "whole", (
            f"step {row['step']}: the whole posterior has collapsed (KL {row['val_kl']:.2f} nats,"
            " no active dimension): z is ignored. Set kl_warmup to a tenth of the steps or more,"
            " lower beta or lr, or take a weaker decoder."
        )
    if dead and last:
        return "some", (
            f"{dead} of {model.latent_dim} latent dimensions have collapsed: on val their mean"
            f" varies by less than {ACTIVE_THRESHOLD}. The ELBO often asks for that; a smaller"
            " latent_dim does as well, a longer kl_warmup or a smaller beta may use more."
        )
    return None


def diverged(model, terms: Terms, step: int, config: TrainConfig, row: dict) -> str:
    """What went wrong when the loss, its gradient or the row of val is not finite; what to do."""
    names = ("log_px_z", "kl")
    values = {name: getattr(terms, name) for name in names} | terms.extras
    bad = [k for k, v in values.items() if v is not None and not torch.isfinite(v).all()]
    bad = bad or [k for k, v in row.items() if k[:4] == "val_" and not math.isfinite(v)]
    weights = [k for k, v in model.state_dict().items() if not torch.isfinite(v).all()]
    what = f"{' and '.join(bad) or 'the gradient'} not finite"
    if weights:
        what += f", and so are {len(weights)} weights ({weights[0]}, ...)"
    return (
        f"training diverged by step {step + 1}: {what}. Lower lr (it is {config.lr:g}), lower "
        f"clip (it is {config.clip:g}), or set precision to fp32."
    )

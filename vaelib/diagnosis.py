"""What is wrong with a run: before it starts, while it goes on, and when it breaks."""

import warnings

import torch

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
    n_parts = world * config.accumulate
    if getattr(objective, "scores_batch", False) and n_parts > 1:
        raise TrainingError(
            f"{config.objective} scores a batch as a whole: give accumulate 1 and one process"
        )
    if config.batch_size % n_parts:
        raise TrainingError(
            f"batch_size {config.batch_size} in {n_parts} equal parts (processes times "
            f"accumulate): give a multiple of {n_parts}"
        )
    if config.minutes and world > 1:
        raise TrainingError(f"minutes is for one process; give steps to {world} of them")


def warn_of_collapse(row: dict, model, config: TrainConfig, last: bool) -> None:
    """Warn, with what to do, when q(z | x) has become the prior in all or some dimensions."""
    dead = model.latent_dim - row["active_units"]
    if row["beta"] < config.beta or "val_kl" not in row:
        return  # still warming up; or z has no price
    if row["active_units"] == 0 and row["val_kl"] > 1:
        warnings.warn(
            f"step {row['step']}: q(z | x) is the same for every image, and its KL is"
            f" {row['val_kl']:,.0f} nats: the run is diverging. Lower lr (it is {config.lr:g}).",
            stacklevel=3,
        )
    elif row["active_units"] == 0:
        warnings.warn(
            f"step {row['step']}: the whole posterior has collapsed (KL {row['val_kl']:.2f} nats,"
            " no active dimension): z is ignored. Set kl_warmup to a tenth of the steps or more,"
            " lower beta or lr, or take a weaker decoder.",
            stacklevel=3,
        )
    elif dead and last:
        warnings.warn(
            f"{dead} of {model.latent_dim} latent dimensions have collapsed: on val their mean"
            f" varies by less than {ACTIVE_THRESHOLD}. The ELBO often asks for that; a smaller"
            " latent_dim does as well, a longer kl_warmup or a smaller beta may use more.",
            stacklevel=3,
        )


def diverged(model, terms: Terms, step: int, config: TrainConfig) -> str:
    """What went wrong when the loss or its gradient is not finite, and what to do."""
    names = ("log_px_z", "kl")
    values = {name: getattr(terms, name) for name in names} | terms.extras
    bad = [k for k, v in values.items() if v is not None and not torch.isfinite(v).all()]
    weights = [k for k, v in model.state_dict().items() if not torch.isfinite(v).all()]
    what = f"{' and '.join(bad) or 'the gradient'} not finite"
    if weights:
        what += f", and so are {len(weights)} weights ({weights[0]}, ...)"
    return (
        f"training diverged by step {step + 1}: {what}. Lower lr (it is {config.lr:g}), lower "
        f"clip (it is {config.clip:g}), or set precision to fp32."
    )

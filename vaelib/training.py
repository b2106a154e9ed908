"""Training: `fit` is one loop. Draw a batch, objective, backward, step; sometimes look.

Every random number of step t comes from a generator seeded by (seed, t), so a run that was
killed and resumed draws what it would have drawn, and two processes draw the global batch's
numbers and take their slices of it.
"""

import math
import time
import warnings
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torchvision.utils import save_image
from tqdm.auto import tqdm

from vaelib import checkpoints, objectives
from vaelib.data import Images
from vaelib.evaluation import (
    ACTIVE_THRESHOLD,
    active_units,
    compiled,
    elbo_terms,
    seen_by,
    use_bf16,
)

STATE = "state.safetensors"


class TrainingError(RuntimeError):
    """Training can't start or can't go on; the message says why and what to do."""


@dataclass
class TrainConfig:
    """How to train. These are the keys of a recipe, beside the data's and the model's.

    objective : what is maximised, a function of `vaelib.objectives`.
    beta : weight of the KL; 1 is the ELBO.
    kl_warmup : steps over which that weight rises linearly from 0.
    steps : optimiser steps.
    batch_size : images per step, over all processes together.
    lr : peak learning rate of AdamW: linear warm-up over 10 % of the steps, then cosine to 0.
    weight_decay : AdamW's.
    clip : largest norm of the gradient, in nats per parameter unit.
    precision : bf16 or fp32 for the networks (the loss is always fp32); auto takes bf16
        where the processor computes in it.
    compile : use torch.compile where there is a compiler.
    eval_every : steps between looks at the validation split.
    seed : of everything random.
    tensorboard : also write TensorBoard files into the run folder.
    """

    objective: Literal["elbo"] = "elbo"
    beta: float = 1.0
    kl_warmup: int = 0
    steps: int = 2000
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05
    clip: float = 200.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    eval_every: int = 500
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        for name in ("steps", "batch_size", "lr", "eval_every", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("beta", "kl_warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass
class History:
    """One row per look at the validation split: step, seconds, nats of train and val."""

    rows: list[dict] = field(default_factory=list)

    def column(self, name: str) -> list:
        """The values of one column, over the rows."""
        return [row[name] for row in self.rows]


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up over the first tenth of the steps, then a cosine down to 0."""
    done, warmup = (step + 1) / config.steps, 0.1
    if done < warmup:
        return config.lr * done / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def kl_weight(step: int, config: TrainConfig) -> float:
    """beta, or less of it while the KL is warming up."""
    return config.beta * min(1.0, (step + 1) / config.kl_warmup if config.kl_warmup else 1.0)


def batch_indices(step: int, n_images: int, config: TrainConfig) -> torch.Tensor:
    """Which images step `step` sees: the next `batch_size` of a fresh shuffle per epoch.

    Shapes: -> (batch_size,) int64. Every image comes once an epoch, whatever the batch size.
    """
    first = step * config.batch_size
    indices = []
    for epoch in range(first // n_images, (first + config.batch_size - 1) // n_images + 1):
        start = max(first - epoch * n_images, 0)
        stop = first + config.batch_size - epoch * n_images
        indices.append(_shuffle(n_images, _seed(config.seed, 1, epoch))[start:stop])
    return torch.cat(indices)


@lru_cache(maxsize=2)
def _shuffle(n_images: int, seed: int) -> torch.Tensor:
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))


def step_seed(seed: int, step: int) -> int:
    """The seed of all noise of one step."""
    return _seed(seed, 2, step)


def _seed(*parts: int) -> int:
    """One 63-bit seed from several small numbers (a multiplicative hash, so none repeat)."""
    value = 0
    for part in parts:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return value


def fit(
    model,
    data: dict[str, Images],
    config: TrainConfig,
    run_dir: Path | str | None = None,
    resume: bool = False,
    on_eval=None,
) -> History:
    """Train `model` in place on data["train"], watching data["val"].

    With `run_dir`, the weights best on val, the history, sample pictures and the state are
    kept there, and `resume` goes on from that state to the very weights of an unbroken run.
    `on_eval(history)` is called after each look at val. Without `run_dir` the model ends
    with its last weights. Raises TrainingError when the loss is not finite, or when there
    is nothing to resume.
    """
    accelerator = Accelerator(mixed_precision="no")
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch_size % world:
        raise TrainingError(
            f"batch_size {config.batch_size} over {world} processes: give a multiple of {world}"
        )
    resume_dir, run_dir = run_dir, Path(run_dir) if run_dir and rank == 0 else None
    train = data["train"].to(device)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    history, start, best = History(), 0, -math.inf
    if resume:
        about = checkpoints.load_state(Path(resume_dir) / STATE, model, optimizer)
        changed = [k for k, v in asdict(config).items() if about["config"].get(k) != v]
        if changed:
            raise TrainingError(
                f"{resume_dir} was started with another {', '.join(changed)}; resume it unchanged"
            )
        history, start, best = History(about["rows"]), about["step"], about["best"]
    wrapped = accelerator.prepare_model(model)  # DistributedDataParallel under several processes
    objective = getattr(objectives, config.objective)
    if config.compile and world == 1:
        objective = compiled(objective)
    autocast = torch.autocast(device.type, torch.bfloat16, use_bf16(config.precision, device))
    generator = torch.Generator(device)
    mine = slice(rank * config.batch_size // world, (rank + 1) * config.batch_size // world)
    board = None
    if config.tensorboard and run_dir:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(run_dir / "tensorboard")
    running = torch.zeros((), device=device)
    began, seen_at = time.perf_counter(), start

    steps = range(start, config.steps)
    progress = tqdm(
        steps, initial=start, total=config.steps, unit="step", disable=rank > 0, mininterval=0.5
    )
    for step in progress:
        # draw the global batch and its noise, and keep this process's slice
        generator.manual_seed(step_seed(config.seed, step))
        indices = batch_indices(step, len(train), config).to(device)
        x = seen_by(model, train.images[indices], generator)[mine]  # (B, C, H, W)
        eps = torch.randn(config.batch_size, model.latent_dim, generator=generator, device=device)
        beta = torch.tensor(kl_weight(step, config), device=device)

        # loss = -mean over images of the objective, in nats
        with autocast:
            terms = objective(wrapped, x, eps[mine], beta)
        loss = -terms.objective.mean()
        accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += terms.elbo.detach().mean()

        # every so often: look at the validation split, draw, save
        if (step + 1) % config.eval_every and step + 1 < config.steps:
            continue
        train_elbo = accelerator.reduce(running, "mean").item() / (step + 1 - seen_at)
        if not (math.isfinite(train_elbo) and torch.isfinite(norm)):
            raise TrainingError(diagnosis(model, terms, step, config))
        speed = (step + 1 - seen_at) * config.batch_size / (time.perf_counter() - began)
        row = {"step": step + 1, "train_elbo": train_elbo, "beta": beta.item()}
        row |= validate(model, data["val"], autocast)
        seconds = time.perf_counter() - began + (history.rows or [{"seconds": 0}])[-1]["seconds"]
        row |= {"images_per_s": round(speed, 1), "seconds": round(seconds, 2)}
        history.rows.append(row)
        warn_of_collapse(row, model, config)
        progress.set_postfix_str(f"val {-row['val_elbo']:.2f} nats, {speed:,.0f} images/s")
        if run_dir:
            if row["val_elbo"] > best:
                best = row["val_elbo"]
                checkpoints.save(model, run_dir)
            draw_samples(model, run_dir / "samples" / f"{step + 1:07d}.png", device)
            checkpoints.write_json(run_dir / "history.json", history.rows)
            about = {"step": step + 1, "best": best, "rows": history.rows, "config": asdict(config)}
            checkpoints.save_state(run_dir / STATE, model, optimizer, about)
        if board:
            for name in row.keys() - {"step"}:
                board.add_scalar(name, row[name], step + 1)
            board.flush()
        if on_eval:
            on_eval(history)
        running.zero_()
        seen_at, began = step + 1, time.perf_counter()
    model.eval()
    return history


def validate(model, val: Images, autocast) -> dict:
    """One row about the validation split: mean nats per image, and active units."""
    with autocast:
        terms, q_z = elbo_terms(model, val)
    return {
        "val_elbo": terms.elbo.mean().item(),
        "val_log_px_z": terms.log_px_z.mean().item(),
        "val_kl": terms.kl.mean().item(),
        "active_units": active_units(q_z),
    }


def warn_of_collapse(row: dict, model, config: TrainConfig) -> None:
    """Warn, with what to do, when q(z | x) has become the prior in all or some dimensions."""
    dead = model.latent_dim - row["active_units"]
    if row["beta"] < config.beta:
        return  # still warming up
    if row["active_units"] == 0:
        warnings.warn(
            f"step {row['step']}: the whole posterior has collapsed (KL {row['val_kl']:.2f} nats,"
            " no active dimension): z is ignored. Set kl_warmup to a tenth of the steps or more,"
            " lower beta or lr, or take a weaker decoder.",
            stacklevel=3,
        )
    elif dead and row["step"] == config.steps:
        warnings.warn(
            f"{dead} of {model.latent_dim} latent dimensions have collapsed: on val their mean"
            f" varies by less than {ACTIVE_THRESHOLD}. The ELBO often asks for that; a smaller"
            " latent_dim does as well, a longer kl_warmup or a smaller beta may use more.",
            stacklevel=3,
        )


def diagnosis(model, terms, step: int, config: TrainConfig) -> str:
    """What went wrong when the loss or its gradient is not finite, and what to do."""
    names = ("log_px_z", "kl")
    bad = [name for name in names if not torch.isfinite(getattr(terms, name)).all()]
    weights = [k for k, v in model.state_dict().items() if not torch.isfinite(v).all()]
    what = f"{' and '.join(bad) or 'the gradient'} not finite"
    if weights:
        what += f", and so are {len(weights)} weights ({weights[0]}, ...)"
    return (
        f"training diverged by step {step + 1}: {what}. Lower lr (it is {config.lr:g}), lower "
        f"clip (it is {config.clip:g}), or set precision to fp32."
    )


@torch.inference_mode()
def draw_samples(model, path: Path, device) -> None:
    """Write an 8x8 grid of decoded prior draws, the same z at every step, as a PNG."""
    z = torch.randn(64, model.latent_dim, generator=torch.Generator().manual_seed(0))
    with checkpoints.atomic(path) as temporary:
        save_image(model.decode(z.to(device)).mean, temporary, format="png")

"""Training: `fit` is one loop. Draw a batch, objective, backward, step; sometimes look."""

import math
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

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
from vaelib.recipes import (
    TrainConfig,
    batch_indices,
    kl_weight,
    learning_rate,
    moments,
    step_seed,
)

STATE = "state.safetensors"
# images of val that are looked at, at most; ten looks of a clocked run must fit its time
LOOK, CLOCKED_LOOK = 5000, 1000


class TrainingError(RuntimeError):
    """Training can't start or can't go on; the message says why and what to do."""


@dataclass
class History:
    """One row per look at the validation split: step, seconds, nats of train and val.

    `pace` is a clocked run's: see `TrainConfig`.
    """

    rows: list[dict] = field(default_factory=list)
    pace: list[int] = field(default_factory=list)

    def column(self, name: str) -> list:
        """The values of one column, over the rows."""
        return [row[name] for row in self.rows]


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
    kept there, and `resume` goes on from that state to the very weights of an unbroken run;
    with more steps in `config`, the schedule goes on as if they had been planned.
    `on_eval(history)` is called after each look at val. Without `run_dir` the model ends
    with its last weights. Raises TrainingError when the loss is not finite, or when there
    is nothing to resume.
    """
    accelerator = Accelerator(mixed_precision="no")
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    share = world * config.accumulate
    if config.batch_size % share:
        raise TrainingError(
            f"batch_size {config.batch_size} in {share} equal parts (processes times accumulate): "
            f"give a multiple of {share}"
        )
    if config.minutes and world > 1:
        raise TrainingError(f"minutes is for one process; give steps to {world} of them")
    resume_dir, run_dir = run_dir, Path(run_dir) if run_dir and rank == 0 else None
    train, val = data["train"].to(device), data["val"]
    val = val.subset(CLOCKED_LOOK if config.minutes or config.pace else LOOK)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    history, start, best = History(), 0, -math.inf
    if resume:
        about = checkpoints.load_state(Path(resume_dir) / STATE, model, optimizer)
        changed = [k for k, v in asdict(config).items() if about["config"].get(k) != v]
        if set(changed) - {"steps"} or (changed and config.pace):
            raise TrainingError(
                f"{resume_dir} was started with another {', '.join(changed)}; only steps may "
                "change, and not of a clocked run"
            )
        if about.get("n_train", len(train)) != len(train):
            raise TrainingError(
                f"{resume_dir} was started on {about['n_train']:,} images, now there are "
                f"{len(train):,}; start a new run"
            )
        history = History(about["rows"], about["pace"])
        start, best = about["step"], about["best"]
        planned = about["config"]["steps"]
        if config.steps < planned:
            raise TrainingError(
                f"{resume_dir} was planned for {planned:,} steps; give at least that"
            )
    wrapped = accelerator.prepare_model(model)  # DistributedDataParallel under several processes
    objective = getattr(objectives, config.objective)
    draws = () if config.objective == "elbo" else (config.n_importance,)
    compute = compiled(objective) if config.compile and world == 1 else objective
    autocast = torch.autocast(device.type, torch.bfloat16, use_bf16(config.precision, device))
    generator = torch.Generator(device)
    size = config.batch_size // share
    mine = [slice(i * size, (i + 1) * size) for i in range(share)][rank::world]
    board = None
    if config.tensorboard and run_dir:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(run_dir / "tensorboard")
    running = torch.zeros((), device=device)
    spent = (history.rows or [{"seconds": 0.0}])[-1]["seconds"]
    began, seen_at = time.perf_counter(), start

    total = None if config.minutes else config.steps
    progress = tqdm(
        moments(config, start, history.pace, spent),
        f"{config.minutes:g} minutes" if config.minutes else None,
        total, initial=start, unit="step", disable=rank > 0, mininterval=0.5,
    )  # fmt: skip
    for step, done, look in progress:
        # draw the global batch and its noise, of which this process takes its parts
        generator.manual_seed(step_seed(config.seed, step))
        indices = batch_indices(step, len(train), config).to(device)
        images = train.images[indices]  # (B, C, H, W) uint8
        if config.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        x = seen_by(model, images, generator)  # (B, C, H, W) float
        eps = torch.randn(
            *draws, config.batch_size, model.latent_dim, generator=generator, device=device
        )  # (B, D), or (K, B, D)
        beta = torch.tensor(kl_weight(step, config), device=device)

        # loss = -mean over images of the objective, in nats
        for i, part in enumerate(mine):
            waits = i < len(mine) - 1  # processes exchange gradients after the last part alone
            with accelerator.no_sync(wrapped) if waits else nullcontext():
                with autocast:
                    terms = compute(wrapped, x[part], eps[..., part, :], beta)
                loss = -terms.objective.mean() / config.accumulate
                accelerator.backward(loss)
            running += terms.elbo.detach().mean() / config.accumulate
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # every so often: look at the validation split, draw, save
        if not look:
            continue
        train_elbo = accelerator.reduce(running, "mean").item() / (step + 1 - seen_at)
        if not (math.isfinite(train_elbo) and torch.isfinite(norm)):
            raise TrainingError(diagnosis(model, terms, step, config))
        speed = (step + 1 - seen_at) * config.batch_size / (time.perf_counter() - began)
        row = {"step": step + 1, "train_elbo": train_elbo, "beta": beta.item()}
        with autocast:
            row |= validate(model, val, partial(objective, beta=config.beta), draws)
        spent += time.perf_counter() - began
        row |= {"images_per_s": round(speed, 1), "seconds": round(spent, 2)}
        history.rows.append(row)
        warn_of_collapse(row, model, config, last=done == 1)
        progress.set_postfix_str(f"val {-row['val_elbo']:.2f} nats, {speed:,.0f} images/s")
        if run_dir:
            if row["val_objective"] > best:
                best = row["val_objective"]
                checkpoints.save(model, run_dir)
            draw_samples(model, run_dir / "samples" / f"{step + 1:07d}.png", device)
            checkpoints.write_json(run_dir / "history.json", history.rows)
            about = {"step": step + 1, "best": best, "config": asdict(config)} | asdict(history)
            about["n_train"] = len(train)
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


def validate(model, val: Images, objective, draws: tuple) -> dict:
    """One row about the validation split: mean nats per image, and active units."""
    terms, q_z = elbo_terms(model, val, objective=objective, draws=draws)
    return {
        "val_objective": terms.objective.mean().item(),
        "val_elbo": terms.elbo.mean().item(),
        "val_log_px_z": terms.log_px_z.mean().item(),
        "val_kl": terms.kl.mean().item(),
        "active_units": active_units(q_z),
    }


def warn_of_collapse(row: dict, model, config: TrainConfig, last: bool) -> None:
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
    elif dead and last:
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

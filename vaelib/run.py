"""What is around a training loop: processes, the stream of batches, evaluation steps, files.

`vaelib.training.fit` is a loop over a `Run`; another way to train is another loop over one, in
a file of its own.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vaelib import checkpoints, files, objectives, recipes, reports
from vaelib.data import Images, as_picture
from vaelib.diagnosis import Stopped, TrainingError, check, collapse, diverged, how_to_go_on
from vaelib.evaluation import active_units, elbo_terms
from vaelib.hardware import can_compile, compiled, cpu_only, noted_signals, shared, use_bf16
from vaelib.objectives import Terms
from vaelib.progress import COMPILING, first_is_done, progress
from vaelib.recipes import Step, TrainConfig, kl_weight
from vaelib.stream import Batch, Stream, step_seed

RANK = int(os.environ.get("RANK", 0))  # of this process among those that torchrun started
# of each optimizer: its class in torch.optim, and the arguments that a recipe may replace
OPTIMIZERS = {
    "adamw": ("AdamW", {"betas": (0.9, 0.99), "fused": True}),
    "adam": ("Adam", {"fused": True}),
    "adagrad": ("Adagrad", {}),
}


@dataclass
class History:
    """One row per evaluation on the validation split: step, seconds, nats of train and val.

    `clock_steps` and `plans`, which a recipe needs to replay the run: see `TrainConfig`.
    """

    rows: list[dict] = field(default_factory=list)
    clock_steps: list[int] = field(default_factory=list)
    plans: list[list[int]] = field(default_factory=list)

    def column(self, name: str) -> list:
        """The values of one column, over the rows; None where a row has none."""
        return [row.get(name) for row in self.rows]


def make_optimizer(parameters: list, config: TrainConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser over some parameters; ValueError for arguments that it lacks."""
    if not parameters:
        raise TrainingError("the model has no parameter to train")
    name, arguments = OPTIMIZERS[config.optimizer]
    arguments = arguments | {"lr": config.lr, "weight_decay": config.weight_decay}
    groups = [{"params": parameters}]
    if not config.decay_vectors and config.weight_decay:
        groups = [{"params": [p for p in parameters if p.dim() > 1]}]
        groups += [{"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    try:
        return getattr(torch.optim, name)(groups, **arguments | config.optimizer_args)
    except TypeError as error:
        raise ValueError(f"optimizer_args {config.optimizer_args}: {error}") from error


class Run:
    """What is around a training loop: processes, batches, evaluation steps, saving, resuming."""

    def __init__(
        self,
        model,
        data: dict[str, Images],
        config: TrainConfig,
        run_dir: Path | str | None = None,
        resume: bool = False,
        on_eval: Callable[[History], None] | None = None,
        optimizers: list[torch.optim.Optimizer] | None = None,
        began: float | None = None,
    ):
        self.model, self.config, self.on_eval = model, config, on_eval
        self.objective = objectives.chosen(config.objective, config.objective_args)
        self.accelerator = Accelerator(mixed_precision="no", cpu=cpu_only())
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        check(model, data, config, self.objective, self.world)
        self.go_on = how_to_go_on(Path(run_dir)) if run_dir else ""
        self.run_dir = Path(run_dir) if run_dir and self.rank == 0 else None
        self.val = data["val"].subset(recipes.n_eval(config))
        model.to(self.device, memory_format=torch.channels_last).train()
        for name, part in model.named_children() if config.two_stage else ():
            part.requires_grad_(name == "prior")  # and they stay so
        self.optimizers = optimizers or [make_optimizer(list(model.parameters()), config)]
        with_noise = objectives.asks_for(self.objective, "noise")
        self.stream = Stream(model, data["train"].to(self.device), config, with_noise)
        self.history, self.start, self.best = History(plans=config.plans), 0, -math.inf
        self.running, self.extra, self.said = {}, {}, set()  # sums; another way's tensors; warnings
        self.evaluated, self.elapsed, self.spare = 0, 0.0, 0.0  # step, end, length of the last one
        self.made = getattr(model, "_hub_mixin_config", None)  # the model's arguments
        if self.run_dir or resume:
            self.images = {split: data[split].sha256 for split in ("train", "val")}
        if resume:
            self.resume(Path(run_dir))
        self.wrapped = self.accelerator.prepare_model(model)  # DistributedDataParallel, of several
        self.compiles = config.compile and self.world == 1 and can_compile()
        self.compute = compiled(self.objective) if self.compiles else self.objective
        bf16 = use_bf16(config.precision, self.device, self.compiles)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, bf16)
        self.timed = time.perf_counter()  # from here images are counted, seconds from `began`
        self.began = self.timed if began is None else began

    def resume(self, folder: Path) -> None:
        """Go on from the state in a folder; TrainingError where it is of another run."""
        self.extra, run = checkpoints.load_state(folder / files.STATE, self.model, self.optimizers)
        config = asdict(self.config)
        before = asdict(TrainConfig()) | recipes.WHEN_ABSENT | run["config"]
        changed = [key for key, value in config.items() if before.get(key) != value]
        if set(changed) - {"steps", "plans"} or (changed and self.config.clock_steps):
            raise TrainingError(
                f"{folder} was started with another {', '.join(changed)}; only steps may "
                "change, and not of a clocked run"
            )
        usual = {f.name: f.default for f in fields(recipes.ModelConfig)}  # of keys that are younger
        if usual | (run.get("model") or self.made or {}) != usual | (self.made or {}):
            raise TrainingError(f"{folder} was started with another model; start a new run")
        for split, sha256 in self.images.items():
            if run["images"][split] != sha256:
                raise TrainingError(f"{folder} started on other {split} images; start a new run")
        if self.config.steps < before["steps"]:
            raise TrainingError(
                f"{folder} was planned for {before['steps']:,} steps; give at least that"
            )
        self.history, self.start, self.best = History(**run["history"]), run["step"], run["best"]
        self.evaluated, self.elapsed = run["evaluated"], run["elapsed"]
        self.spare = run.get("spare", 0.0)
        names = [key for key in self.extra if key.startswith("running.")]
        self.running = {key[8:]: self.extra.pop(key).to(self.device) for key in names}
        if self.config.steps > before["steps"]:
            self.history.plans.append([self.start, before["steps"]])
        self.config.plans = self.history.plans

    def steps(self) -> Iterator[Step]:
        """The steps still to do, behind a progress bar."""
        config, clock, clocked = self.config, self.history.clock_steps, self.config.minutes

        def seconds() -> float:
            return shared(time.perf_counter(), self.device)

        elapsed = shared(self.elapsed + seconds() - self.began, self.device) if clocked else 0.0
        self.bar = progress(
            recipes.steps(config, self.start, clock, elapsed, seconds, lambda: self.spare),
            f"{clocked:g} minutes" if clocked else None, None if clocked else config.steps,
            initial=self.start, unit="step", disable=self.rank > 0, mininterval=0.5,
            postfix=COMPILING if self.compiles else None,
        )  # fmt: skip
        with noted_signals(bool(self.go_on), self.world > 1) as noted:
            for step in self.bar:
                yield step
                if step.number == self.start:
                    first_is_done(self.bar)
                number = shared(noted.number, self.device, highest=True)
                if number and step.progress != 1:
                    self.save_state(done := step.number + 1)
                    raise Stopped(f"stopped at step {done:,}; {self.go_on}", int(number))

    def epoch(self, step: Step) -> float:
        """How many times each training image has been seen before this step."""
        return recipes.epoch(step.number, len(self.stream.train), self.config)

    def micro_batches(self, step: Step) -> Iterator[Batch]:
        """This process's parts of the step's global batch, one after the other."""
        batch, n_parts = self.stream.batch(step.number), self.world * self.config.accumulate
        size = self.config.batch_size // n_parts
        parts = [slice(i * size, (i + 1) * size) for i in range(n_parts)][self.rank :: self.world]
        for images in parts:
            waits = images is not parts[-1]  # gradients are exchanged after the last part alone
            with self.accelerator.no_sync(self.wrapped) if waits else nullcontext():
                yield batch.part(images)

    def objective_terms(self, batch: Batch, beta: Tensor, step: Step) -> Terms:
        """The objective of some images, with what it asked for."""
        given = self.given(step, batch.noise)
        with self.autocast:
            return self.compute(
                self.wrapped, batch.x, batch.eps, beta, **given, **self.config.objective_args
            )

    def given(self, step: Step, noise: Tensor | None) -> dict:
        """What the objective asked the loop for; see `objectives.GIVEN`."""
        given = {"noise": noise, "n_train": len(self.stream.train)}
        if objectives.asks_for(self.objective, "progress"):
            given["progress"] = torch.tensor(step.progress, device=self.device)
        return {k: v for k, v in given.items() if objectives.asks_for(self.objective, k)}

    def note(self, terms: Terms) -> None:
        """Add a micro-batch's means to those since the last evaluation."""
        means = {"elbo": terms.elbo, "objective": terms.objective} | terms.extras
        for name, values in means.items():
            if values is not None:
                mean = values.detach().mean() / self.config.accumulate
                self.running[name] = self.running.get(name, 0.0) + mean

    def eval_step(self, step: Step, terms: Terms, norm: Tensor) -> None:
        """Evaluate on the validation split, draw, save. TrainingError where nothing is finite."""
        n_steps = step.number + 1 - self.evaluated
        means = {k: self.accelerator.reduce(v, "mean").item() for k, v in self.running.items()}
        row = {f"train_{name}": mean / n_steps for name, mean in means.items()}
        if not (all(map(math.isfinite, row.values())) and torch.isfinite(norm)):
            raise TrainingError(diverged(self.model, terms, step.number, self.config, row))
        speed = n_steps * self.config.batch_size / ((now := time.perf_counter()) - self.timed)
        row |= {"step": step.number + 1, "beta": kl_weight(step.number, self.config)}
        with self.autocast:
            row |= self.validate(step)
        if not all(map(math.isfinite, row.values())):
            raise TrainingError(diverged(self.model, terms, step.number, self.config, row))
        self.elapsed += time.perf_counter() - self.began
        row |= {"images_per_s": round(speed, 1), "seconds": round(self.elapsed, 2)}
        self.history.rows.append(row)
        if found := collapse(row, self.model, self.config, last=step.progress == 1):
            self.warn(*found)
        shown = -row.get("val_elbo", row["val_objective"])
        self.bar.set_postfix_str(f"val {shown:.2f} nats, {speed:,.0f} images/s")
        self.running, self.evaluated = {}, step.number + 1
        if self.run_dir:
            self.save(row)
        if self.on_eval:
            self.on_eval(self.history)
        self.began = self.timed = time.perf_counter()
        self.spare = shared(self.began - now, self.device)

    def warn(self, kind: str, message: str) -> None:
        """Warn beside the progress bar, once of each kind."""
        if self.rank == 0 and kind not in self.said:
            self.said.add(kind)
            with self.bar.external_write_mode():
                warnings.warn(message, stacklevel=4)

    def save_state(self, step: int) -> None:
        """Keep all that the run needs to go on after this step."""
        running = {k: self.accelerator.reduce(v, "mean") for k, v in self.running.items()}
        if not self.run_dir:
            return
        between = time.perf_counter() - self.began if step > self.evaluated else 0.0
        run = {"step": step, "best": self.best, "images": self.images}
        run |= {"config": asdict(self.config), "history": asdict(self.history), "model": self.made}
        run |= {"evaluated": self.evaluated, "spare": self.spare, "elapsed": self.elapsed + between}
        extra = self.extra | {f"running.{name}": value for name, value in running.items()}
        path = self.run_dir / files.STATE
        checkpoints.save_state(path, self.model, self.optimizers, extra, run)

    def validate(self, step: Step) -> dict:
        """Mean nats per image of the validation split, by the recipe's own beta; active units.

        An objective that scores a batch as a whole gets whole batches.
        """
        config, val, batch = self.config, self.val, 100
        if getattr(self.objective, "scores_batch", False):
            batch = min(config.batch_size, len(val))
            val = val.subset(len(val) // batch * batch)
        generator = torch.Generator().manual_seed(step_seed(config.seed, 0))

        def scored(model, x: Tensor, eps: Tensor) -> Terms:
            noise = torch.randn(eps.shape[1:], generator=generator).to(self.device)
            given = self.given(step, noise)
            return self.objective(model, x, eps, config.beta, **given, **config.objective_args)

        terms, q_z = elbo_terms(self.model, val, 0, batch, scored, config.n_importance)
        means = {"objective": terms.objective, "elbo": terms.elbo, "log_px_z": terms.log_px_z}
        means |= {"kl": terms.kl} | terms.extras
        row = {f"val_{k}": v.mean().item() for k, v in means.items() if v is not None}
        return row | ({} if len(val) < 2 else {"active_units": active_units(q_z)})

    def save(self, row: dict) -> None:
        """Keep the weights if they are the best on val, the history, samples and the state."""
        if row["val_objective"] > self.best:
            self.best = row["val_objective"]
            checkpoints.save(self.model, self.run_dir)
        draw_samples(self.model, self.run_dir / "samples" / f"{row['step']:07d}.png", self.device)
        files.write_json(self.run_dir / files.HISTORY, self.history.rows)
        log = [reports.head(self.run_dir / files.LOG), *map(reports.log_line, self.history.rows)]
        files.write_text(self.run_dir / files.LOG, "".join(log))
        self.save_state(row["step"])
        if self.config.tensorboard:
            reports.write_tensorboard(self.run_dir / "tensorboard", row)


@torch.inference_mode()
def draw_samples(model, path: Path, device) -> None:
    """Write an 8x8 grid of decoded prior draws, the same z at every step, as a PNG."""
    z = model.prior.sample(64, torch.Generator().manual_seed(0))
    pictures = nn.functional.pad(model.decode(z.to(device)).mean.cpu(), (2, 0, 2, 0))
    rows = pictures.unflatten(0, (8, 8)).permute(2, 0, 3, 1, 4)  # (C, 8, H + 2, 8, W + 2)
    grid = nn.functional.pad(rows.flatten(3).flatten(1, 2), (0, 2, 0, 2))
    with files.atomic(path) as temporary:
        as_picture(grid).save(temporary, format="png")

"""Training: `fit` is one loop. Draw a batch, objective, backward, step; sometimes evaluate."""

import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from accelerate import PartialState

from vaelib import budget, checkpoints, choices, data, hardware, objectives
from vaelib.data import Images
from vaelib.diagnosis import TrainingError, check
from vaelib.models import VAE
from vaelib.recipes import DataConfig, ModelConfig, Step, TrainConfig, kl_weight, learning_rate
from vaelib.run import History, Run, make_optimizer


def fit(
    model,
    data: dict[str, Images],
    config: TrainConfig,
    run_dir: Path | str | None = None,
    resume: bool = False,
    on_eval: Callable[[History], None] | None = None,
    began: float | None = None,
) -> History:
    """Train `model` in place on data["train"], watching data["val"].

    With `run_dir`, the weights best on val, the history, sample pictures and the state are
    kept there, and `resume` goes on from that state to the very weights of an unbroken run;
    with more steps in `config`, the schedule goes on as if they had been planned.
    `on_eval(history)` is called after each evaluation. `began` is when the run's seconds and a
    clocked run's minutes began, by time.perf_counter: now, unless given. Without `run_dir` the
    model ends with its last weights. Raises TrainingError when the loss is not finite, or when
    there is nothing to resume.
    """
    run = Run(model, data, config, run_dir, resume, on_eval, began=began)
    (optimizer,) = run.optimizers
    for step in run.steps():
        beta = torch.tensor(kl_weight(step.number, config), device=run.device)
        # loss = -mean over images of the objective, in nats
        for micro_batch in run.micro_batches(step):
            terms = run.objective_terms(micro_batch, beta, step)
            run.accelerator.backward(-terms.objective.mean() / config.accumulate)
            run.note(terms)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step.progress, config, run.epoch(step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step.evaluates:
            run.eval_step(step, terms, norm)
    model.eval()
    return run.history


def build(recipe: dict) -> tuple[VAE, dict[str, Images], TrainConfig]:
    """A recipe's untrained model, its train and val images, and how to train.

    Keys that are not given have their defaults. Raises ValueError for a key that nobody knows,
    and whatever `fit` would say before its first step.
    """
    names = [{f.name for f in fields(kind)} for kind in (DataConfig, ModelConfig, TrainConfig)]
    for name in recipe.keys() - set.union(*names):
        near = choices.nearest(name, set.union(*names))
        raise ValueError(f"a recipe has no key {name!r}{near}")
    data_keys, model_keys, train_keys = ({k: recipe[k] for k in recipe.keys() & n} for n in names)
    source, config = DataConfig(**data_keys), TrainConfig(**train_keys)
    size = {"image_size": source.image_size, "channels": source.channels}
    objective = objectives.chosen(config.objective, config.objective_args)
    processes = PartialState(cpu=hardware.cpu_only())
    with processes.local_main_process_first():  # one process decodes, the others wait
        images = {split: data.load(source.data, split, **size) for split in ("train", "val")}
    torch.manual_seed(config.seed)
    model = VAE(image_shape=tuple(images["train"].images.shape[1:]), **model_keys)
    check(model, images, config, objective, processes.num_processes)
    make_optimizer(list(model.parameters()), config)
    if config.init_std:
        model.initialise(config.init_std)
    if hasattr(model.prior, "start"):
        model.prior.start(images["train"].images, config.seed)
    if source.init:
        begin(model, source.init)
    elif config.two_stage:
        raise TrainingError("two_stage keeps what init has: give init, a checkpoint")
    return model, images, config


def begin(model: VAE, init: str) -> None:
    """Give `model` the weights of a checkpoint; a prior of another kind keeps its own."""
    other, own = checkpoints.load_checkpoint(init), model.state_dict()
    weights = other.state_dict()
    if other.prior_name != model.prior_name:
        kept = {k: v for k, v in own.items() if k.startswith("prior.")}
        weights = {k: v for k, v in weights.items() if not k.startswith("prior.")} | kept
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
        raise TrainingError(f"{init} is another model than this one: take the keys of its recipe")
    model.load_state_dict(weights)


def settled(
    recipe: dict, opened: list[str], before: dict | None, model, data: dict[str, Images],
    config: TrainConfig,
) -> str:  # fmt: skip
    """Settle whether to compile, if that is open, and say in a line what the machine has chosen.

    `opened` are the keys of the recipe that it chose (of none there is no line), `before` the
    recipe that they were in.
    """
    if not opened:
        return ""
    kind, why = hardware.kind(), ""
    if recipe["compile"] is None:
        pays, why = budget.compiles(recipe, kind)
        if PartialState().num_processes > 1:
            pays, why = False, "several processes do not compile"
        elif pays is not False and not hardware.can_compile():
            pays, why = False, "there is no C++ compiler"
        elif pays is None:
            pays, why = compiling_pays(model, data, config)
        recipe["compile"] = config.compile = pays
    return budget.said(recipe, opened, kind, why, before) + "\n"


def compiling_pays(
    model, data: dict[str, Images], config: TrainConfig, n_steps: int = 10
) -> tuple[bool, str]:
    """Whether the networks are a tenth faster compiled on this machine; and both rates, in words.

    By some batches forward and backward of either kind, which change no weight.
    """
    rates = []
    for compiles in (False, True):
        run = Run(model, data, replace(config, compile=compiles))
        try:
            for number in range(2 + n_steps):
                if number == 2:
                    began = time.perf_counter()
                step = Step(number, 0.0, False)
                for batch in run.micro_batches(step):
                    terms = run.objective_terms(batch, torch.tensor(1.0, device=run.device), step)
                    terms.objective.mean().backward()
                terms.objective.mean().item()  # a GPU is not ahead of its clock
        except Exception as error:  # whatever the compiler raises
            if not compiles:
                raise
            return False, f"compiling failed: {type(error).__name__}"
        finally:
            model.zero_grad(set_to_none=True)
        rates.append(n_steps * config.batch_size / (time.perf_counter() - began))
    plain, fast = rates
    return fast > 1.1 * plain, f"{fast:,.0f} images/s compiled, {plain:,.0f} not"

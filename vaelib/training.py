"""Training: `fit` is one loop. Draw a batch, objective, backward, step; sometimes evaluate."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import PartialState

from vaelib import checkpoints, choices, data, objectives
from vaelib.data import Images
from vaelib.diagnosis import TrainingError, check
from vaelib.hardware import cpu_only
from vaelib.models import VAE
from vaelib.recipes import DataConfig, ModelConfig, TrainConfig, kl_weight, learning_rate
from vaelib.run import History, Run, make_optimizer


def fit(
    model,
    data: dict[str, Images],
    config: TrainConfig,
    run_dir: Path | str | None = None,
    resume: bool = False,
    on_eval: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place on data["train"], watching data["val"].

    With `run_dir`, the weights best on val, the history, sample pictures and the state are
    kept there, and `resume` goes on from that state to the very weights of an unbroken run;
    with more steps in `config`, the schedule goes on as if they had been planned.
    `on_eval(history)` is called after each evaluation. Without `run_dir` the model ends
    with its last weights. Raises TrainingError when the loss is not finite, or when there
    is nothing to resume.
    """
    run = Run(model, data, config, run_dir, resume, on_eval)
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
    processes = PartialState(cpu=cpu_only())
    with processes.local_main_process_first():  # one process decodes, the others wait
        images = {split: data.load(source.data, split, **size) for split in ("train", "val")}
    torch.manual_seed(config.seed)
    model = VAE(image_shape=tuple(images["train"].images.shape[1:]), **model_keys)
    check(model, images, config, objective, processes.num_processes)
    make_optimizer(list(model.parameters()), config)
    if config.init_std:
        model.initialise(config.init_std)
    if source.init:
        weights, own = checkpoints.load_checkpoint(source.init).state_dict(), model.state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
            raise TrainingError(
                f"{source.init} is another model than this one: take the keys of its recipe"
            )
        model.load_state_dict(weights)
    return model, images, config

"""Wake-sleep: another way to train the two networks of a VAE (Hinton et al. 1995).

Each has an objective of its own. Awake, images are encoded and the *decoder* learns to make them
from their codes; asleep, the decoder dreams and the *encoder* learns to tell where a dream came
from. Neither step follows the gradient of one common bound: the encoder is right about dreams.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vaelib.data import Images
from vaelib.diagnosis import TrainingError
from vaelib.likelihoods import log_likelihood
from vaelib.objectives import Terms, kl_terms
from vaelib.posteriors import draw
from vaelib.recipes import Step, TrainConfig, learning_rate
from vaelib.run import History, Run
from vaelib.stream import dream_seed

PLAIN = (
    "objective", "beta", "kl_warmup", "two_stage", "n_importance", "accumulate", "compile",
    "minutes",
)  # fmt: skip


def wake(model, x: Tensor, eps: Tensor) -> Terms:
    """log p(x, z) at a draw from q(z | x): what the decoder, and a learned prior, maximise.

    Its terms are the ELBO's, but no gradient reaches the encoder.
    Shapes: x (B, C, H, W), eps (B, D) -> Terms of (B,). Units: nats per image.
    Source: Hinton et al. 1995, the wake phase.
    """
    with torch.no_grad():
        q_z = model.encode(x)
        z = draw(q_z, eps)
    log_px_z = log_likelihood(model.decode(z), x)
    joint = log_px_z + model.prior.log_prob(z)
    with torch.no_grad():
        kl, kl_per_dim = kl_terms(model.prior, q_z, z)
    return Terms(joint, log_px_z.detach(), kl, q_z.loc, q_z.scale, kl_per_dim)


def sleep(model, dreams: Tensor, z: Tensor) -> Tensor:
    """log q(z | dream), which the encoder maximises; the dreams are draws from p(x | z).

    Shapes: dreams (B, C, H, W), z (B, D) -> (B,). Units: nats per image.
    Source: Hinton et al. 1995, the sleep phase.
    """
    return model.encode(dreams).log_prob(z).sum(-1)


@torch.no_grad()
def dream(model, z: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from p(x | z), by its quantile function at uniform numbers of the generator.

    Shapes: z (B, D) -> (B, C, H, W).
    """
    p_x = model.decode(z)
    u = torch.rand(p_x.mean.shape, generator=generator, device=generator.device).to(z.device)
    if model.likelihood.binary:
        return (u < p_x.mean).float()
    return p_x.icdf(u.clamp(1e-6, 1 - 1e-6))


def fit(
    model,
    data: dict[str, Images],
    config: TrainConfig,
    on_eval: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place by wake-sleep; on the stream of batches and noise that `fit` has.

    A step sees a batch, and as many dreams. It is evaluated by the ELBO, as any VAE. Raises
    TrainingError for keys of the recipe that have no meaning here, and where `fit` does.
    """
    refuse(config, PLAIN, "wake-sleep")
    run = Run(model, data, config, on_eval=on_eval)
    if run.world > 1:
        raise TrainingError("wake-sleep trains in one process; start one")
    if model.prior_name == "vamp":
        raise TrainingError("prior vamp uses the encoder, which wake-sleep does not train awake")
    generator = torch.Generator(run.device)
    for step in run.steps():
        x, eps, _ = run.stream.batch(step.number)
        generator.manual_seed(dream_seed(config.seed, step.number))
        with run.autocast:
            terms = wake(model, x, eps[0])
        with torch.no_grad(), run.autocast:
            z = model.prior.sample(len(x), generator)
            dreams = dream(model, z, generator)
        with run.autocast:  # of its own: casts that are kept from the dream have no gradient
            asleep = sleep(model, dreams, z)
        run.accelerator.backward(-(terms.objective.mean() + asleep.mean()))
        run.note(terms._replace(extras={"log_qz_dream": asleep}))
        norm = update(run, step)
        if step.evaluates:
            run.eval_step(step, terms, norm)
    model.eval()
    return run.history


def update(run: Run, step: Step) -> Tensor:
    """One step down the gradient, as in `training.fit`; returns the gradient's norm, ()."""
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip)
    (optimizer,) = run.optimizers
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step.progress, run.config, run.epoch(step))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def refuse(config: TrainConfig, keys: tuple[str, ...], way: str) -> None:
    """TrainingError for keys of a recipe that a way to train does not have, if they are set."""
    plain = TrainConfig()
    for key in keys:
        if (value := getattr(config, key)) != getattr(plain, key):
            raise TrainingError(f"{way} has no {key} (the recipe has {value}); leave it out")

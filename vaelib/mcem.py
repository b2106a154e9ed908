"""What a sampler of the true posterior p(z | x) is good for: Monte Carlo EM, and an estimate of
log p(x) that needs no encoder (Kingma & Welling 2014, section 5 and appendix D)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaelib import hmc
from vaelib.data import Images, seen_by
from vaelib.diagnosis import TrainingError
from vaelib.likelihoods import log_likelihood
from vaelib.objectives import Terms
from vaelib.recipes import Step, TrainConfig
from vaelib.run import History, Run
from vaelib.stream import batch_indices, dream_seed
from vaelib.wake_sleep import PLAIN, refuse, update

LEAPFROG, UPDATES = 10, 5  # of an E-step, and weight updates of the M-step that follows
MOST_DIMS = 4  # the density that is fitted to draws is no longer right in more


def log_joint(model, x: Tensor) -> Callable[[Tensor], Tensor]:
    """log p(x, z) as a function of z, which is log p(z | x) but for a constant.

    Shapes: x (N, C, H, W); the function takes z (N, D) or (S, N, D), to (N,) or (S, N), in nats.
    """
    return lambda z: log_likelihood(model.decode(z), x) + model.prior.log_prob(z)


def check_dims(latent_dim: int) -> None:
    """ValueError in more dimensions than `log_marginal` is right in."""
    if latent_dim > MOST_DIMS:
        raise ValueError(
            f"log p(x) without an encoder fits a Gaussian to draws of z: {latent_dim} dimensions "
            f"are too many; give latent_dim at most {MOST_DIMS}"
        )


class Marginal(NamedTuple):
    """Two estimates of log p(x) of each image, (N,) in nats, and the sampler's acceptance (N,)."""

    reciprocal: Tensor  # appendix D's: draws from the posterior, the fitted density's ratio
    weighted: Tensor  # importance weights of draws from the fitted density
    acceptance: Tensor


def log_marginal(
    model, x: Tensor, n_samples: int = 50, n_adapt: int = 500, seed: int = 0
) -> Marginal:
    """log p(x) without an encoder, by Hamiltonian draws z_l from p(z | x) with 4 leapfrog steps.

    A Gaussian q is fitted to the first half of 2 L draws. Then, with the second half,
    1 / p(x) = E_{p(z|x)}[q(z) / p(x, z)]; and, with 10 L draws from q,
    p(x) = E_q[p(x, z) / q(z)]. Of an average's logarithm the first gives an upper and the second
    a lower bound on log p(x), on average over draws (Jensen). Each image has one chain, and where
    that misses a part of the posterior, both come out low.
    Shapes: x (N, C, H, W) as the model sees it -> see `Marginal`. Raises ValueError in more than
    four dimensions or for too few draws, SamplerError where the sampler is stuck.
    Source: Kingma & Welling 2014, appendix D.
    """
    check_dims(model.latent_dim)
    if n_samples < 10 * model.latent_dim:
        raise ValueError(f"n_samples {n_samples}: give at least ten for each dimension of z")
    generator = torch.Generator().manual_seed(seed)
    density, start = log_joint(model, x), starts(model, x, generator)
    found = hmc.sample(density, start, 2 * n_samples, n_adapt=n_adapt, thin=2, seed=seed)
    first, second = found.z.split(n_samples)  # (L, N, D) each
    spread = first - first.mean(0)
    covariance = torch.einsum("lni,lnj->nij", spread, spread) / (n_samples - 1)  # (N, D, D)
    q = MultivariateNormal(first.mean(0), covariance)
    noise = torch.randn(10 * n_samples, *start.shape, generator=generator).to(x)
    draws = q.loc + torch.einsum("nij,lnj->lni", q.scale_tril, noise)  # (10 L, N, D)
    with torch.no_grad():
        # log p(x) = log L - log sum_l q(z_l) / p(x, z_l)
        ratios = q.log_prob(second) - density(second)  # (L, N)
        weights = [density(z) - q.log_prob(z) for z in draws.split(n_samples)]  # of (L, N)
    weighted = torch.cat(weights).logsumexp(0) - math.log(len(draws))
    return Marginal(math.log(n_samples) - ratios.logsumexp(0), weighted, found.acceptance)


def starts(
    model,
    x: Tensor,
    generator: torch.Generator,
    n: int = 1000,
    n_best: int = 30,
    n_steps: int = 100,
) -> Tensor:
    """Where the posterior of each image is high, far out in the prior's tail too, as of odd images.

    Of `n` draws from the prior, made twice as wide, the best by p(x | z) climb log p(x, z) with
    Adam; the highest of them is taken. Shapes: (N, C, H, W) -> (N, D).
    """
    density = log_joint(model, x)
    with torch.no_grad():
        wide = 2 * model.prior.sample(n, generator).to(x)  # (n, D)
        scores = [log_likelihood(model.decode(z.unsqueeze(1)), x) for z in wide.split(50)]
        z = wide[torch.cat(scores).topk(n_best, 0).indices]  # (n_best, N, D)
    optimizer = torch.optim.Adam([z], lr=0.1)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, n_steps)
    for _ in range(n_steps):
        z.grad = -hmc.with_gradient(density, z)[1]
        optimizer.step()
        decay.step()
    best = hmc.with_gradient(density, z)[0].argmax(0)  # (N,)
    return z[best, torch.arange(len(best))]


class EMRun(Run):
    """A run whose encoder is not trained, so that it is watched by an estimate of log p(x)."""

    def validate(self, step: Step) -> dict:
        """Mean nats per image of the first 100 validation images."""
        val = self.val.subset(100).images
        x = seen_by(self.model, val, torch.Generator().manual_seed(0)).to(self.device)
        with torch.autocast(self.device.type, enabled=False):  # the sampler counts on small sums
            log_px = log_marginal(self.model, x).weighted.mean().item()
        return {"val_objective": log_px, "val_log_px": log_px}


class Chains:
    """A chain of z for each training image, which goes on when the image comes again."""

    def __init__(self, model, n: int, device, seed: int):
        self.generator = torch.Generator().manual_seed(dream_seed(seed, 0))
        with torch.no_grad():
            self.z = model.prior.sample(n, self.generator).to(device)  # (N, D)
        self.step_size = torch.full_like(self.z[:, 0], 0.1)  # (N,)
        self.visits = torch.zeros_like(self.step_size)

    def move(self, density: Callable, indices: Tensor) -> tuple[Tensor, Tensor]:
        """One transition of some chains: their new z (B, D), and how likely each was taken (B,).

        Where an image comes twice, at the seam of two epochs, one of its two draws stays.
        """
        at = indices.to(self.z.device)
        z, accepted = hmc.transition(
            density, self.z[at], self.step_size[at], LEAPFROG, self.generator
        )
        self.z[at], self.visits[at] = z, self.visits[at] + 1
        self.step_size[at] = hmc.adapted(self.step_size[at], accepted, self.visits[at])
        if self.visits[at].min() > 20:  # by then the step sizes have settled
            taken = accepted.mean()
            if taken < 0.2:
                raise hmc.SamplerError(
                    f"the sampler is stuck: acceptance {taken:.3f} with step size "
                    f"{self.step_size[at].median():.3g}, means of a batch's chains"
                )
        return z, accepted


def fit(
    model,
    data: dict[str, Images],
    config: TrainConfig,
    on_eval: Callable[[History], None] | None = None,
) -> History:
    """Train the decoder of `model`, and its prior, in place by Monte Carlo EM.

    E-step: one Hamiltonian transition of a batch's chains, 10 leapfrog steps of a size that comes
    to accept nine of ten. M-step: five updates of the weights with these images and draws; each
    is a step of the run. Where pixels are drawn anew for each visit (binarised, dequantised), a
    chain goes on from a draw for other pixels of the same image. Raises SamplerError where hardly
    a proposal is accepted any more, TrainingError as wake-sleep does, and for `flip`.
    Source: Kingma & Welling 2014, section 5 (their settings).
    """
    refuse(config, (*PLAIN, "flip"), "Monte Carlo EM")
    check_dims(model.latent_dim)
    run = EMRun(model, data, config, on_eval=on_eval)
    if run.world > 1:
        raise TrainingError("Monte Carlo EM trains in one process; start one")
    chains = Chains(model, len(data["train"]), run.device, config.seed)
    try:
        for step in run.steps():
            if step.number % UPDATES == 0:  # E-step
                number = step.number // UPDATES
                x = run.stream.batch(number).x
                indices = batch_indices(number, len(chains.z), config)
                z, accepted = chains.move(log_joint(model, x), indices)
            with run.autocast:  # M-step
                log_px_z = log_likelihood(model.decode(z), x)
            joint, q = log_px_z + model.prior.log_prob(z), (z, torch.zeros_like(z))
            terms = Terms(joint, log_px_z, None, *q, extras={"acceptance": accepted})
            run.accelerator.backward(-terms.objective.mean())
            run.note(terms)
            norm = update(run, step)
            if step.evaluates:
                run.eval_step(step, terms, norm)
    except hmc.SamplerError as error:
        where = f"Monte Carlo EM, step {step.number + 1:,}: "
        lower = f"; a lower lr may help (it is {config.lr:g})"
        raise hmc.SamplerError(f"{where}{error}{lower}") from error
    model.eval()
    return run.history

"""What is wrong with a trained model, as far as it and some images show: `diagnose`."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from vaelib.data import Images, seen_by
from vaelib.evaluation import active_units
from vaelib.likelihoods import log_likelihood
from vaelib.objectives import kl_terms
from vaelib.posteriors import draw

N_IMAGES, N_DRAWS, FEWEST = 200, 4, 10
SAME = 1e-3  # two answers that should be one differ by less, in standard deviations of them
BIAS = 0.15  # of the mean picture's brightness, in standard deviations of the pixels
LEAST_KL = 1.0  # nats; with fewer z can't tell three images apart
FAR = 50.0  # nats a dimension that codes cost more under the prior than its own draws
PRICE = (3 / 4, 4 / 3)  # what a nat of KL may have cost, in nats of reconstruction
INTERFACE = ("encode", "decode", "prior", "likelihood", "image_shape", "latent_dim")
UNSEEN = (
    "Not to be seen from a model and images: an evaluation that stops after one batch, a beta "
    "that was never used, validation images among those trained on."
)


class Symptom(NamedTuple):
    """Something that is not as usual.

    `name` is one of: not finite, two answers, batchmates, around z, pixels, collapse, far, price.
    """

    name: str
    sure: bool  # wrong whatever was meant; otherwise right where it was meant
    measured: str
    usual: str
    advice: str

    def __str__(self) -> str:
        mark = "!" if self.sure else "?"
        return f"{mark} {self.name}: {self.measured} (usual: {self.usual}). {self.advice}"


def diagnose(model, images: Images | Tensor, seed: int = 0) -> list[Symptom]:
    """Print, a line for each symptom, what is not as usual in a model, and what to do; return it.

    At most 200 of the images are taken, by the seed. A line begins with ! for what is wrong
    whatever was meant, with ? for what is right where it was meant (a beta-VAE, an autoencoder).
    The model is asked as it is, in training mode if it was left there, and is not changed. Where
    one input has two answers, or something goes around z, nothing further is measured.

    `model` has the interface of `VAE`; `images` are a split, or uint8 (N, C, H, W).
    Raises ValueError for another model, fewer than 10 images or another shape; DataError for a
    tensor that is not of images.
    """
    found, numbers = examined(model, images, seed)
    for symptom in found:
        print(symptom)
    if not found:
        print(f"Nothing found ({numbers}).")
    print(UNSEEN)
    return found


def examined(model, images: Images | Tensor, seed: int = 0) -> tuple[list[Symptom], str]:
    """The symptoms, and the numbers behind them in words; as `diagnose`, which prints them."""
    x = _pixels(model, images, seed)  # (N, C, H, W)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numbers: list[str] = []
    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():
        torch.manual_seed(seed)
        try:
            found = list(_symptoms(model, x, numbers))
        finally:
            for buffer, before in buffers:  # batch normalisation keeps averages of what it sees
                buffer.copy_(before)
    return found, ", ".join(numbers)


def _pixels(model, images: Images | Tensor, seed: int) -> Tensor:
    """Some images as the model's likelihood takes them, on its device."""
    if lacks := [name for name in INTERFACE if not hasattr(model, name)]:
        raise ValueError(
            f"{type(model).__name__} has no {', no '.join(lacks)}: give a model with the "
            "interface of vaelib.VAE"
        )
    if not isinstance(images, Images):
        images = Images("images", "", images)
    if len(images) < FEWEST:
        raise ValueError(f"{len(images)} images: give at least {FEWEST}, they are compared")
    if (shape := tuple(images.images.shape[1:])) != tuple(model.image_shape):
        raise ValueError(f"images of shape {shape}, the model takes {tuple(model.image_shape)}")
    generator = torch.Generator().manual_seed(seed)
    some = images[torch.randperm(len(images), generator=generator)[:N_IMAGES]].images.cpu()
    return seen_by(model, some, generator).to(next(model.parameters()).device)


def _symptoms(model, x: Tensor, numbers: list[str]) -> Iterator[Symptom]:
    """Each test in turn; those that make the next ones meaningless end it."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if bad := [name for name, value in state.items() if not value.isfinite().all()]:
        yield _not_finite(f"{len(bad)} of {len(state)} weights are not finite ({bad[0]}, ...)")
        return
    q_z = model.encode(x)
    eps = torch.randn_like(q_z.loc)  # (N, D)
    z = draw(q_z, eps)
    p_x = model.decode(z)
    log_px_z, log_other = log_likelihood(p_x, x), log_likelihood(model.decode(z.roll(1, 0)), x)
    kl = kl_terms(model.prior, q_z, z)[0]  # (N,)
    for name, value in (("q(z | x)", q_z.scale), ("p(x | z)", p_x.mean), ("KL", kl)):
        if not value.isfinite().all():
            yield _not_finite(f"{name} is not finite")
            return
    found = list(_answers(model, x, q_z, z)) or list(_around(model, x, eps, z, kl))
    if found := found or list(_brightness(p_x.mean, x)):
        yield from found
        return
    active, cost = active_units(q_z), (log_px_z - log_other).mean().item()
    numbers += [f"KL {kl.mean():.1f} nats", f"{active} of {model.latent_dim} dimensions active"]
    numbers += [f"another image's z costs {cost:,.0f} nats"]
    own = model.prior.sample(10_000, torch.Generator().manual_seed(0)).to(z)
    excess = model.prior.log_prob(own).mean() - model.prior.log_prob(z).mean()
    if (far := excess.item() / model.latent_dim) > FAR:
        yield Symptom(
            "far", False, f"codes cost {far:,.0f} nats a dimension more than draws from the prior, "
            f"and the KL is {kl.mean():,.0f} nats", f"below {FAR:g}",
            "Look at the sign and the weight of the KL in the loss. An autoencoder may be so.",
        )  # fmt: skip
    elif kl.mean() < LEAST_KL or not active:
        yield Symptom(
            "collapse", True, f"z is ignored: {', '.join(numbers)}",
            f"a KL above {LEAST_KL:g} nat, active dimensions",
            "Look for a mean over pixels, a KL summed over the batch, or a draw of z without a "
            "gradient (sample for rsample); else take a KL warm-up, free bits or a weaker decoder.",
        )  # fmt: skip
    elif isinstance(q_z, Normal):
        yield from _price(model, x, q_z, numbers)


def _not_finite(what: str) -> Symptom:
    return Symptom(
        "not finite", True, what, "all finite",
        "Train again with bounds on the log-variance, pixels in [0, 1], a lower learning rate or "
        "clipped gradients, and stop at the first loss that is not finite.",
    )  # fmt: skip


def _differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > SAME * a.std().clamp(min=1e-6))


def _answers(model, x: Tensor, q_z, z: Tensor) -> Iterator[Symptom]:
    """The same question asked twice, and once with fewer images in the batch."""

    def parts() -> list[str]:
        again, fewer = model.encode(x), model.encode(x)
        encodes = _differ(again.loc, fewer.loc) or _differ(again.scale, fewer.scale)
        decodes = _differ(model.decode(z).mean, model.decode(z).mean)
        return ["encode"] * encodes + ["decode"] * decodes

    training = [module for module in model.modules() if module.training]
    advice = "A draw is made inside: return the distribution, and its mean for a prediction."
    if twice := parts():
        if training:
            model.eval()
            if not parts():
                advice = "The model was left in training mode: call model.eval()."
            for module in training:
                module.training = True
        yield Symptom(
            "two answers", True, f"{' and '.join(twice)} of one input differs from call to call",
            "the same answer", advice,
        )  # fmt: skip
        return
    half = len(x) // 2
    if _differ(q_z.loc[:half], model.encode(x[:half]).loc):
        yield Symptom(
            "batchmates", True, "an image's code depends on the other images of its batch",
            "each image by itself", "Batch normalisation was left in training mode, or something "
            "averages over the batch: call model.eval().",
        )  # fmt: skip


def _around(model, x: Tensor, eps: Tensor, z: Tensor, kl: Tensor) -> Iterator[Symptom]:
    """Whether a picture depends on more than z."""
    model.encode(x)
    pictures = model.decode(z).mean
    model.encode(x[torch.arange(len(x)).flip(0) // 2])  # others, and as many
    if _differ(pictures, model.decode(z).mean):
        yield Symptom(
            "around z", True, "one and the same z is decoded differently after other images were "
            "encoded", "a picture depends on z alone",
            "Take out what the decoder has from the encoder but z (skip connections).",
        )  # fmt: skip
        return
    _, own, p_x = model(x, eps)
    gain = (log_likelihood(p_x, x) - log_likelihood(model.decode(own), x)).mean().item()
    if _differ(p_x.mean, model.decode(own).mean):
        yield Symptom(
            "around z", False, f"model(x, eps) scores x {gain:,.0f} nats better than decode(z) "
            f"does, and the KL is {kl.mean():.1f} nats", "the same",
            "A decoder whose pixels see other pixels may do so; then look whether z is idle. "
            "Otherwise a skip connection goes around z: take it out.",
        )  # fmt: skip


def _brightness(pictures: Tensor, x: Tensor) -> Iterator[Symptom]:
    """Whether reconstructions are as bright as the images: a likelihood's best mean is."""
    each = (pictures - x).mean((1, 2, 3)) / x.std().clamp(min=1e-6)  # (N,)
    error = each.std() / len(each) ** 0.5
    if each.mean().abs() > BIAS + 2 * error:
        yield Symptom(
            "pixels", True, f"reconstructions have mean brightness {pictures.mean():.2f}, the "
            f"images {x.mean():.2f}", "the same",
            "Look at the range of the pixels in training ([0, 1], as the likelihood takes them), "
            "and for a sigmoid that is applied twice.",
        )  # fmt: skip


def _price(model, x: Tensor, q_z: Normal, numbers: list[str]) -> Iterator[Symptom]:
    """What a nat of KL cost in training: at the best scales c sigma has no slope at c = 1.

    At the best q of an objective R - beta KL, dR/dc = beta dKL/dc for a factor c on all scales.
    """
    slopes = torch.zeros(2, len(x), 1, device=x.device)  # of R and of KL
    for _ in range(N_DRAWS):
        with torch.enable_grad():
            c = torch.ones(len(x), 1, device=x.device, requires_grad=True)
            z = q_z.loc + c * q_z.scale * torch.randn_like(q_z.loc)
            reconstruction = log_likelihood(model.decode(z), x).sum()
            # KL = E[log q(z|x) - log p(z)], of which log q has -log c for each dimension
            kl = -(c * q_z.scale).log().sum() - model.prior.log_prob(z).sum()
            slopes[0] += torch.autograd.grad(reconstruction, c, retain_graph=True)[0]
            slopes[1] += torch.autograd.grad(kl, c)[0]
    total = slopes.sum((1, 2))
    price = (total[0] / total[1]).item()
    error = ((slopes[0] - price * slopes[1]).square().sum().sqrt() / total[1].abs()).item()
    numbers.append(f"a nat of KL was priced {price:.2f} ± {error:.2f}")
    low, high = PRICE
    if not low - 2 * error <= price <= high + 2 * error:
        yield Symptom(
            "price", False, f"q(z | x) is as wide as if a nat of KL had cost {price:.2f} ± "
            f"{error:.2f} nats of reconstruction", f"1, between {low:.2f} and {high:.2f}",
            "Right for another objective (a beta-VAE, an autoencoder, MMD). For an ELBO look for "
            "a mean where a sum belongs, and a log-variance taken for a deviation.",
        )  # fmt: skip

"""Objectives beside the ELBO: against their definitions, brute force and closed forms."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vaelib import objectives
from vaelib.data import Images
from vaelib.diagnosis import TrainingError
from vaelib.models import VAE
from vaelib.recipes import TrainConfig
from vaelib.training import fit

EXTRAS = {"beta_tcvae": {"mutual", "tc", "own_kl"}, "mmd_vae": {"mmd"}}


@pytest.fixture
def case():
    """A small model, images, noise, and q(z | x), z, log p(x | z) and KL written out."""
    torch.manual_seed(0)
    model = VAE((1, 4, 4), 3, "mlp", hidden=8).double()
    x, eps = (torch.rand(6, 1, 4, 4) < 0.5).double(), torch.randn(6, 3).double()
    q_z = model.encode(x)
    z = q_z.loc + q_z.scale * eps
    log_px_z = Independent(model.decode(z), 3).log_prob(x)
    kl = kl_divergence(q_z, Normal(torch.zeros(3).double(), 1.0))  # (6, 3)
    return model, x, eps, q_z, z, log_px_z, kl


def gradient(model, objective):
    found = torch.autograd.grad(objective.mean(), list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def same(model, ours, theirs):
    torch.testing.assert_close(ours.mean(), theirs.mean())
    for a, b in zip(gradient(model, ours), gradient(model, theirs), strict=True):
        torch.testing.assert_close(a.expand_as(b), b.expand_as(a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("beta", "free"), [(1.0, 0.0), (1.0, 0.05), (2.0, 0.05), (1.0, 50.0)])
def test_free_bits_are_free_by_dimension(case, beta, free):
    model, x, eps, _, _, log_px_z, kl = case
    if free == 0.05:  # some dimensions below and some above
        assert 0 < (kl.mean(0) < free).sum() < 3
    price = sum(max(kl[:, d].mean(), torch.tensor(free).double()) for d in range(3))
    found = objectives.free_bits(model, x, eps, beta, free=free)
    same(model, found.objective, log_px_z - beta * price)
    torch.testing.assert_close(found.elbo, log_px_z - kl.sum(1))


@pytest.mark.parametrize(("progress", "allowed"), [(0.0, 0.0), (0.1, 2.0), (0.2, 4.0), (1.0, 4.0)])
def test_the_capacity_rises_and_holds_the_mean_kl(case, progress, allowed):
    model, x, eps, _, _, log_px_z, kl = case
    arguments = {"gamma": 30.0, "nats": 4.0, "rise": 0.2}
    found = objectives.capacity(model, x, eps, progress=torch.tensor(progress), **arguments)
    same(model, found.objective, log_px_z - 30 * abs(kl.sum(1).mean() - allowed))


def test_a_capacity_may_be_there_at_once(case):
    model, x, eps, *_ = case
    progress = torch.tensor(0.0)
    late = objectives.capacity(model, x, eps, progress=progress, rise=0.0)
    assert torch.isfinite(late.objective).all()


def mixture(q_z, z):
    """log of the mean over images of q(z | x), and for each dimension. Shapes: z (S, D)."""
    each = q_z.log_prob(z.unsqueeze(1))  # (S, N, D)
    n = len(q_z.loc)
    return each.sum(-1).logsumexp(1) - math.log(n), each.logsumexp(1) - math.log(n)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_stratified_weights_are_unbiased_over_all_batches(place):
    torch.manual_seed(0)
    q_all = Normal(torch.randn(5, 2).double(), 0.5 + torch.rand(5, 2).double())
    z = torch.randn(2).double()  # of image 0, which stands at `place` of a batch of three
    found = {"mss": [], "mws": []}
    for others in itertools.permutations(range(1, 5), 2):
        batch = list(others)
        batch.insert(place, 0)
        q_z = Normal(q_all.loc[batch], q_all.scale[batch])
        for name, values in found.items():
            joint, each = objectives.log_q_batch(q_z, z.expand(1, 3, 2), 5, name)
            values.append(torch.cat([joint[0, place, None], each[0, place]]).exp())
    joint, each = mixture(q_all, z.unsqueeze(0))
    exact = torch.cat([joint, each[0]]).exp()
    torch.testing.assert_close(torch.stack(found["mss"]).mean(0), exact)
    assert (torch.stack(found["mws"]).mean(0) < exact).all()


def test_minibatch_weights_are_those_of_the_definition(case):
    _, _, _, q_z, z, *_ = case
    joint, each = objectives.log_q_batch(q_z, z.unsqueeze(0), 100, "mws")
    for i in range(6):
        densities = q_z.log_prob(z[i]).exp()  # (6, 3)
        exact = densities.prod(1).sum() / (100 * 6)
        torch.testing.assert_close(joint[0, i], exact.log())
        torch.testing.assert_close(each[0, i], (densities.sum(0) / (100 * 6)).log())


@pytest.mark.parametrize("estimator", ["mss", "mws"])
def test_the_three_parts_of_the_kl_are_weighed_each_by_its_own(case, estimator):
    model, x, eps, q_z, z, log_px_z, _ = case
    joint, each = objectives.log_q_batch(q_z, z.unsqueeze(0), 50, estimator)
    parts = {
        "mutual": q_z.log_prob(z).sum(1) - joint[0],
        "tc": joint[0] - each[0].sum(1),
        "own_kl": each[0].sum(1) - Normal(0, 1).log_prob(z).sum(1),
    }
    weights = {"alpha": 0.5, "gamma": 3.0, "estimator": estimator}
    found = objectives.beta_tcvae(model, x, eps, 2.0, n_train=50, **weights)
    exact = log_px_z - 0.5 * parts["mutual"] - 2 * parts["tc"] - 3 * parts["own_kl"]
    same(model, found.objective, exact)
    for name, value in parts.items():
        torch.testing.assert_close(found.extras[name], value)
    # all weighed by one it is the ELBO, its KL sampled
    plain = objectives.beta_tcvae(model, x, eps, n_train=50, estimator=estimator)
    log_ratio = (q_z.log_prob(z) - Normal(0, 1).log_prob(z)).sum(1)
    torch.testing.assert_close(plain.objective, log_px_z - log_ratio)


def test_the_total_correlation_of_gaussian_codes_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    n, scale = 3000, 0.6
    root = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    means = torch.randn(n, 2, generator=generator) @ root.T
    q_z = Normal(means, torch.full_like(means, scale))
    z = means + scale * torch.randn(n, 2, generator=generator)
    joint, each = objectives.log_q_batch(q_z, z.unsqueeze(0), n)
    tc = joint[0] - each[0].sum(1)
    covariance = root @ root.T + scale**2 * torch.eye(2)
    exact = 0.5 * (covariance.diag().log().sum() - covariance.logdet())
    assert exact > 0.15
    assert abs(tc.mean() - exact) < 4 * tc.std() / n**0.5


def closed_mmd(mean, scale, n_dims):
    """MMD^2 of N(mean, scale^2 I) and N(0, I), of the kernel exp(-|d|^2 / (2 D))."""

    def expected(shift, variance):  # E k of a difference that is N(shift, variance I)
        s = n_dims
        return (s / (s + variance)) ** (n_dims / 2) * math.exp(-(shift**2) / (2 * (s + variance)))

    shift = mean * n_dims**0.5
    within = expected(0.0, 2 * scale**2) + expected(0.0, 2.0)
    return within - 2 * expected(shift, scale**2 + 1)


@pytest.mark.parametrize(("mean", "scale", "n_dims"), [(0.5, 1.0, 2), (0.0, 0.3, 5), (1.0, 2.0, 1)])
def test_mmd_between_gaussians_is_the_closed_form_on_average(mean, scale, n_dims):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        a = mean + scale * torch.randn(20, n_dims, generator=generator, dtype=torch.float64)
        b = torch.randn(30, n_dims, generator=generator, dtype=torch.float64)
        found.append(objectives.mmd(a, b))
    found = torch.stack(found)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - closed_mmd(mean, scale, n_dims)) < 4 * error
    assert error < closed_mmd(mean, scale, n_dims) / 8


def test_mmd_is_its_definition_and_0_on_average_for_one_distribution():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 5))

    def mean(us, vs, apart):
        pairs = [(u, v) for i, u in enumerate(us) for j, v in enumerate(vs) if i != j or not apart]
        return sum(math.exp(-((u - v) ** 2).sum() / 6) for u, v in pairs) / len(pairs)

    exact = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert objectives.mmd(a, b).item() == pytest.approx(exact)
    draws = torch.randn(400, 20, 3, generator=generator, dtype=torch.float64)
    found = torch.stack([objectives.mmd(u, v) for u, v in draws.split(2)])
    assert abs(found.mean()) < 4 * found.std() / len(found) ** 0.5


@pytest.mark.parametrize("shape", [(1, 3), (20, 2)])
def test_mmd_of_what_does_not_fit_is_one_line(shape):
    with pytest.raises(ValueError, match="give at least two of each, with as many dimensions"):
        objectives.mmd(torch.zeros(20, 3), torch.zeros(shape))


def test_mmd_vae_weighs_the_kl_and_the_distance_of_all_codes(case):
    model, x, eps, _, z, log_px_z, kl = case
    noise = torch.randn(6, 3).double()
    arguments = {"noise": noise, "alpha": 0.75, "weight": 10.0}
    found = objectives.mmd_vae(model, x, eps, **arguments)
    distance = objectives.mmd(z, noise)
    same(model, found.objective, log_px_z - 0.25 * kl.sum(1) - 10 * distance)
    torch.testing.assert_close(found.elbo, log_px_z - kl.sum(1))


def test_an_autoencoder_has_no_noise_and_no_bound(case):
    model, x, eps, q_z, *_ = case
    found = objectives.autoencoder(model, x, eps)
    same(model, found.objective, Independent(model.decode(q_z.loc.double()), 3).log_prob(x))
    torch.testing.assert_close(found.objective, objectives.autoencoder(model, x, 9 * eps).objective)
    assert found.kl is None
    assert found.elbo is None


@pytest.mark.parametrize("name", ["free_bits", "capacity", "beta_tcvae", "mmd_vae"])
def test_several_draws_are_averaged(case, name):
    model, x, *_ = case
    function, given = objectives.OBJECTIVES[name], {}
    if name == "beta_tcvae":
        given = {"n_train": 20}
    if name == "mmd_vae":
        given = {"noise": torch.randn(6, 3).double()}
    if name == "capacity":  # the KL on one side of the capacity
        given = {"nats": 1000.0}
    eps = torch.randn(2, 6, 3).double()
    both = function(model, x, eps, **given).objective
    each = [function(model, x, one, **given).objective for one in eps]
    torch.testing.assert_close(both, sum(each) / 2)


def few(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 2, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Images("made-up", "train", 255 * pixels)


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_each_objective_trains_and_repeats_itself(name):
    data = {"train": few(40), "val": few(24, 1)}
    config = TrainConfig(
        objective=name, steps=60, batch_size=8, lr=1e-2, eval_every=30, precision="fp32"
    )
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = VAE((1, 4, 4), 2, "mlp", hidden=16)
        runs.append(fit(model, data, config).rows)
    timeless = [[{k: v for k, v in row.items() if k[-1:] != "s"} for row in rows] for rows in runs]
    assert timeless[0] == timeless[1]
    first, last = runs[0]
    assert last["train_objective"] > first["train_objective"]
    assert ("val_elbo" in last) == (name != "autoencoder")
    for extra in EXTRAS.get(name, ()):
        assert {f"train_{extra}", f"val_{extra}"} <= last.keys()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "capacity", "beta": 4.0}, "capacity has neither beta nor kl_warmup; its"),
        ({"objective": "mmd_vae", "kl_warmup": 5}, "its own parameters: alpha, weight"),
        ({"objective": "autoencoder", "beta": 2.0}, "its own parameters: none"),
        ({"objective": "beta_tcvae", "accumulate": 2}, "beta_tcvae scores a batch as a whole"),
        ({"objective": "mmd_vae", "accumulate": 2}, "mmd_vae scores a batch as a whole"),
        ({"objective": "free_bits", "objective_args": {"gamma": 2.0}}, "no parameter 'gamma'"),
        ({"objective": "elbo", "objective_args": {"free": 2.0}}, "has no parameter 'free'"),
        ({"objective": "beta_tcvae", "objective_args": {"estimator": "msz"}}, "one of mws, mss"),
        ({"objective": "beta_tcvae", "batch_size": 80}, "a batch of 80 images out of 40"),
        ({"objective": "mmd_vae", "batch_size": 1}, "give at least two of each"),
    ],
)
def test_parameters_of_another_objective_are_one_line(changes, says):
    model, data = VAE((1, 4, 4), 2, "mlp", hidden=4), {"train": few(40), "val": few(8, 1)}
    config = TrainConfig(**{"steps": 2, "batch_size": 8} | changes)
    with pytest.raises((TrainingError, ValueError)) as caught:
        fit(model, data, config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)

"""Wake-sleep, Monte Carlo EM and appendix D's estimate, against what is known on paper."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from vaelib import VAE, TrainConfig, TrainingError, hmc, mcem, wake_sleep
from vaelib.data import Images
from vaelib.evaluation import importance_weighted_bound
from vaelib.training import fit


def images(n=60, seed=0, shape=(1, 6, 5)):
    pixels = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return Images("noise", "train", pixels.to(torch.uint8))


def both(n=60):
    return {"train": images(n), "val": images(20, 1)}


def small(likelihood="bernoulli", latent_dim=2):
    torch.manual_seed(0)
    return VAE((1, 6, 5), latent_dim, "mlp", hidden=7, likelihood=likelihood)


# --- wake-sleep


def test_each_network_gets_the_gradient_of_its_own_objective_written_out():
    model = small()
    x = (torch.rand(8, 1, 6, 5) < 0.5).float()
    eps, z, dreams = torch.randn(8, 2), torch.randn(8, 2), (torch.rand(8, 1, 6, 5) < 0.5).float()
    loss = -(wake_sleep.wake(model, x, eps).objective + wake_sleep.sleep(model, dreams, z)).mean()
    loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}

    # awake: -log p(x | z), z a constant
    model.zero_grad()
    mean, logvar = model.encoder(x).detach().chunk(2, 1)
    logits = model.decoder(mean + (logvar / 2).exp() * eps)
    binary_cross_entropy_with_logits(logits, x, reduction="sum").div(8).backward()
    for name, p in model.decoder.named_parameters():
        torch.testing.assert_close(got[f"decoder.{name}"], p.grad)

    # asleep: -log N(z; mean, exp(logvar)) of the dream
    model.zero_grad()
    mean, logvar = model.encoder(dreams).chunk(2, 1)
    nats = 0.5 * (math.log(2 * math.pi) + logvar + (z - mean).square() / logvar.exp())
    nats.sum(1).mean().backward()
    for name, p in model.encoder.named_parameters():
        torch.testing.assert_close(got[f"encoder.{name}"], p.grad)
        assert p.grad.abs().max() > 0


def test_the_terms_of_wake_are_those_of_the_elbo():
    from vaelib.objectives import elbo

    model, x, eps = small(), (torch.rand(5, 1, 6, 5) < 0.5).float(), torch.randn(5, 2)
    ours, theirs = wake_sleep.wake(model, x, eps), elbo(model, x, eps)
    torch.testing.assert_close(ours.elbo, theirs.elbo)
    torch.testing.assert_close(ours.kl_per_dim, theirs.kl_per_dim)


@pytest.mark.parametrize("likelihood", ["bernoulli", "sigmoid_gaussian", "continuous_bernoulli"])
def test_dreams_are_draws_from_the_decoder(likelihood):
    model = small(likelihood)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    z = torch.tensor([[0.7, -1.2]]).expand(20_000, 2)
    dreams = wake_sleep.dream(model, z, torch.Generator().manual_seed(0))
    p_x = model.decode(z[:1])
    error = (p_x.variance / len(z)).sqrt()[0]
    assert ((dreams.mean(0) - p_x.mean[0]).abs() < 5 * error).all()
    torch.testing.assert_close(dreams.var(0), p_x.variance[0], rtol=0.08, atol=1e-4)


def test_wake_sleep_learns_and_repeats_itself():
    config = TrainConfig(steps=60, batch_size=20, eval_every=30, lr=1e-2, optimizer="adam")
    seen = []
    runs = []
    for _ in range(2):
        model = small()
        history = wake_sleep.fit(model, both(), config, on_eval=lambda h: seen.append(len(h.rows)))
        runs.append((model.state_dict(), history))
    assert seen == [1, 2, 1, 2]
    (first, history), (again, _) = runs
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert history.rows[-1]["val_elbo"] > history.rows[0]["val_elbo"]
    assert {"step", "train_elbo", "val_kl", "active_units"} <= history.rows[-1].keys()


@pytest.mark.parametrize("way", [wake_sleep.fit, mcem.fit])
@pytest.mark.parametrize(
    ("key", "value"), [("beta", 2.0), ("kl_warmup", 5), ("n_importance", 3), ("accumulate", 2),
                       ("compile", True), ("objective", "iwae"), ("minutes", 1.0)],
)  # fmt: skip
def test_keys_without_a_meaning_are_refused(way, key, value):
    config = TrainConfig(steps=2, batch_size=10, **{key: value})
    with pytest.raises(TrainingError, match=f"has no {key} .*leave it out"):
        way(small(), both(), config)


# --- appendix D, on the linear-Gaussian model: p(x) = N(0, W W' + s^2 I)


SIGMA = 0.3


class Linear(VAE):
    """A linear decoder with a given matrix; `vaelib`'s model in all else."""

    def __init__(self, weights, sigma=SIGMA):
        super().__init__((1, 1, len(weights)), weights.shape[1], "mlp", hidden=1,
                         likelihood="gaussian", sigma=sigma)  # fmt: skip
        self.W = torch.nn.Parameter(weights)

    def decode(self, z):
        return self.likelihood((z @ self.W.T).unsqueeze(-2).unsqueeze(-2))

    def exact(self, x):
        p = len(self.W)
        covariance = self.W @ self.W.T + self.likelihood.sigma**2 * torch.eye(p, dtype=x.dtype)
        return MultivariateNormal(x.new_zeros(p), covariance).log_prob(x.flatten(1))


@pytest.fixture
def ridge():
    """The posterior is a thin ridge: two columns of W are nearly the same."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    weights[:, 1] = weights[:, 0] + 0.1 * weights[:, 1]
    model = Linear(weights)
    z = torch.randn(80, 3, generator=generator, dtype=torch.float64)
    noise = SIGMA * torch.randn(80, 6, generator=generator, dtype=torch.float64)
    return model, (z @ weights.T + noise).reshape(80, 1, 1, 6)


def test_both_estimates_of_log_px_agree_with_the_exact_one(ridge):
    model, x = ridge
    exact = model.exact(x).detach()
    found = mcem.log_marginal(model, x)
    for name in ("reciprocal", "weighted"):
        difference = getattr(found, name) - exact
        assert abs(difference.mean()) < 0.06, name
        assert difference.abs().max() < 1.2, name  # of 50 draws each
    assert 0.8 < found.acceptance.mean() < 0.97
    # one bounds it from above and the other from below, on average
    error = (found.reciprocal - found.weighted).std() / len(x) ** 0.5
    assert (found.reciprocal - found.weighted).mean() > -2 * error


def test_both_estimates_agree_with_importance_weighting_by_the_encoder():
    data = {"train": images(200), "val": images(20, 1)}
    model = small()
    fit(model, data, TrainConfig(steps=300, batch_size=50, lr=1e-2, eval_every=300))
    x = (torch.rand(40, 1, 6, 5, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    bound = importance_weighted_bound(model, x, 5000)
    found = mcem.log_marginal(model, x)
    assert abs((found.weighted - bound).mean()) < 0.02
    assert abs((found.reciprocal - bound).mean()) < 0.05


@pytest.mark.parametrize("n_spirals", [1, 3])
def test_an_image_far_from_the_prior_s_middle_is_found_by_its_chain(n_spirals):
    # turns of a spiral, a wall between each two, and images out to where no prior draw comes
    class Spirals(VAE):
        def __init__(self, n):
            super().__init__((1, 1, 2 * n), n, "mlp", hidden=1, likelihood="gaussian", sigma=0.05)

        def decode(self, z):  # each z_d -> a point on a spiral of its own
            radius = (0.2 * z).exp()
            points = torch.cat([radius * z.cos(), radius * z.sin()], -1)
            return self.likelihood(points[..., None, None, :])

    generator = torch.Generator().manual_seed(1)
    u = torch.rand(60, n_spirals, generator=generator, dtype=torch.float64)
    z = 5.5 * (2 * u - 1) / n_spirals**0.5
    z[0, 0], z[1, 0] = 5.5, -5.5
    x = Spirals(n_spirals).decode(z).mean  # (60, 1, 1, 2 n)
    grid, exact = torch.linspace(-8, 8, 20_001, dtype=torch.float64).unsqueeze(1), 0.0
    for pair in x.flatten(1).reshape(60, 2, n_spirals).unbind(2):  # the spirals are independent
        images = pair.reshape(60, 1, 1, 1, 2)
        joint = [mcem.log_joint(Spirals(1), image)(grid.unsqueeze(1)) for image in images]
        exact = exact + torch.cat(joint, 1).logsumexp(0) + math.log(16 / 20_000)  # by quadrature
    found = mcem.log_marginal(Spirals(n_spirals), x)
    for estimate in (found.weighted, found.reciprocal):
        assert (estimate - exact).abs().max() < 0.6


def test_too_many_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"5 dimensions are too many; give"):
        mcem.log_marginal(small(latent_dim=5), torch.zeros(2, 1, 6, 5))
    with pytest.raises(ValueError, match="n_samples 19: give at least ten for each dimension"):
        mcem.log_marginal(small(), torch.zeros(2, 1, 6, 5), 19)


# --- Monte Carlo EM


def test_em_raises_the_exact_likelihood_of_a_linear_gaussian_model():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(8, 2, generator=generator)
    z = torch.randn(300, 2, generator=generator)
    grey = (z @ truth.T) * 25 + 128 + 20 * torch.randn(300, 8, generator=generator)
    pixels = grey.clamp(0, 255).round().to(torch.uint8).reshape(300, 1, 1, 8)
    train = Images("line", "train", pixels)

    class Shifted(Linear):  # images lie around 0.5
        def decode(self, z):
            return self.likelihood(0.5 + (z @ self.W.T).unsqueeze(-2).unsqueeze(-2))

    model = Shifted(0.1 * torch.randn(8, 2, generator=generator), sigma=0.08)
    x = (pixels + 0.5) / 256 - 0.5
    values = [model.exact(x).mean().item()]
    config = TrainConfig(steps=800, batch_size=60, eval_every=200, lr=3e-3, optimizer="adam",
                         schedule="constant", weight_decay=0.0)  # fmt: skip
    history = mcem.fit(
        model, {"train": train, "val": train}, config,
        on_eval=lambda _: values.append(model.exact(x).mean().item()),
    )  # fmt: skip
    assert values[1] > values[0] + 3
    # the best there is: probabilistic PCA with this sigma (Tipping & Bishop 1999, equation 7)
    flat = x.flatten(1)
    eigenvalues, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    best = vectors[:, -2:] * (eigenvalues[-2:] - 0.08**2).clamp(min=0).sqrt()
    ceiling = Linear(best, 0.08).exact(x).mean().item()
    assert values[-1] <= ceiling + 1e-6
    assert values[-1] > ceiling - 0.25
    assert values[-1] > values[1]
    row = history.rows[-1]
    # what it was watched by is the estimate for the first 100
    assert abs(row["val_log_px"] - model.exact(x[:100]).mean().item()) < 0.3  # other dequantisation
    assert row["train_acceptance"] > 0.6
    assert "val_elbo" not in row


def test_em_trains_no_encoder_and_repeats_itself():
    config = TrainConfig(steps=10, batch_size=20, eval_every=10, weight_decay=0.0)
    before = small().state_dict()
    runs = []
    for _ in range(2):
        model = small()
        mcem.fit(model, both(50), config)  # 50 by 20: batches across epochs
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in before)
    for name, value in before.items():
        assert torch.equal(value, runs[0][name]) == name.startswith("encoder"), name


class Moved(nn.Module):
    """N(shift, I), with draws that have a gradient."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def log_prob(self, z):
        return Normal(self.shift, 1.0).log_prob(z).sum(-1)

    def sample(self, n, generator=None):
        return self.shift + torch.randn(n, 2, generator=generator)


def test_em_trains_what_the_likelihood_and_the_prior_have_to_learn():
    model = small("learned_gaussian")
    model.prior = Moved()
    before = model.likelihood.sigma
    mcem.fit(model, both(), TrainConfig(steps=20, batch_size=20, eval_every=20, lr=1e-2))
    assert model.likelihood.sigma != before
    assert model.prior.shift.abs().min() > 0


def test_a_learned_prior_learns_awake_and_not_asleep():
    model = small()
    model.prior = Moved()
    x = (torch.rand(50, 1, 6, 5) < 0.5).float()
    eps = torch.randn(50, 2)
    wake_sleep.wake(model, x, eps).objective.mean().backward()
    q_z = model.encode(x)
    torch.testing.assert_close(model.prior.shift.grad, (q_z.loc + q_z.scale * eps).mean(0))
    config = TrainConfig(steps=6, batch_size=20, eval_every=3, lr=1e-2)
    before = model.prior.shift.clone()
    wake_sleep.fit(model, both(), config)
    assert (model.prior.shift != before).all()


def test_each_image_goes_on_with_its_own_chain():
    torch.manual_seed(0)
    model = Linear(torch.tensor([[3.0], [3.0]]), sigma=1.0)
    x = torch.linspace(-6, 6, 9).reshape(9, 1, 1, 1).expand(9, 1, 1, 2)  # (9, 1, 1, 2)
    # the posterior of z: N(M^-1 W' x, M^-1), M = W' W + 1
    deviation, mean = 19**-0.5, (x.flatten(1) @ model.W.detach()).squeeze(1) / 19
    chains, generator, drawn = mcem.Chains(model, 9, "cpu", 0), torch.Generator().manual_seed(0), []
    for number in range(400):
        some = torch.randperm(9, generator=generator)[:4]
        chains.move(mcem.log_joint(model, x[some]), some)
        if number >= 200:
            drawn.append(chains.z.clone())
    z = torch.stack(drawn)[..., 0]  # (200, 9)
    assert ((z.mean(0) - mean).abs() < 0.5 * deviation).all()
    assert ((z.std(0) / deviation - 1).abs() < 0.4).all()


def test_em_that_diverges_says_step_size_and_acceptance(monkeypatch):
    config = TrainConfig(steps=1000, batch_size=60, eval_every=1000, lr=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(hmc, "adapted", lambda size, *_: torch.full_like(size, 1e3))
        said = (
            r"step 1\d\d: .*acceptance 0.\d+ with step size 1e\+03, .* lower lr may help \(it is 0"
        )
        with pytest.raises(hmc.SamplerError, match=said):
            mcem.fit(small("gaussian"), both(), config)
    transition = hmc.transition

    def broken(density, z, *rest):
        return transition(lambda z: z.sum(1) * math.nan, z, *rest)

    monkeypatch.setattr(hmc, "transition", broken)
    with pytest.raises(hmc.SamplerError, match="step 1: the sampler stands where"):
        mcem.fit(small(), both(), config)

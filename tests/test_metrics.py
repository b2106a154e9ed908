"""Metrics on codes with known answers."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vaelib import metrics
from vaelib.priors import PRIORS

N = 4000
SIZES = {"a": 4, "b": 4, "c": 4}


def few(function, codes, factors):
    """A score on as many images as there are here, few trees and votes."""
    n = {"n": N} if function is metrics.mig else {"n_train": 3000, "n_test": 1000}
    return function(codes, factors, **n)


@pytest.fixture(scope="module")
def factors():
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randint(n, (N,), generator=generator) for k, n in SIZES.items()}


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perfect(factors):
    return torch.stack([v.float() for v in factors.values()], 1) + 0.01 * noise(N, 3)


def codes_of(kind, factors):
    codes = perfect(factors)
    if kind == "permuted":  # and stretched, and turned round, with a dimension that says nothing
        codes = torch.cat([codes[:, [2, 0, 1]] * torch.tensor([3.0, -0.5, 10.0]), noise(N, 1)], 1)
    if kind == "rotated":
        # two of three by 45 degrees: neither code says more of a, or of b, than the other
        turn = torch.tensor([[1.0, 1, 0], [1, -1, 0], [0, 0, 2**0.5]]) / 2**0.5
        codes = codes @ turn
    if kind == "duplicated":
        codes = torch.cat([codes, codes + 0.01 * noise(N, 3, seed=2)], 1)
    if kind == "noise":
        codes = noise(N, 3)
    if kind == "split":  # a is told by two dimensions, half of it each
        halves = torch.stack([factors["a"] // 2, factors["a"] % 2], 1).float()
        codes = torch.cat([halves + 0.01 * noise(N, 2, seed=3), codes[:, 1:]], 1)
    return codes


KINDS = ("perfect", "permuted", "rotated", "duplicated", "noise", "split")
KNOWN = {  # of each score: what each kind of codes must have, from and to
    metrics.mig: ((0.97, 1), (0.97, 1), (0.31, 0.36), (0, 0.02), (0, 0.02), (0.63, 0.68)),
    metrics.factor_vae: ((1, 1), (1, 1), (0.6, 0.73), (1, 1), (0.28, 0.42), (0.9, 1)),
    metrics.beta_vae: ((1, 1), (1, 1), (0.6, 0.73), (1, 1), (0.28, 0.42), (1, 1)),
}


@pytest.mark.parametrize("function", KNOWN, ids=lambda f: f.__name__)
@pytest.mark.parametrize("number", range(6), ids=KINDS)
def test_scores_of_codes_with_known_answers(function, number, factors):
    found = few(function, codes_of(KINDS[number], factors), factors)
    found = getattr(found, "score", found)
    low, high = KNOWN[function][number]
    assert low <= found <= high + 1e-6


def test_sap_of_codes_with_known_answers():
    generator = torch.Generator().manual_seed(0)
    two = {k: torch.randint(2, (N,), generator=generator) for k in "ab"}
    codes = torch.stack([two["a"], two["b"]], 1) + 0.01 * noise(N, 2)
    # a coin is told by its own code always, by the other half of the time
    assert few(metrics.sap, codes, two).score == pytest.approx(0.5, abs=0.03)
    assert few(metrics.sap, codes.flip(1), two).score == pytest.approx(0.5, abs=0.03)
    assert few(metrics.sap, torch.cat([codes, codes], 1), two).score == pytest.approx(0, abs=0.01)
    assert few(metrics.sap, noise(N, 2), two).score == pytest.approx(0, abs=0.05)
    turned = torch.stack([codes.sum(1), codes[:, 0] - codes[:, 1]], 1)
    assert few(metrics.sap, turned, two).score == pytest.approx(0, abs=0.05)
    alone = few(metrics.sap, codes[:, :1], two)
    assert alone.each["a"] == pytest.approx(1, abs=0.01)  # there is no second best


@pytest.mark.parametrize(
    ("kind", "disentanglement", "completeness", "informativeness"),
    [
        ("perfect", (0.99, 1), (0.99, 1), (0.99, 1)),
        ("permuted", (0.99, 1), (0.99, 1), (0.99, 1)),
        # 1 - log 2 / log 3 = 0.37 for two of three
        ("rotated", (0.5, 0.65), (0.5, 0.65), (0.95, 1)),
        ("noise", (0, 0.1), (0, 0.1), (0.2, 0.3)),
        # each of four codes tells one factor; a needs two of four, even as to importance
        ("split", (0.99, 1), (0.75, 0.9), (0.99, 1)),
    ],
)
def test_dci_of_codes_with_known_answers(
    kind, disentanglement, completeness, informativeness, factors
):
    found = metrics.dci(codes_of(kind, factors), factors, n_train=800, n_test=400)
    assert disentanglement[0] <= found.disentanglement <= disentanglement[1]
    assert completeness[0] <= found.completeness <= completeness[1]
    assert informativeness[0] <= found.informativeness <= informativeness[1]
    assert found.matrix.sum(0).tolist() == pytest.approx([1, 1, 1])


def test_mutual_information_is_the_sum_over_a_table():
    # the joint of (a bin of z, v) is (3, 1; 1, 3) / 8
    v = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    z = torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 0]).unsqueeze(1)
    exact = 2 * (3 / 8 * math.log(3 / 8 * 4) + 1 / 8 * math.log(1 / 8 * 4))
    found = metrics.mutual_information(z, {"v": v}, n=8)
    assert found.item() == pytest.approx(exact)
    assert metrics.mig(z, {"v": v}, n=8).score == pytest.approx(exact / math.log(2))


def test_dimensions_that_hardly_vary_have_no_vote(factors):
    codes = torch.cat([perfect(factors), 0.2 * noise(N, 1)], 1)  # variance 0.04
    calm = codes.clone()
    calm[:, 3] *= 0  # constant: of a variance of 0, whatever is shared
    for some in (codes, calm):
        assert few(metrics.factor_vae, some, factors) == 1
    assert few(metrics.factor_vae, 0.1 * perfect(factors), factors) == 0  # nobody votes


def test_sets_share_one_value_of_the_factor_that_is_named(factors):
    table = torch.stack(list(factors.values()), 1)
    shared = torch.arange(3).repeat(200)
    of = metrics._sharing(table, shared, 50, torch.Generator().manual_seed(0))
    for f, rows in zip(shared.tolist(), table[of], strict=True):  # (50, 3)
        same = [len(column.unique()) == 1 for column in rows.T]
        assert same == [k == f for k in range(3)]
    counts = of.flatten().bincount(minlength=N)  # every image as often, but for chance
    assert abs(counts.float().var() / counts.float().mean() - 1) < 0.5


def test_the_total_correlation_of_gaussian_codes():
    root = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 2.0]])
    codes = noise(100_000, 3) @ root.T
    assert metrics.gaussian_tc(codes) == pytest.approx(-0.5 * math.log(1 - 0.8**2), abs=0.01)
    assert metrics.gaussian_tc(noise(100_000, 3)) == pytest.approx(0, abs=0.001)
    dead = torch.cat([codes, torch.ones(len(codes), 1)], 1)
    assert metrics.gaussian_tc(dead) == pytest.approx(metrics.gaussian_tc(codes))


def test_codes_may_come_straight_from_an_encoder(factors):
    codes = perfect(factors)
    with_slope = codes.clone().requires_grad_()
    assert few(metrics.mig, with_slope, factors).score == few(metrics.mig, codes, factors).score
    for function in (metrics.factor_vae, metrics.beta_vae):
        assert few(function, with_slope, factors) == few(function, codes, factors)


def test_the_surgery_of_the_elbo_is_the_double_loop_and_adds_up():
    q_z = Normal(noise(6, 2).double(), 0.3 + noise(6, 2, seed=2).abs().double())
    z, prior = q_z.loc + q_z.scale * noise(6, 2, seed=3), PRIORS["standard"](2)
    parts = dict.fromkeys(("mutual", "marginal", "tc"), 0.0)
    for i in range(6):
        p = [[Normal(q_z.loc[j], q_z.scale[j]).log_prob(z[i]).exp()] for j in range(6)]
        each = torch.cat([row[0].unsqueeze(0) for row in p])  # (6, 2)
        mixed = each.prod(1).mean()
        parts["mutual"] += (each[i].prod() / mixed).log().item() / 6
        parts["marginal"] += (mixed.log() - Normal(0, 1).log_prob(z[i]).sum()).item() / 6
        parts["tc"] += (mixed / each.mean(0).prod()).log().item() / 6
    found = metrics.surgery(q_z, z, prior, chunk=4)
    assert found["kl"] == pytest.approx(found["mutual"] + found["marginal"])
    for name, value in parts.items():
        assert found[name] == pytest.approx(value), name


def test_the_surgery_knows_what_gaussians_know():
    # means from N(0, 0.91 I), scale 0.3: q(z) is N(0, I), and I(x; z) is the channel's capacity
    generator = torch.Generator().manual_seed(0)
    mean = 0.91**0.5 * torch.randn(8000, 2, generator=generator)
    q_z = Normal(mean, torch.full_like(mean, 0.3))
    z = mean + 0.3 * torch.randn(8000, 2, generator=generator)
    found = metrics.surgery(q_z, z, PRIORS["standard"](2))
    assert found["mutual"] == pytest.approx(-2 * math.log(0.3), abs=0.05)
    assert found["marginal"] == pytest.approx(0, abs=0.05)
    assert found["tc"] == pytest.approx(0, abs=0.05)
    exact = kl_divergence(q_z, Normal(torch.zeros(2), 1.0)).sum(1).mean()
    assert found["kl"] == pytest.approx(exact.item(), abs=0.05)


@pytest.mark.parametrize("n_dims", [1, 4])
def test_sliced_wasserstein_of_shifted_and_stretched_gaussians(n_dims):
    shift = torch.linspace(1, 2, n_dims)
    a, b = noise(5_000, n_dims), noise(5_000, n_dims, seed=5)
    exact, distance = (
        (shift.norm() / n_dims**0.5).item(),
        partial(metrics.sliced_wasserstein, n_slices=500),
    )
    assert distance(a + shift, b) == pytest.approx(exact, rel=0.08)
    assert distance(3 * a, b) == pytest.approx(2, rel=0.05)
    assert distance(a, b) < 0.08


def test_along_one_line_it_is_the_cheapest_pairing():
    a, b = noise(6, 1), noise(6, 1, seed=2)
    costs = [
        (a[list(order), 0] - b[:, 0]).square().mean() for order in itertools.permutations(range(6))
    ]
    assert metrics.sliced_wasserstein(a, b) == pytest.approx(min(costs).item() ** 0.5)


SCORES = (metrics.mig, metrics.sap, metrics.dci, metrics.factor_vae, metrics.beta_vae)


@pytest.mark.parametrize("function", SCORES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("codes", "changes", "says"),
    [
        (torch.zeros(N, 2), {}, "all codes are the same"),
        (torch.full((N, 2), math.nan), {}, "not finite"),
        (torch.randn(N, 2), {"a": torch.zeros(N)}, "the factor a has one value alone"),
        (torch.randn(N, 2), {"a": torch.arange(9)}, "4,000 codes, but of factors {'a': 9}"),
        (torch.randn(N), {}, "codes have shape (4000,); this metric needs (N, D)"),
    ],
)
def test_what_can_t_be_scored_is_one_line(function, codes, changes, says, factors):
    with pytest.raises(metrics.MetricError) as caught:
        few(function, codes, factors | changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", SCORES[:3], ids=lambda f: f.__name__)
def test_too_few_images_are_one_line(function, factors):
    with pytest.raises(metrics.MetricError, match=r"needs \(N, D\) with N at least 1[05],000"):
        function(perfect(factors), factors)
    with pytest.raises(metrics.MetricError, match="there are no factors"):
        few(function, perfect(factors), {})


def test_every_score_has_its_name(monkeypatch):
    monkeypatch.setattr(metrics, "dci", lambda *_: metrics.DCI(0.1, 0.2, 0.3, None))  # minutes
    generator = torch.Generator().manual_seed(0)
    factors = {name: torch.randint(5, (15_000,), generator=generator) for name in "ab"}
    codes = torch.stack([*factors.values()], 1).float()
    found = metrics.scores(codes, factors)
    trees = {name: found.pop(f"dci_{name}") for name in metrics.DCI._fields[:3]}
    assert trees == {"disentanglement": 0.1, "completeness": 0.2, "informativeness": 0.3}
    assert found.pop("sap") > 0.3  # a linear classifier does not tell the middle values apart
    assert found == pytest.approx({"mig": 1.0, "factor_vae": 1.0, "beta_vae": 1.0}, abs=0.01)

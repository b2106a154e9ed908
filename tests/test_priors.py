"""Learned priors: densities that integrate to one, draws that have them, training, pages."""

import json
import math
import shutil
import subprocess

import pytest
import torch
from scipy import stats
from torch.distributions import Normal

import vaelib
from vaelib import checkpoints, evaluation, export, files, gallery, priors, wake_sleep, widgets
from vaelib.__main__ import main
from vaelib.data import load, seen_by
from vaelib.models import VAE
from vaelib.objectives import elbo, iwae
from vaelib.training import TrainingError, build, fit

PRIORS = ["standard", "vamp", "flow"]
DECODER = (export.SOURCES / "decoder.js").read_text()


def made(prior: str, latent_dim: int = 2, seed: int = 0, **arguments) -> VAE:
    """A small model whose prior is far from N(0, I), where it can be."""
    torch.manual_seed(seed)
    if prior == "vamp":
        arguments = {"n_inputs": 6} | arguments
    if prior == "flow":
        arguments = {"n_layers": 4, "hidden": 16} | arguments
    shape = {"latent_dim": latent_dim, "backbone": "mlp", "hidden": 16}
    model = VAE(**shape, prior=prior, prior_args=arguments).eval()
    with torch.no_grad():
        for name, weight in model.prior.named_parameters():
            if "hyper.4" in name:  # the last layer, which begins at zero
                weight.normal_(0, 0.4)
        model.encoder.to_latent.weight.mul_(6)
        model.encoder.to_latent.bias[latent_dim:] -= 1.5
    return model


def grid(limit: float, n: int) -> tuple[torch.Tensor, float]:
    """Middles of n x n cells that fill a square, and the area of one."""
    axis = (torch.arange(n) + 0.5) / n * 2 * limit - limit
    return torch.cartesian_prod(axis, axis), (2 * limit / n) ** 2


@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_is_a_density(prior):
    model = made(prior)
    places, area = grid(16.0, 1600)
    with torch.inference_mode():
        total = sum(model.prior.log_prob(z).double().exp().sum() for z in places.split(100_000))
    assert total.item() * area == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("prior", PRIORS)
def test_its_draws_have_that_density(prior):
    model, n, n_cells = made(prior), 20_000, 12
    # counts in cells, outside them one more, against the cells' probabilities by quadrature
    fine, area = grid(6.0, 50 * n_cells)
    with torch.inference_mode():
        z = model.prior.sample(n, torch.Generator().manual_seed(1))
        density = model.prior.log_prob(fine).double().exp().reshape([n_cells, 50] * 2)
    expected = (area * density.sum((1, 3))).flatten()
    cell = ((z + 6) / 12 * n_cells).floor().long()
    inside = ((cell >= 0) & (cell < n_cells)).all(1)
    flat = cell[inside] @ torch.tensor([n_cells, 1])
    counts = torch.bincount(flat, minlength=n_cells**2).double()
    often = n * expected >= 5  # the rest, and what is outside, is one cell
    counts, expected = (torch.cat([t[often], (t.new_tensor(whole) - t[often].sum())[None]])
                        for t, whole in ((counts, n), (expected, 1.0)))  # fmt: skip
    assert len(counts) > 8
    assert stats.chisquare(counts, n * expected / expected.sum()).pvalue > 1e-4
    # and another density does not have these draws
    with torch.inference_mode():
        other = made(prior, seed=1).prior.log_prob(z).mean() if prior != "standard" else -1e9
        assert model.prior.log_prob(z).mean() > other + 0.05


def test_a_fitted_density_takes_the_prior_s_place():
    model = made("standard", 3)
    images = load("mnist-5k", "val").subset(300)
    expected = evaluation.elbo_terms(model, images)[0]
    same = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
    model.prior = priors.Fitted(same)
    terms = evaluation.elbo_terms(model, images)[0]
    torch.testing.assert_close(terms.log_px_z, expected.log_px_z)
    assert terms.kl_per_dim is None
    difference = terms.kl - expected.kl  # by a draw each, against the closed form
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(300)
    # twice as wide, it costs what Normal's formula says: log 2 more a dimension, and less distance
    wider = torch.distributions.MultivariateNormal(torch.zeros(3), 4 * torch.eye(3))
    model.prior = priors.Fitted(wider)
    q_z = evaluation.posteriors(model, images)
    wide = torch.distributions.kl_divergence(q_z, Normal(torch.zeros(300, 3), 2.0)).sum(-1)
    difference = evaluation.elbo_terms(model, images)[0].kl - wide
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(300)
    state = torch.get_rng_state()
    first, again = (model.prior.sample(2000, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, model.prior.sample(2000, torch.Generator().manual_seed(6)))
    assert first.std(0).sub(2.0).abs().max() < 0.15


def test_a_flow_begins_as_n_0_i_and_changes_volumes_by_its_jacobian():
    z = torch.randn(5, 4)
    plain = VAE(latent_dim=4, backbone="mlp", hidden=8, prior="flow").prior
    expected = Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(plain.log_prob(z), expected)
    prior = made("flow", 4).prior
    to_noise = prior.flow().transform
    for one in z:
        jacobian = torch.autograd.functional.jacobian(to_noise, one)
        by_hand = Normal(0.0, 1.0).log_prob(to_noise(one)).sum() + jacobian.det().abs().log()
        torch.testing.assert_close(prior.log_prob(one), by_hand, rtol=1e-4, atol=1e-4)
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(to_noise(prior.sample(7, generator)), u, rtol=1e-3, atol=1e-3)


def test_vamp_is_the_mean_of_its_inputs_posteriors():
    model, z = made("vamp", 3), torch.randn(2, 5, 3)
    q = model.encode(model.prior.logits.sigmoid())
    each = torch.stack([Normal(m, s).log_prob(z).sum(-1).exp().double()
                        for m, s in zip(q.loc, q.scale, strict=True)])  # fmt: skip
    torch.testing.assert_close(model.prior.log_prob(z).double(), each.mean(0).log(), rtol=1e-4,
                               atol=1e-4)  # fmt: skip


def test_vamp_forgets_its_components_when_a_weight_changes():
    model, z = made("vamp"), torch.randn(9, 2)

    def fused_step():  # which does not raise a tensor's version
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()

    for change in (
        lambda: model.prior.logits.add_(1.0),
        lambda: model.encoder.to_latent.bias.add_(1.0),
        lambda: model.load_state_dict(made("vamp", seed=5).state_dict()),
        fused_step,
    ):
        with torch.no_grad():
            before = model.prior.log_prob(z)
            torch.testing.assert_close(model.prior.log_prob(z), before)
            change()
            after = model.prior.log_prob(z)
        assert (after - before).abs().max() > 1e-3
        torch.testing.assert_close(after, model.prior.log_prob(z).detach())  # not kept: grad is on


def test_vamp_does_not_mix_precisions():
    model, z = made("vamp", 3), torch.randn(50, 3)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.prior.log_prob(z)
        exact = model.prior.log_prob(z)
    fresh = model.prior.log_prob(z).detach()  # with gradients nothing is kept
    torch.testing.assert_close(exact, fresh)
    assert not torch.allclose(rounded, exact)


def test_vamp_begins_with_training_images_and_no_more_than_there_are():
    images = load("mnist-5k", "train").images[:8]
    model = made("vamp", n_inputs=8)
    model.prior.start(images, seed=1)
    there = {tuple((image > 127).flatten().tolist()) for image in images}
    begun = [tuple((u > 0.5).flatten().tolist()) for u in model.prior.inputs]
    assert set(begun) == there  # each once
    with pytest.raises(ValueError, match="9 pseudo-inputs can't begin as 8 images"):
        made("vamp", n_inputs=9).prior.start(images)


@pytest.mark.parametrize("prior", PRIORS)
def test_saved_and_loaded_it_is_the_same(prior, tmp_path):
    model = made(prior, 3)
    checkpoints.save(model, tmp_path)
    again, z = vaelib.load_checkpoint(tmp_path), torch.randn(6, 3)
    with torch.no_grad():
        assert torch.equal(again.prior.log_prob(z), model.prior.log_prob(z))
    config = json.loads((tmp_path / "config.json").read_text())
    if prior == "standard":  # as old checkpoints are
        (tmp_path / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if "prior" not in k})
        )
        assert vaelib.load_checkpoint(tmp_path).prior_name == "standard"


@pytest.mark.parametrize("prior", ["vamp", "flow"])
def test_the_sampled_kl_is_the_integral(prior):
    model, images = made(prior), load("mnist-5k", "val").subset(3)
    x = seen_by(model, images.images, torch.Generator().manual_seed(0))
    places, area = grid(12.0, 1500)
    with torch.inference_mode():
        q_z = model.encode(x)
        log_q = q_z.log_prob(places.unsqueeze(1)).sum(-1).double()  # (G, 3)
        log_p = model.prior.log_prob(places).double().unsqueeze(1)
        kl = (area * log_q.exp() * (log_q - log_p)).sum(0)
        terms = elbo(model, x, torch.randn(4000, 3, 2))
        assert iwae(model, x, torch.randn(2, 3, 2)).kl_per_dim is None
    torch.testing.assert_close(terms.kl.double(), kl, rtol=0.03, atol=0.05)
    block = evaluation.evaluate(model, images, 10, 2)
    assert "kl_per_dim" not in block
    assert "one draw of z" in block["kl_estimator"]


RECIPE = {
    "data": "mnist-5k", "latent_dim": 2, "backbone": "mlp", "hidden": 32, "steps": 60,
    "eval_every": 30, "precision": "fp32", "lr": 2e-3,
}  # fmt: skip
VAMP = {"prior": "vamp", "prior_args": {"n_inputs": 20}}
FLOW = {"prior": "flow", "prior_args": {"n_layers": 3, "hidden": 16}}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A trained VAE with N(0, I), whose codes a prior may learn."""
    folder = tmp_path_factory.mktemp("vae")
    fit(*build(RECIPE | {"steps": 300, "eval_every": 300}), run_dir=folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*collapsed")
@pytest.mark.parametrize("keys", [VAMP, FLOW], ids=["vamp", "flow"])
def test_two_stages_train_the_prior_alone(keys, frozen, tmp_path):
    first = vaelib.load_checkpoint(frozen)
    recipe = RECIPE | keys | {"init": str(frozen), "two_stage": True, "steps": 200}
    model, images, config = build(recipe | {"eval_every": 100})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    alone = elbo(model, x := torch.rand(4, 1, 28, 28).round(), torch.zeros(4, 2))
    torch.testing.assert_close(alone.log_px_z, elbo(first, x, torch.zeros(4, 2)).log_px_z)
    history = fit(model, images, config, run_dir=tmp_path)
    assert len({row["val_kl"] for row in history.rows}) == 2  # it was measured anew
    stored, z = vaelib.load_checkpoint(tmp_path), torch.randn(5, 2)
    torch.testing.assert_close(stored.prior.log_prob(z), model.prior.log_prob(z))
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(name.startswith("prior.") for name in moved)
    first_kl = evaluation.elbo_terms(first, images["val"])[0].kl.mean().item()
    assert history.rows[-1]["val_kl"] < first_kl - 0.05  # nearer to the codes than N(0, I)
    assert vaelib.load_checkpoint(tmp_path).prior_name == keys["prior"]


@pytest.mark.filterwarnings("ignore:.*collapsed")
@pytest.mark.parametrize("keys", [VAMP, FLOW], ids=["vamp", "flow"])
def test_trained_jointly_stopped_and_resumed_it_is_the_same(keys, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    fit(*build(RECIPE | keys), run_dir=whole)
    fit(*build(RECIPE | keys | {"steps": 30}), run_dir=halves)
    model, images, config = build(RECIPE | keys)
    # the first half was planned as a run of its own; its plan is part of what is replayed
    again = fit(model, images, config, run_dir=halves, resume=True)
    replayed, images, config = build(RECIPE | keys | {"plans": again.plans})
    fit(replayed, images, config)
    own = replayed.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    made_new = build(RECIPE | keys)[0].state_dict()
    assert all(not torch.equal(v, made_new[k]) for k, v in own.items() if v.is_floating_point()
               and "base" not in k)  # fmt: skip


def test_what_can_not_be_is_one_line(frozen, tmp_path):
    two = {"two_stage": True}
    for keys, message in (
        (two | {"init": str(frozen)}, "standard has nothing to learn: give prior vamp or flow"),
        (two | FLOW, "two_stage keeps what init has: give init"),
        (FLOW | {"latent_dim": 1}, "latent_dim is 1: take prior vamp"),
        (FLOW | {"objective": "free_bits"}, "free_bits is for the prior standard"),
        (VAMP | {"objective": "mmd_vae"}, "mmd_vae is for the prior standard"),
        (FLOW | {"init": str(frozen), "hidden": 8}, "another model than this one"),
        (two | FLOW | {"init": str(frozen), "objective": "autoencoder"}, "an autoencoder asks no"),
        (VAMP | {"posterior": "iaf"}, "take prior flow, or posterior normal"),
        ({"prior": "vamp", "prior_args": {"n_inputs": 4001}}, "give prior_args n_inputs, 4000"),
        ({"prior": "vamp", "prior_args": {"n_inputs": 0}}, "give at least 1"),
        ({"prior": "flow", "prior_args": {"n_layers": 0}}, "of at least 1"),
        ({"prior": "flow", "prior_args": {"width": 8}}, "no parameter 'width'"),
        ({"prior": "vampp"}, "did you mean vamp"),
    ):
        with pytest.raises((ValueError, TrainingError), match=message):
            build(RECIPE | keys)


def test_wake_sleep_does_not_take_a_prior_that_is_the_encoder():
    with pytest.raises(TrainingError, match="prior vamp uses the encoder"):
        wake_sleep.fit(*build(RECIPE | VAMP))


@pytest.mark.filterwarnings("ignore:.*collapsed")
def test_a_run_from_before_these_keys_is_gone_on_with(tmp_path):
    fit(*build(RECIPE | {"steps": 30}), run_dir=tmp_path)
    path = tmp_path / files.STATE
    tensors, metadata = files.read_tensors(path)
    run = json.loads(metadata["run"])
    del run["config"]["two_stage"], run["model"]["posterior"], run["model"]["posterior_args"]
    files.write_tensors(path, tensors, {"run": json.dumps(run)})
    history = fit(*build(RECIPE), run_dir=tmp_path, resume=True)
    assert history.rows[-1]["step"] == 60
    run["model"]["hidden"] = 33
    files.write_tensors(path, tensors, {"run": json.dumps(run)})
    with pytest.raises(TrainingError, match="another model"):
        fit(*build(RECIPE), run_dir=tmp_path, resume=True)


def in_node(model, call: str) -> torch.Tensor:
    """What a JavaScript expression over decoder.js and the prior `m` is, by node."""
    if not (node := shutil.which("node")):
        pytest.skip("no node on this machine")
    weights: list[torch.Tensor] = []
    found = export.describe_prior(model, weights)
    script = (
        f"{DECODER}\nconst m = attach({json.dumps(found)}, unpack('{export.packed(weights)}'));"
    )
    script += f"\nconsole.log(JSON.stringify({call}));"
    done = subprocess.run([node], input=script, capture_output=True, text=True, check=True)
    return torch.tensor(json.loads(done.stdout))


def test_a_page_draws_from_the_flow():
    model, u = made("flow", 5), torch.randn(20, 5)
    prior = model.prior
    for weight in prior.parameters():
        weight.data = weight.half().float()
    call = f"{u.tolist()}.map((u) => Array.from(priors.Flow(Float32Array.from(u), m)))"
    with torch.no_grad():
        expected = prior.flow().transform.inv(u)
    torch.testing.assert_close(in_node(model, call), expected, rtol=1e-3, atol=1e-3)


def test_a_page_draws_from_each_component_of_vamp():
    model, u = made("vamp", 3), torch.randn(6, 3)
    shares = [(k + 0.5) / 6 for k in range(6)]
    call = f"{u.tolist()}.map((u, k) => Array.from(priors.VampPrior(Float32Array.from(u), m, "
    call += f"{shares}[k])))"
    with torch.no_grad():
        parts = model.prior.components()
    found = in_node(model, call)
    torch.testing.assert_close(found, parts.loc + parts.scale * u, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("prior", ["vamp", "flow"])
def test_pictures_sliders_and_pages_follow_the_prior(prior, tmp_path):
    model, images = made(prior), load("mnist-5k", "val").subset(30)
    mean, std = priors.spread(model.prior)
    z = model.prior.sample(50_000, torch.Generator().manual_seed(7))
    torch.testing.assert_close(mean, z.mean(0), atol=0.1, rtol=0.1)
    torch.testing.assert_close(std, z.std(0), atol=0.1, rtol=0.1)
    about = widgets.explorer_data(model, "m", images)
    assert about["prior"] == prior
    assert about["limit"] >= 2.9 * std.max().item()
    assert all(dim["nats"] is None for dim in about["dims"])
    explorer = widgets.LatentExplorer(model, about)
    sent = []
    explorer.send = lambda content, buffers=None: sent.append((content, buffers))
    explorer._answer(None, {"number": 1, "view": 2}, None)
    ((answer, _),) = sent
    assert len(answer["z"]) == 2
    assert all(map(math.isfinite, answer["z"]))
    checkpoints.save(model, tmp_path / "m")
    main(["export", str(tmp_path / "m"), "-o", str(tmp_path / "page.html")])
    assert f'"type": "{type(model.prior).__name__}"' in (tmp_path / "page.html").read_text()
    for mode in ("sample", "traverse", "interpolate", "manifold", "visualize_latent"):
        words = ["sample", str(tmp_path / "m"), "--mode", mode, "--save_dir", str(tmp_path)]
        words += ["--spacing", "linear"] if mode == "manifold" else ["--data", "mnist-5k"]
        main(words if mode != "sample" else words[:-2])
        assert list(tmp_path.glob(f"m-{mode}*.png"))
    gallery.latent_histogram(model, "m", images)
    for dim in (None, 1):  # a column is so many deviations of the prior, not z itself
        title = gallery.traverse(model, "m", images, None, traverse_dim=dim).get_suptitle()
        assert "in deviations of the prior" in title.replace("\n", " ")


def with_flow(latent_dim: int = 3, seed: int = 0) -> VAE:
    """A small model whose posterior is far from a diagonal Normal."""
    torch.manual_seed(seed)
    sizes = {"n_layers": 2, "hidden": 16, "n_context": 5}
    shape = {"latent_dim": latent_dim, "backbone": "mlp", "hidden": 16}
    model = VAE(**shape, posterior="iaf", posterior_args=sizes).eval()
    with torch.no_grad():
        for name, weight in model.posterior.named_parameters():
            if "hyper.4" in name:
                weight.normal_(0, 0.5)
    return model


def test_a_flow_posterior_is_a_density_and_knows_its_draws():
    model = with_flow(2)
    x = load("mnist-5k", "val").subset(2).images.float() / 255
    places, area = grid(12.0, 900)
    with torch.inference_mode():
        q_z = model.encode(x)
        density = q_z.log_prob(places.unsqueeze(1).expand(-1, 2, -1))[..., 0].double().exp()
        torch.testing.assert_close(area * density.sum(0), torch.ones(2).double(), atol=2e-3, rtol=0)
        z = q_z.draw(torch.randn(20_000, 2, 2))
        known = q_z.log_prob(z)  # at hand
        torch.testing.assert_close(q_z.log_prob(z.clone()), known, atol=2e-3, rtol=1e-3)
        mean = area * (density.unsqueeze(-1) * places.unsqueeze(1)).sum(0)
        second = area * (density.unsqueeze(-1) * places.unsqueeze(1) ** 2).sum(0)
    assert known.shape == (20_000, 2, 1)
    deviation = (second - mean**2).sqrt()
    torch.testing.assert_close(z.mean(0).double(), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0).double(), deviation, atol=0.05, rtol=0)
    assert ((q_z.loc - mean).abs() < 0.5 * deviation).all()  # of 64 draws
    assert ((q_z.scale / deviation).log().abs() < 0.5).all()


def test_a_flow_posterior_has_the_volume_of_its_jacobian():
    model = with_flow(4)
    q_z, eps = model.encode(torch.rand(1, 1, 28, 28)), torch.randn(1, 4)
    jacobian = torch.autograd.functional.jacobian(lambda e: q_z.draw(e)[0], eps)[:, 0]
    z = q_z.draw(eps)
    by_hand = Normal(0.0, 1.0).log_prob(eps).sum() - jacobian.det().abs().log()
    torch.testing.assert_close(q_z.log_prob(z).sum(), by_hand, rtol=1e-4, atol=1e-4)
    # draws of one dimension move those after it alone, up to the second layer's reversal
    assert jacobian.abs().min() > 1e-4


def test_a_flow_posterior_bounds_log_px_and_trains():
    # a bound from many draws is the same log p(x) by whichever posterior
    model = with_flow(2)
    x = load("mnist-5k", "val").subset(2).images.float().div(255).round()
    places, area = grid(7.0, 300)
    with torch.inference_mode():
        log_px_z = torch.cat(
            [
                model.decode(z).log_prob(x).sum((2, 3, 4))  # (2000, 2)
                for z in places.unsqueeze(1).split(2000)
            ]
        )
        log_pz = Normal(0.0, 1.0).log_prob(places).sum(-1, keepdim=True)
        exact = (log_px_z + log_pz).double().logsumexp(0) + math.log(area)
        bound = evaluation.importance_weighted_bound(model, x, 4000)
        terms = elbo(model, x, torch.randn(200, 2, 2))
    torch.testing.assert_close(bound.double(), exact, atol=0.05, rtol=0)
    assert (terms.elbo < exact).all()
    assert terms.kl_per_dim is None
    iaf = {"posterior": "iaf", "posterior_args": {"hidden": 16, "n_context": 4}}
    trained, images, config = build(RECIPE | iaf | {"steps": 150, "eval_every": 75})
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    history = fit(trained, images, config)
    assert history.rows[1]["val_elbo"] > history.rows[0]["val_elbo"]
    same = [k for k, v in trained.state_dict().items() if torch.equal(v, before[k])]
    assert all("mask" in k or "order" in k for k in same), same
    with pytest.raises(
        TrainingError, match="beta_tcvae is for the prior standard and the posterior"
    ):
        build(RECIPE | iaf | {"objective": "beta_tcvae"})
    with pytest.raises(ValueError, match="latent_dim is 1"):
        VAE(latent_dim=1, posterior="iaf")
    with pytest.raises(ValueError, match="did you mean iaf"):
        VAE(posterior="iaff")

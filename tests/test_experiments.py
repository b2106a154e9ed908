"""The runner of experiments: every run of the grid, kept as it goes, and never twice."""

import math
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.distributions import Normal

from vaelib import experiments, files
from vaelib.__main__ import main
from vaelib.data import load, seen_by, sprites
from vaelib.experiments import FOLDER, ExperimentError
from vaelib.models import VAE
from vaelib.recipes import TrainConfig
from vaelib.training import fit

PLAN = {
    "recipe": {
        "data": "mnist-5k",
        "latent_dim": 2,
        "backbone": "mlp",
        "hidden": 4,
        "steps": 4,
        "batch_size": 8,
        "eval_every": 2,
        "precision": "fp32",
    },
    "grid": [{"kl_warmup": [0, 2]}, {"beta": [4.0]}],
    "seeds": [0, 1],
}

TRAINS = {f.name for f in fields(TrainConfig)}


@pytest.fixture(scope="module")
def images():
    return {split: load("mnist-5k", split) for split in ("train", "val")}


@pytest.fixture
def plan(tmp_path, monkeypatch, images):
    """A function that writes a plan, as tiny.yaml; what was run of it; the few images."""
    few = {split: images[split].subset(20) for split in images}
    monkeypatch.setattr("vaelib.data.load", lambda name, split, **_: few[split])
    fitted = []

    def counted(model, images, config, **more):
        fitted.append((config.kl_warmup, config.beta, config.seed))
        return fit(model, images, config, **more)

    monkeypatch.setitem(experiments.WAYS, "fit", counted)
    path = tmp_path / "tiny.yaml"

    def write(**changes):
        path.write_text(yaml.safe_dump(PLAN | changes))
        return path

    return write, fitted, few


ALL = [(0, 1.0, 0), (0, 1.0, 1), (2, 1.0, 0), (2, 1.0, 1), (0, 4.0, 0), (0, 4.0, 1)]


def test_every_combination_is_run_with_every_seed_and_says_how_far_it_is(plan, capsys):
    write, fitted, _ = plan
    path = write()
    assert experiments.run(path) == path.with_suffix(".json")
    assert fitted == ALL
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "tiny, run 1 of 6: {'kl_warmup': 0}"
    assert "tiny, run 6 of 6, about 0 min left: {'beta': 4.0}" in out
    assert out[-1].endswith("tiny.json: 6 runs, 6 of them new")

    kept = files.read_json(path.with_suffix(".json"))
    assert kept["command"] == "vaelib experiment tiny"
    assert all(run["made_with"]["torch"] == torch.__version__ for run in kept["runs"])
    assert [run["recipe"] for run in kept["runs"]] == [
        run["recipe"] for run in experiments.planned(path)
    ]
    assert all([row["step"] for row in run["history"]] == [2, 4] for run in kept["runs"])


def test_the_time_that_is_left_is_that_of_the_last_run_for_each(plan, monkeypatch, capsys):
    now, fit_one = [0.0], experiments.WAYS["fit"]

    def slow(*args):
        now[0] += 60 * (len(plan[1]) + 1)  # a minute, two, three, ...
        return fit_one(*args)

    monkeypatch.setitem(experiments.WAYS, "fit", slow)
    monkeypatch.setattr(experiments, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    main(["experiment", str(plan[0]())])
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    left = [f"tiny, run {k} of 6, about {(k - 1) * (7 - k)} min left" for k in range(2, 7)]
    assert said[:6] == ["tiny, run 1 of 6", *left]


def test_results_are_the_last_rows_with_the_keys_that_change(plan):
    path = plan[0]()
    with pytest.raises(
        ExperimentError, match=r"tiny.json is not there yet: run `vaelib exp\S* tiny"
    ):
        experiments.results(path)
    experiments.run(path)
    rows = experiments.results(path)
    assert [(row.get("kl_warmup", 0), row["beta"], row["seed"]) for row in rows] == ALL
    assert all(row["step"] == 4 and "val_elbo" in row for row in rows)
    assert len({row["val_elbo"] for row in rows}) == len(rows)  # another seed, another number


def test_a_killed_experiment_goes_on_where_it_stopped(plan, monkeypatch):
    write, fitted, _ = plan
    path = write()
    counted = experiments.WAYS["fit"]

    def killed(*args):
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setitem(experiments.WAYS, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        experiments.run(path)
    before = files.read_json(path.with_suffix(".json"))["runs"]
    assert len(before) == 3

    monkeypatch.setitem(experiments.WAYS, "fit", counted)
    experiments.run(path)
    assert fitted == ALL  # each once
    after = files.read_json(path.with_suffix(".json"))
    assert after["runs"][:3] == before
    experiments.run(path)
    assert fitted == ALL
    assert files.read_json(path.with_suffix(".json")) == after


def test_what_another_torch_computed_is_run_again(plan):
    write, fitted, _ = plan
    path = write(grid=[{"beta": [4.0]}])
    experiments.run(path)
    kept = files.read_json(path.with_suffix(".json"))
    kept["runs"][1]["torch"] = "1.0"
    files.write_json(path.with_suffix(".json"), kept)
    experiments.run(path)
    assert fitted == [(0, 4.0, 0), (0, 4.0, 1), (0, 4.0, 1)]


def test_a_kill_amid_new_runs_loses_none_of_the_old(plan, monkeypatch):
    write, fitted, _ = plan
    experiments.run(write())
    counted = experiments.WAYS["fit"]

    def killed(*args):
        if len(fitted) == len(ALL) + 1:
            raise KeyboardInterrupt
        return counted(*args)

    path = write(seeds=[7, 0, 1])
    with monkeypatch.context() as patch:
        patch.setitem(experiments.WAYS, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            experiments.run(path)
    experiments.run(path)
    assert fitted[len(ALL) :] == [(0, 1.0, 7), (2, 1.0, 7), (0, 4.0, 7)]


def test_more_seeds_run_what_is_new_alone(plan):
    write, fitted, _ = plan
    experiments.run(write())
    experiments.run(write(seeds=[0, 1, 2]))
    assert [run[2] for run in fitted[6:]] == [2, 2, 2]
    assert len(experiments.results(write(seeds=[0, 1, 2]))) == 9


def test_another_recipe_or_other_images_are_run_again_and_nothing_old_is_left(plan):
    write, fitted, few = plan
    path = write(grid=[{"kl_warmup": [0]}])
    experiments.run(path)
    experiments.run(write(grid=[{"kl_warmup": [0]}], recipe=PLAN["recipe"] | {"lr": 1e-3}))
    assert len(fitted) == 4
    assert [run["recipe"]["lr"] for run in files.read_json(path.with_suffix(".json"))["runs"]] == [
        1e-3,
        1e-3,
    ]
    few["train"] = few["train"][list(range(19, -1, -1))]
    experiments.run(path)
    assert len(fitted) == 6
    experiments.run(
        write(grid=[{"kl_warmup": [0]}], recipe=PLAN["recipe"] | {"lr": 1e-3}, seeds=[1])
    )
    assert len(fitted) == 6
    assert [row["seed"] for row in experiments.results(path)] == [1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipe: {data: mnist-5k}\ngrid: []\n", "tiny.yaml needs recipe, grid, seeds"),
        ("- 1\n- 2\n", "tiny.yaml holds no keys and values"),
        ("recipe: [", "tiny.yaml is no YAML"),
        ("", "tiny.yaml holds no keys and values"),
    ],
)
def test_a_file_that_is_no_plan_is_one_line(tmp_path, text, says):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    with pytest.raises(files.UserError) as caught:
        experiments.run(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": []}, "a list of seeds"),
        ({"seeds": 3}, "a list of seeds"),
        ({"recipe": "mnist-2d"}, "tiny.yaml needs recipe, grid, seeds"),
        ({"others": 1}, "tiny.yaml needs recipe, grid, seeds"),
        ({"grid": {"beta": 4.0}}, "the grid needs lists of values"),
        ({"grid": 5}, "the grid needs lists of values"),
        ({"grid": {"kl_warmpu": [0]}}, "a recipe has no key 'kl_warmpu'"),
        ({"recipe": PLAN["recipe"] | {"steps": 0}}, "steps is 0; it must be above 0"),
    ],
)
def test_a_wrong_plan_is_one_line(plan, changes, says):
    write, fitted, _ = plan
    with pytest.raises((files.UserError, ValueError)) as caught:
        experiments.run(write(**changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not fitted


def test_ways_to_train_few_images_and_columns_besides(plan):
    write, _, few = plan
    few["test"] = few["val"]
    recipe = PLAN["recipe"] | {"also": ["test", "marginal"]}
    grid = [
        {"way": ["fit", "wake_sleep"], "n_train": [10]},
        {"way": ["mcem"], "n_train": [20], "seed": [5]},
    ]
    path = write(recipe=recipe, grid=grid, takes="no time")
    experiments.run(path)
    runs = files.read_json(path.with_suffix(".json"))["runs"]
    assert [(run["keys"]["way"], run["seed"]) for run in runs] == [
        ("fit", 0), ("fit", 1), ("wake_sleep", 0), ("wake_sleep", 1), ("mcem", 5)
    ]  # fmt: skip
    assert runs[0]["images"]["train"] == experiments.at_random(few["train"], 10).sha256
    assert runs[-1]["images"]["train"] == experiments.at_random(few["train"], 20).sha256
    for run in runs:
        row = run["history"][-1]
        assert {"test_elbo", "test_reciprocal", "train_weighted", "test_acceptance"} <= row.keys()
        # an estimate of log p(x) is above its bound
        assert row["test_weighted"] > row["test_elbo"] - 1
        if "val_elbo" in row:  # test and val are the same images here, and so is the noise
            assert row["test_elbo"] == pytest.approx(row["val_elbo"], abs=2e-3)
    assert runs[0]["history"] != runs[2]["history"]


def test_few_training_digits_are_a_fair_mixture(images):
    train = images["train"]  # in turns 0, 1, ..., 9; in a bad order all of one digit come first
    sorted_ = train[train.labels.argsort(stable=True)]
    counts = experiments.at_random(sorted_, 1000).labels.bincount(minlength=10)
    assert counts.min() > 60
    again = experiments.at_random(sorted_, 10)
    assert torch.equal(again.labels, experiments.at_random(sorted_, 1000).labels[:10])


def test_log_px_of_val_is_that_which_em_is_watched_by(plan):
    write, _, few = plan
    few["test"] = few["val"]
    grid = [{"way": ["mcem"], "also": [["val_marginal"]]}]
    row = experiments.results(experiments.run(write(grid=grid, seeds=[0])).with_suffix(".yaml"))[0]
    assert row["val_weighted"] == pytest.approx(row["val_log_px"], abs=0.05)
    assert abs(row["val_reciprocal"] - row["val_weighted"]) < 0.5


def test_a_rung_is_measured_on_test_and_with_a_mixture_where_the_prior_is_n_0_i(plan):
    write, _, few = plan
    few["test"] = load("mnist-5k", "val").subset(150)
    flow = {"prior": ["flow"], "prior_args": [{"n_layers": 2, "hidden": 4}]}
    path = write(grid=[{"prior": ["standard"]}, flow], seeds=[0],
                 recipe=PLAN["recipe"] | {"eval_every": 4, "also": ["rung"]})  # fmt: skip
    standard, learned = experiments.results(experiments.run(path).with_suffix(".yaml"))
    own = ["neg_elbo", "kl", "bound", "elbo_gap", "two_sample", "two_sample_means", "frechet"]
    assert set(own) < set(learned)
    assert set(standard) - set(learned) == {f"mixture_{name}" for name in own}
    # a mixture of the codes asks for less than N(0, I), and changes nothing of the pixels
    assert standard["mixture_kl"] < standard["kl"]
    pixels = [standard[f"{k}neg_elbo"] - standard[f"{k}kl"] for k in ("", "mixture_")]
    assert pixels[0] == pytest.approx(pixels[1], abs=1e-3)
    for row in (standard, learned):
        assert 0 < row["elbo_gap"] == pytest.approx(row["neg_elbo"] - row["bound"], abs=1e-3)
        assert row["two_sample"] > 0.9  # four steps make no digits

    # against the same by hand: each image's 100 draws, weighed by densities written out
    model, x = experiments.started(experiments.planned(path)[0])[0].args[0], few["test"]
    fit(model, few, TrainConfig(**{k: v for k, v in PLAN["recipe"].items() if k in TRAINS}))
    row = experiments.rung(model, few)
    assert model.prior_name == "standard"
    assert hasattr(model.prior, "kl_per_dim")
    x = seen_by(model, x.images, torch.Generator().manual_seed(0))
    q_z = model.encode(x)
    z = q_z.loc + q_z.scale * torch.randn(400, *q_z.loc.shape)
    mean = model.decode(z).mean
    log_w = (x * mean.log() + (1 - x) * (1 - mean).log()).sum((2, 3, 4))
    log_w += (Normal(0.0, 1.0).log_prob(z) - Normal(q_z.loc, q_z.scale).log_prob(z)).sum(-1)
    assert row["neg_elbo"] == pytest.approx(-log_w.mean().item(), abs=1.0)
    bound = log_w.unflatten(0, (4, 100)).logsumexp(1) - math.log(100)
    assert row["bound"] == pytest.approx(-bound.mean().item(), abs=0.3)


def test_the_weights_of_the_first_seed_are_kept_where_that_is_asked(plan):
    write, fitted, _ = plan
    path = write(grid=[{"keep": ["kept/warm"], "kl_warmup": [2]}, {"beta": [4.0]}])
    experiments.run(path)
    folder = path.parent / "kept"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} == {
        "warm/config.json", "warm/model.safetensors"
    }  # fmt: skip
    kept = files.read_tensors(folder / "warm" / "model.safetensors")[0]
    assert {w.dtype for w in kept.values()} == {torch.float16}
    experiments.run(path)
    assert len(fitted) == 4
    (folder / "warm" / "model.safetensors").unlink()  # lost: made again, and no other run
    experiments.run(path)
    assert fitted[4:] == [(2, 1.0, 0)]
    again = files.read_tensors(folder / "warm" / "model.safetensors")[0]
    assert all(torch.equal(w, again[k]) for k, w in kept.items())


def test_scores_of_factors_are_those_of_the_codes():
    some = sprites.at(torch.randint(737_280, (2000,), generator=torch.Generator().manual_seed(0)))

    class Told(VAE):  # which tells three of the factors, and nothing else
        def encode(self, x):
            told = torch.stack([some.factors[k].float() for k in ("scale", "x", "y")], 1)
            mean = told[self.at : self.at + len(x)]
            self.at += len(x)
            return Normal(mean, torch.full_like(mean, 0.1))

    model = Told((1, 64, 64), 3, "mlp", hidden=1)
    model.at = 0
    row = experiments.factors(model, {"train": some})
    told = {k: row[f"mig_{k}"] for k in some.factors}
    assert min(told[k] for k in ("scale", "x", "y")) > 0.5
    assert max(told[k] for k in ("shape", "orientation")) < 0.4
    assert row["mig"] == pytest.approx(sum(told.values()) / 5)
    assert row["factor_vae"] == pytest.approx(0.6, abs=0.06)  # three of five
    assert row["beta_vae"] > row["factor_vae"]
    assert row["q_kl"] == pytest.approx(row["q_mutual"] + row["q_marginal"])


def test_codes_that_are_the_prior_s_own_draws_are_no_distance_away():
    many = load("mnist-5k", "train").subset(2000)
    digits = torch.cat([many.labels, experiments.at_random(many, 2000).labels])

    class Told(VAE):  # codes that a generator makes, shifted by the digit
        shift = 0.0

        def encode(self, x):
            labels = digits[self.at : self.at + len(x)].unsqueeze(1)
            noise = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(self.at))
            self.at += len(x)
            mean = 0.8 * noise + self.shift * labels
            return Normal(mean, torch.full_like(mean, 0.6))  # 0.8^2 + 0.6^2 = 1

    model = Told((1, 28, 28), 2, "mlp", hidden=1)
    model.at = 0
    near = experiments.codes(model, {"train": many, "test": many})
    assert abs(near["mmd"]) < 0.003
    assert near["wasserstein"] < 0.12
    assert near["nearest"] < 0.2  # as good as guessing
    assert near["q_marginal"] < 0.5
    assert near["q_kl"] == pytest.approx(near["q_mutual"] + near["q_marginal"])

    model.at, model.shift = 0, 10.0
    far = experiments.codes(model, {"train": many, "test": many})
    assert far["mmd"] > 0.2
    assert far["wasserstein"] > 20
    assert far["nearest"] > 0.99

    model.at, model.shift = 0, 0.0
    bare = experiments.codes(model, {"train": many, "test": many}, noisy=False)
    assert set(near) - set(bare) == {"q_kl", "q_mutual", "q_marginal", "q_tc"}
    assert bare["wasserstein"] > 0.15  # the means alone are narrower than the prior


def test_an_autoencoder_s_codes_are_its_means(plan):
    write, _, few = plan
    few["test"] = few["val"]
    path = write(grid=[{"objective": ["autoencoder", "elbo"], "also": [["codes"]]}], seeds=[0])
    bare, drawn = experiments.results(experiments.run(path).with_suffix(".yaml"))
    assert "q_kl" in drawn
    assert not {"q_kl", "val_kl"} & set(bare)
    assert bare["log_px"] < 0


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"latent_dim": [3], "also": [["codes"]]}, "3 latents and pixels that are coin flips"),
        ({"also": [["factors"]]}, "factors: these images have none"),
        ({"way": ["wakesleep"]}, "way 'wakesleep', did you mean wake_sleep?"),
        ({"also": [["tset"]]}, "also 'tset', did you mean test?"),
        ({"n_train": [21]}, "n_train 21: give 1 to 20"),
        ({"n_train": [0]}, "n_train 0: give 1 to 20"),
        ({"way": ["mcem"], "beta": [2.0]}, "Monte Carlo EM has no beta"),
        ({"way": ["wake_sleep"], "kl_warmup": [2]}, "wake-sleep has no kl_warmup"),
        ({"latent_dim": [5], "also": [["marginal"]]}, "5 dimensions are too many"),
        ({"latent_dim": [5], "way": ["mcem"]}, "5 dimensions are too many"),
        ({"way": ["mcem"], "flip": [True]}, "Monte Carlo EM has no flip"),
        ({"also": ["test"]}, "also: test: give a list"),
    ],
)
def test_what_a_way_to_train_does_not_take_is_one_line(plan, keys, says):
    write, fitted, few = plan
    few["test"] = few["val"]
    with pytest.raises((files.UserError, ValueError)) as caught:
        experiments.run(write(grid=[keys]))
    assert says in str(caught.value)
    assert not fitted
    assert "\n" not in str(caught.value)


def test_a_run_that_diverges_ends_none_of_the_others(plan, capsys):
    write, fitted, _ = plan
    path = write(grid=[{"lr": [1e30, 1e-3, 1e31]}], seeds=[0])
    for others in (1, 0):
        with pytest.raises(experiments.ExperimentError) as caught:
            experiments.run(path)
        said = str(caught.value)
        assert said.startswith("tiny: 2 of 3 runs broke off, the others are kept: run 1 (training")
        assert "lr (it is 1e+31)" in said
        assert "run 3 (training diverged" in capsys.readouterr().out
        assert [run["keys"] for run in experiments.runs(path)] == [{"lr": 1e-3}]
        assert len(fitted) == 2 + others
        fitted.clear()


def test_what_it_takes_is_said_beforehand(plan, capsys):
    write, fitted, _ = plan
    experiments.run(write(takes="an hour of one core"))
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "tiny: 6 runs, which take an hour of one core together; what is kept counts"
    experiments.run(write(takes="an hour of one core", seeds=[0, 1]))
    assert len(fitted) == 6
    capsys.readouterr()
    experiments.run(write(seeds=[1]))
    assert "3 runs, 0 of them new; 3 dropped that are no longer planned" in capsys.readouterr().out


def test_one_process_alone_writes_the_results(plan):
    write, fitted, _ = plan
    path = write()
    with files.locked(path.parent, ".tiny.lock"), pytest.raises(files.FileError) as caught:
        experiments.run(path)
    assert (
        str(caught.value) == f"{path.parent / 'tiny'} is being written by another run; wait for it"
    )
    assert not fitted
    experiments.run(path)
    assert fitted == ALL


def test_an_unknown_experiment_names_the_nearest():
    with pytest.raises(ExperimentError, match=r"no experiment 'warm-upp'.*warm-up"):
        experiments.find("warm-upp")
    assert experiments.find("warm-up") == FOLDER / "warm-up.yaml"


def test_a_file_beside_one_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "warm-up").write_text("")
    assert experiments.find("warm-up").samefile(tmp_path / "warm-up")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_results_are_of_the_committed_plan(path, images):
    """Every planned run is there, in order, to its last step; and on the digits of everybody."""
    kept = files.read_json(path.with_suffix(".json"))
    assert kept["command"] == f"vaelib experiment {path.stem}"
    plan = experiments.planned(path)
    described = [{k: run[k] for k in ("keys", "seed", "recipe")} for run in kept["runs"]]
    assert described == plan
    for run in kept["runs"]:
        assert run["history"][-1]["step"] == run["recipe"]["steps"]
        if run["recipe"]["data"] == "mnist-5k":
            assert run["images"] == {split: images[split].sha256 for split in images}
    assert path.with_suffix(".json").stat().st_size < 1_500_000
    if path.stem != "paper-long":  # whose first million others have with three
        assert len({run["seed"] for run in plan}) >= 3

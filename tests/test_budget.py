"""What is chosen for so many minutes, by machine; that it is said, and that it replays."""

import pytest
import torch

from vaelib import budget, commands, data, files, hardware, training
from vaelib.__main__ import main, parse
from vaelib.models import VAE
from vaelib.recipes import ModelConfig, TrainConfig


@pytest.fixture
def few_digits(monkeypatch):
    """Every data set has 60 digits."""
    real = data.load
    few = {split: real("mnist-5k", split).subset(60) for split in ("train", "val")}
    monkeypatch.setattr(data, "load", lambda name, split, **_: few[split])
    return few


@pytest.mark.parametrize("kind", budget.MACHINES)
@pytest.mark.parametrize("minutes", [0.01, 0.5, 1, 3.9, 5, 60, 1e5])
def test_every_budget_has_a_network_and_a_schedule(minutes, kind):
    for source in (
        {"data": "mnist", "image_size": 64},
        {"data": "images:photos", "image_size": 64},
        {"data": "images:photos", "image_size": [20, 300]},
        {"data": "celeba", "image_size": 16},
    ):
        found = budget.suiting(source | {"minutes": minutes}, kind)
        ModelConfig(**{key: found.pop(key) for key in budget.NETWORK})
        TrainConfig(minutes=minutes, **found)
        assert set(found) == set(budget.SCHEDULE)


@pytest.mark.parametrize("kind", budget.MACHINES)
def test_more_time_makes_larger_networks_and_lower_rates(kind):
    def found(minutes, name="mnist"):
        return budget.suiting({"data": name, "image_size": 64, "minutes": minutes}, kind)

    def size(minutes, name="mnist"):
        keys = found(minutes, name)
        model = VAE((1, 28, 28), **{key: keys[key] for key in budget.NETWORK})
        return sum(p.numel() for p in model.parameters())

    sizes = [size(minutes) for minutes in (0.5, 2, 5, 10, 600)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] < size(0.5, "celeba")
    assert found(1)["batch_size"] <= found(60)["batch_size"]
    assert found(1)["lr"] > found(60)["lr"]


def test_where_there_is_no_bf16_networks_are_smaller():
    first = [
        budget.suiting({"data": "mnist", "image_size": 64, "minutes": 1}, kind)["widths"][0]
        for kind in ("fp32", "bf16")
    ]
    assert first[0] < first[1]


def test_small_images_get_a_prior_that_learns_where_that_was_found_to_pay():
    def prior(kind="bf16", **typed):
        recipe = {"data": "mnist", "image_size": 64, "minutes": 1.0, "backbone": "unet"}
        recipe |= {"objective": "elbo", "prior_args": None}
        recipe |= dict.fromkeys((*budget.NETWORK, *budget.SCHEDULE, "compile")) | typed
        budget.fill_in(recipe, kind)
        return recipe["prior"], recipe["prior_args"]

    assert prior() == prior("fp32") == prior(objective="iwae") == ("flow", budget.FLOW)
    assert prior(prior_args={"hidden": 9}) == ("flow", {"hidden": 9})
    for typed in (
        {"kind": "gpu"}, {"kind": "other"}, {"data": "celeba"}, {"objective": "mmd_vae"},
        {"objective": "autoencoder"}, {"latent_dim": 2}, {"prior": "standard"},
        {"likelihood": "learned_gaussian"},
    ):  # fmt: skip
        assert prior(**typed) == ("standard", None)
    assert prior(prior="vamp") == ("vamp", None)


def test_compiling_is_tried_where_nobody_knows_and_there_is_time():
    def compiles(minutes, kind, **more):
        recipe = {"minutes": minutes, "widths": [8, 32], "backbone": "unet"} | more
        return budget.compiles(recipe, kind)[0]

    assert compiles(60, "fp32") is compiles(1, "fp32") is False
    assert compiles(60, "bf16") is True
    assert compiles(1, "bf16") is False
    unknown = {"gpu": {}, "other": {}, "fp32": {"widths": [32, 64]}}
    for kind, more in (*unknown.items(), ("fp32", {"backbone": "mlp"})):
        assert compiles(budget.WORTH, kind, **more) is None
        assert compiles(budget.WORTH / 2, kind, **more) is False


def test_typed_minutes_leave_the_network_open_only_where_no_recipe_is_named():
    _, chosen = parse(["train", "--data", "mnist", "--minutes", "1"])
    machine = [*budget.NETWORK, *budget.SCHEDULE, "compile"]
    assert {chosen[key] for key in machine} == {None}
    assert budget.fill_in(chosen, "fp32") == machine
    wanted = budget.suiting(chosen, "fp32")
    assert {key: chosen[key] for key in wanted} == wanted
    _, typed = parse(["train", "--minutes", "1", "--widths", "[7]", "--lr", "0.1"])
    assert not {"widths", "lr"} & set(budget.fill_in(typed, "fp32"))
    assert (typed["widths"], typed["lr"]) == ([7], 0.1)
    assert typed["latent_dim"] == wanted["latent_dim"]
    _, named = parse(["train", "-c", "mnist-50d", "--minutes", "1"])
    _, published = parse(["train", "-c", "mnist-50d"])
    assert budget.fill_in(named, "fp32") == [*budget.SCHEDULE, "compile"]
    changed = {key for key in published if named[key] != published[key]}
    assert changed <= {*budget.SCHEDULE, "compile", "minutes", "clock_steps", "plans"}
    assert named["lr"] == wanted["lr"] != published["lr"]
    before = dict(published)
    assert budget.fill_in(published, "fp32") == []  # of steps, nothing is chosen
    assert published == before


def settle(kind, pays, monkeypatch, minutes=budget.WORTH, compiler=True, **typed):
    """What `settled` makes of a recipe of minutes on such a machine, and its line."""
    monkeypatch.setattr(hardware, "kind", lambda: kind)
    monkeypatch.setattr(hardware, "can_compile", lambda: compiler)
    monkeypatch.setattr(training, "compiling_pays", lambda *_: (pays, "2 images/s, 1 not"))
    recipe = {"data": "mnist", "image_size": 64, "minutes": minutes, "backbone": "unet"}
    recipe |= dict.fromkeys((*budget.NETWORK, *budget.SCHEDULE, "compile")) | typed
    opened, config = budget.fill_in(recipe, kind), TrainConfig(compile=recipe["compile"])
    line = training.settled(recipe, opened, None, None, {}, config)
    assert config.compile is recipe["compile"]
    return recipe, line


@pytest.mark.parametrize("pays", [True, False])
def test_the_machine_settles_whether_to_compile(pays, monkeypatch):
    recipe, line = settle("gpu", pays, monkeypatch)
    assert recipe["compile"] is pays
    assert "2 images/s, 1 not" in line
    recipe, line = settle("gpu", not pays, monkeypatch, compile=pays)  # as typed
    assert recipe["compile"] is pays
    assert not {"images/s", "compil"} & set(line.replace("ing", " ").split())
    for kind, minutes, compiler, wanted in (
        ("bf16", 1, True, False), ("bf16", 5, True, True), ("bf16", 5, False, False),
        ("gpu", 20, False, False), ("gpu", 1, True, False), ("fp32", 20, True, False),
    ):  # fmt: skip
        recipe, line = settle(kind, pays, monkeypatch, minutes, compiler)
        assert recipe["compile"] is wanted
        assert line.endswith(")\n")
        assert line.count("\n") == 1
        assert ("no C++ compiler" in line) is not compiler
        s = "" if minutes == 1 else "s"
        assert line.startswith(f"{minutes} minute{s} on {budget.MACHINES[kind]}: widths [")


def test_what_has_no_effect_is_not_said(monkeypatch):
    _, line = settle("fp32", None, monkeypatch, backbone="mlp")
    assert "widths" not in line
    assert "latent_dim" in line


@pytest.mark.parametrize("faster", [True, False])
def test_timed_steps_leave_no_trace_and_take_the_faster(faster, few_digits, monkeypatch):
    from vaelib import run

    torch.manual_seed(0)
    model = VAE(latent_dim=2, widths=(4, 8))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    clock = iter([0.0, 10.0, 0.0, 4.0 if faster else 9.5])  # of ten steps eager, of ten compiled
    precisions = []

    class Time:
        perf_counter = staticmethod(lambda: next(clock))

    def noted(precision, *rest):
        precisions.append(precision)
        return False

    monkeypatch.setattr(training, "time", Time)
    monkeypatch.setattr(run, "compiled", lambda function: function)
    monkeypatch.setattr(run, "use_bf16", noted)
    pays, rates = training.compiling_pays(model, few_digits, TrainConfig(batch_size=8))
    assert pays is faster  # a twentieth is not worth it
    assert rates == ("20" if faster else "8") + " images/s compiled, 8 not"
    assert precisions == ["auto", "auto"]  # as the run will
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_compiler_that_fails_is_said_and_not_used(few_digits, monkeypatch):
    from vaelib import run

    def broken(function):
        def fails(*_, **__):
            raise RuntimeError("no triton")

        return fails

    monkeypatch.setattr(run, "compiled", broken)
    monkeypatch.setattr(run, "can_compile", lambda: True)
    model = VAE(latent_dim=2, widths=(4,))
    found = training.compiling_pays(model, few_digits, TrainConfig(batch_size=8))
    assert found == (False, "compiling failed: RuntimeError")
    assert all(p.grad is None for p in model.parameters())


def test_a_run_of_minutes_says_what_it_chose_and_its_recipe_replays_it(
    few_digits, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(hardware, "kind", lambda: "other")
    monkeypatch.setattr(hardware, "can_compile", lambda: True)
    monkeypatch.setattr(budget, "WORTH", 0.0)
    monkeypatch.setattr(training, "compiling_pays", lambda *_: (False, "5 images/s, 6 not"))
    words = ["train", "--data", "mnist", "--minutes", "0.02", "-e", str(tmp_path / "a")]
    main([*words, "--widths", "[4]", "--batch_size", "8"])
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("0.02 minutes on a processor of unknown kind: latent_dim 32; ")
    assert line.endswith("compile False (5 images/s, 6 not)")
    log = (tmp_path / "a" / files.LOG).read_text().splitlines()
    assert log[0] == line
    assert log[1].startswith("step ")
    recipe = files.read_recipe(tmp_path / "a")
    assert (recipe["compile"], recipe["precision"]) == (False, "auto")
    assert None not in [recipe[key] for key in (*budget.NETWORK, *budget.SCHEDULE)]
    main(["train", "-c", str(tmp_path / "a"), "-e", str(tmp_path / "b")])
    weights = [(tmp_path / name / files.WEIGHTS).read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert "minutes on" not in (tmp_path / "b" / files.LOG).read_text()


def test_of_a_named_recipe_it_says_what_changes(few_digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hardware, "kind", lambda: "fp32")
    words = ["train", "-c", "mnist-2d", "--minutes", "0.02", "-e", str(tmp_path / "run")]
    main([*words, "--widths", "[4]", "--lr", "1e-3"])
    line = capsys.readouterr().err.splitlines()[0]
    assert "; compile False (was True); all else as in that recipe, or as typed (" in line
    assert "lr" not in line
    assert "widths" not in line


def test_minutes_in_a_recipe_choose_nothing(few_digits, tmp_path, capsys):
    (tmp_path / "clock.yaml").write_text("data: mnist\nwidths: [4]\nminutes: 0.02\n")
    main(["train", "-c", str(tmp_path / "clock.yaml"), "-e", str(tmp_path / "run")])
    assert "minutes on" not in capsys.readouterr().err
    assert files.read_recipe(tmp_path / "run")["batch_size"] == TrainConfig.batch_size


@pytest.mark.parametrize("minutes", ["0", "-1", "inf", "nan"])
def test_minutes_that_are_none_are_one_line(minutes, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--minutes", minutes])
    assert caught.value.code == 2
    assert "give a number" in capsys.readouterr().err


def test_minutes_count_from_the_command_on(few_digits, tmp_path, monkeypatch):
    # what loading takes is part of them
    seen = {}
    real = training.fit

    def fit(*arguments):
        seen["began"] = arguments[6]
        return real(*arguments[:6], arguments[6] - 0.5 * 60)  # half a minute ago

    monkeypatch.setattr(training, "fit", fit)
    began = commands.time.perf_counter()
    words = ["train", "--data", "mnist", "--minutes", "0.5", "-e", str(tmp_path / "run")]
    main([*words, "--widths", "[4]"])
    assert seen["began"] >= began
    rows = files.read_json(tmp_path / "run" / files.HISTORY)
    assert rows[-1]["seconds"] > 30
    assert rows[-1]["step"] <= 3  # none of its thirty seconds was left

"""The command line: every mode draws, every mistake is one line and exit status 2."""

import errno
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vaelib import budget, checkpoints, data, evaluation, files, film, publishing, recipes
from vaelib.__main__ import main, parse
from vaelib.arguments import UsageError
from vaelib.models import VAE

RECIPE = {
    "data": "mnist-5k", "latent_dim": 2, "widths": [8, 16],
    "steps": 4, "eval_every": 2, "batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder made by `vaelib train` from a recipe, one key given on the command line."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    recipe, here = str(folder / "recipe.yaml"), str(folder / "run")
    main(["train", "-c", recipe, "-e", here, "--steps", "6"])
    return folder / "run"


def refuses(arguments, message, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("vaelib: ")]
    assert caught.value.code == 2
    assert "Traceback" not in err
    assert len(lines) == 1
    assert message in lines[0]


def test_train_writes_the_whole_recipe(run):
    recipe = yaml.safe_load((run / "train.yaml").read_text())
    assert recipe == recipe | RECIPE | {"steps": 6}
    assert {"model.safetensors", "config.json", "history.json"} <= {p.name for p in run.iterdir()}


def test_a_written_recipe_replays_the_run(run, tmp_path):
    main(["train", "-c", str(run / "train.yaml"), "-e", str(tmp_path / "again")])
    for name in ("model.safetensors", "config.json", "train.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_default_run_folder_is_named_by_the_time(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    main(["train", "-c", str(run / "train.yaml"), "--steps", "1"])
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(folder.name) == len("2026-01-31_12-00-00")
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "sample", "--n_samples", "9"],
        ["--mode", "interpolate", "--n_interpolate", "3", "--n_samples", "2"],
        ["--mode", "interpolate", "--start", "draws", "--path", "spherical"],
        ["--mode", "traverse", "--n_traverse", "5", "--traverse_range", "2"],
        ["--mode", "traverse", "--traverse_dim", "1", "--n_samples", "3"],
        ["--mode", "traverse", "--start", "draws", "--latents", "aggregate"],
        ["--mode", "reconstruct", "--n_samples", "7"],
        ["--mode", "visualize_latent"],
        ["--mode", "architecture"],
        ["--mode", "manifold", "--n_samples", "5"],
        ["--mode", "manifold", "--spacing", "linear", "--n_samples", "5"],
    ],
)
def test_every_mode_draws(run, tmp_path, options, capsys):
    pictures = []
    for i in (1, 2):
        main(["sample", str(run), *options, "--save_dir", str(tmp_path / str(i))])
        (path,) = (tmp_path / str(i)).iterdir()
        assert str(path) in capsys.readouterr().out
        pictures.append(path.read_bytes())
        levels = {level for _, level in Image.open(path).convert("L").getcolors(256)}
        assert len(levels) > 20  # a picture, not a blank
    assert pictures[0] == pictures[1]  # byte for byte


def test_without_its_images_a_model_is_traversed_from_draws(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    recipe = files.read_recipe(run) | {"data": f"images:{tmp_path / 'none'}"}
    files.write_recipe(tmp_path / "run", recipe)
    for mode in ("traverse", "interpolate"):
        pictures = ["--save_dir", str(tmp_path / mode), "--mode", mode]
        main(["sample", str(tmp_path / "run"), *pictures])
        assert "Going on from drawn latents" in capsys.readouterr().out
        assert len(list((tmp_path / mode).iterdir())) == 1
    refuses(["sample", tmp_path / "run", "--mode", "reconstruct"], "none", capsys)


def test_the_least_of_everything_is_drawn_and_less_is_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(run)
    for words, key, least in (
        ("--mode sample --n_samples 1", "--n_columns", 1),
        ("--separate --n_samples 2", "--batch_size", 1),
        ("--mode interpolate --n_samples 1", "--n_interpolate", 0),
        ("--mode traverse --traverse_dim 1 --n_samples 1", "--n_traverse", 2),
    ):
        command = ["sample", ".", *words.split(), "--save_dir", tmp_path / key, key]
        main([*map(str, command), str(least)])
        (path,) = (tmp_path / key).iterdir()
        assert path.name.startswith("run-")  # by the folder's own name
        refuses([*command, least - 1], f"{key} {least - 1}: give at least {least}", capsys)
    for dim in (-1, 2):
        wrong = ["sample", ".", "--mode", "traverse", "--traverse_dim", dim]
        refuses(wrong, f"--traverse_dim {dim}: . has 0 to 1", capsys)


def test_samples_of_the_fitted_density_are_a_file_of_their_own(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for more in ([], ["--latents", "aggregate"]):
        main(["sample", str(tmp_path / "run"), "--save_dir", str(tmp_path / "out"), *more])
    names = ["run-sample-aggregate.png", "run-sample.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert len({(tmp_path / "out" / name).read_bytes() for name in names}) == 2


def test_without_mnist_its_models_are_drawn_and_evaluated_with_what_there_is(
    tmp_path, capsys, monkeypatch
):
    import torchvision
    from servers import refused

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [refused() + "/"])
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main(["sample", "mlp-50d", "--mode", "reconstruct"])
    assert "Going on with mnist-5k (val: 1,000 digits)" in capsys.readouterr().out
    assert (tmp_path / "samples" / "mlp-50d-reconstruct.png").exists()

    def few(model, images, *_, **__):
        return real(model, images.subset(5), 2, 5)

    real = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", few)
    folder = shutil.copytree(checkpoints.find("mlp-50d"), tmp_path / "copy")
    main(["evaluate", str(folder), "--overwrite"])
    assert "Going on with the val_offline block." in capsys.readouterr().out
    assert files.read_metrics(folder)["val_offline"]["n_images"] == 5
    assert files.read_metrics(folder)["test_quick"]["n_images"] == 10_000
    refuses(["evaluate", folder, "--full"], "can't be downloaded", capsys)


def test_figures_of_all_checkpoints_or_of_those_named(monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(publishing, "draw_published", lambda name: drawn.append(name) or [name])
    monkeypatch.setattr(publishing, "write_tables", lambda: drawn.append("tables"))
    main(["figures", "mnist-2d", "mlp-50d"])
    assert drawn == ["mnist-2d", "mlp-50d", "tables"]
    assert capsys.readouterr().out.split() == drawn[:2]
    drawn.clear()
    main(["figures"])
    assert drawn == [*checkpoints.published(), "tables"]


def test_seed_changes_samples(run, tmp_path):
    for seed in ("1", "2"):
        main(["sample", str(run), "--seed", seed, "--save_dir", str(tmp_path / seed)])
    pictures = [next((tmp_path / s).iterdir()).read_bytes() for s in ("1", "2")]
    assert pictures[0] != pictures[1]


def test_info_says_what_it_is(run, capsys):
    main(["info", str(run)])
    out = capsys.readouterr().out
    n = sum(p.numel() for p in VAE.from_pretrained(run).decoder.parameters())
    for text in (f"decoder: {n:,} parameters", "mid_block.0.conv1", "latent_dim: 2", "steps: 6"):
        assert text in out


def test_evaluate_writes_compares_and_refuses_what_differs(run, capsys, monkeypatch):
    from vaelib import evaluation

    whole = evaluation.evaluate
    monkeypatch.setattr(
        evaluation, "evaluate", lambda model, images, *_, **__: whole(model, images, 5, 10)
    )
    main(["evaluate", str(run)])
    assert "written" in capsys.readouterr().out
    main(["evaluate", str(run)])
    assert "agrees" in capsys.readouterr().out
    main(["evaluate", str(run), "--overwrite"])
    assert "test_quick written" in capsys.readouterr().out
    main(["evaluate", str(run), "--offline"])
    assert "val_offline written" in capsys.readouterr().out
    asked = []

    def counted(model, images, n_importance=5, *_, **__):
        asked.append(n_importance)
        return whole(model, images, min(n_importance, 7), 10)

    monkeypatch.setattr(evaluation, "evaluate", counted)
    main(["evaluate", str(run), "--full", "--draws", "7"])
    assert "test_full written" in capsys.readouterr().out
    main(["evaluate", str(run), "--full"])  # as many as the block there has
    assert "agrees" in capsys.readouterr().out
    assert asked == [7, 7]
    path = run / "metrics.json"
    blocks = json.loads(path.read_text())
    blocks["test_quick"]["neg_elbo"][0] += 1.0
    path.write_text(json.dumps(blocks))
    refuses(["evaluate", run], "neg_elbo was", capsys)
    path.unlink()


def test_a_terminal_of_another_encoding_costs_no_result(run, tmp_path, monkeypatch):
    from vaelib import evaluation

    whole = evaluation.evaluate
    monkeypatch.setattr(
        evaluation, "evaluate", lambda model, images, *_, **__: whole(model, images, 2, 2)
    )
    folder = shutil.copytree(run, tmp_path / "caf\u00e9 \u65e5\u672c")
    for command, written in (
        (["evaluate", str(folder), "--offline"], folder / "metrics.json"),
        (["sample", str(folder), "-o", str(tmp_path / "\u00fc.png")], tmp_path / "\u00fc.png"),
        (["train", "-e", str(folder), "--resume", "--steps", "7"], folder / "train.yaml"),
    ):
        told = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", told)
        main(command)
        told.flush()
        assert b"\\x" in told.buffer.getvalue()  # escaped, as ASCII has no such letters
        assert written.exists()
    assert files.read_recipe(folder)["steps"] == 7


def test_what_is_computed_is_written_before_it_is_said(run, tmp_path, monkeypatch, capsys):
    from vaelib import evaluation

    whole = evaluation.evaluate
    monkeypatch.setattr(
        evaluation, "evaluate", lambda model, images, *_, **__: whole(model, images, 2, 2)
    )

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "metrics.json").unlink(missing_ok=True)
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), "--offline"])
    assert "val_offline" in files.read_metrics(folder)


@pytest.mark.parametrize("words", [["-c", "mnist-2d"], ["--config", "mnist-2d"],
                                   ["--config=mnist-2d"], ["-c=mnist-2d"]])  # fmt: skip
def test_a_checkpoints_recipe_is_named_in_any_spelling(words):
    _, chosen = parse(["train", *words])
    assert chosen["steps"] == files.read_recipe(checkpoints.find("mnist-2d"))["steps"] != 2000


def test_data_says_what_is_there(capsys):
    main(["data", "mnist-5k"])
    out = capsys.readouterr().out
    assert "train: 4,000 images" in out
    assert "val: 1,000 images" in out


def test_a_run_is_resumed_by_the_folders_name_as_it_was_typed(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    files.write_recipe(tmp_path / "run", {"data": f"images:{tmp_path / 'photos'}"})
    monkeypatch.chdir(tmp_path)
    _, recipe = parse(["train", "--data", "images:photos", "-e", "run", "--resume"])
    assert recipe["data"] == f"images:{tmp_path / 'photos'}"
    with pytest.raises(UsageError, match="another data"):
        parse(["train", "--data", "images:run", "-e", "run", "--resume"])


def test_mistakes(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("steps: [1, 2\n")
    (tmp_path / "odd.yaml").write_text("stepz: 3\n")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["sample", "mnist-3d"], "mnist-2d"),
        (["sample", "checkpoints/mnist-3d"], "no checkpoint"),
        (["sample", run, "--mode", "paint"], "reconstruct"),
        (["sample", run, "--n_samples", "many"], "n_samples"),
        (["sample", run, "--n_samples", "0"], "at least 1"),
        (["sample", run, "--traverse_dim", "7", "--mode", "traverse"], "has 0 to 1"),
        (["sample", run, "--colour", "red"], "--colour"),
        (["sample", run, "--save_dir", tmp_path / "file" / "x"], "file"),
        (["sample", "mnist-50d", "--mode", "manifold"], "needs 2 latent dimensions"),
        (["train", "-c", "nope"], "no checkpoint"),
        (["train", "-c", tmp_path / "bad.yaml"], ""),
        (["train", "-c", tmp_path / "odd.yaml"], "stepz"),
        (["train", "--stepz", "3"], "--stepz"),
        (["train", "--lr", "fast"], "--lr fast: give a number"),
        (["train", "--widths", "8"], "--widths 8: give a list, as '[32,64]'"),
        (["train", "--image_size", "28,20"], "give a whole number or a list"),
        (["train", "--minutes", "nan"], "give a number or null"),
        (["train", "--batch", "8", "--data", "mnist-5k"], "--batch"),
        (["train", "--data", "mnist-5k", "--objective", "kl_terms"], "choose one of elbo, iwae"),
        (["train", "--data", "mnist-5k", "--objective_args.tau", "1"], "no parameter 'tau'"),
        (["train", "--data", "mnist-5k", "--likelihood_args.sigm", "1"], "no parameter 'sigm'"),
        (["train", "--data", "mnist-5k", "--optimizer_args.beta", "1"], "optimizer_args"),
        (["train", "--data", "images:"], "images:"),
        (["experiment", "warmup"], "no experiment"),
        (["experiment"], "name one or more: binarisation, ladder, objectives, "),
        (["train", "--steps", "-1"], "steps"),
        (["train", "--widths", "[]", "--data", "mnist-5k"], "widths"),
        (["train", "--data", "minst"], "mnist, mnist-5k"),
        (["train", "--data", "mnist-5k", "-e", run], "add --resume"),
        (["train", "--resume", "-e", tmp_path / "none"], "train.yaml is not there"),
        (["train", "--resume"], "-e RUN_DIR"),
        (["train", "--resume", "-e", run, "--lr", "1"], "another lr; only steps may change"),
        (["train", "--resume", "-e", run, "--steps", "1"], "give at least that"),
        (["train", "--data", "mnist-5k", "--init", run], "another model than"),
        (["train", "--data", "mnist-5k", "--init", "mnist-9d"], "vaelib: no checkpoint"),
        (["evaluate", "mnist-9d", "--full"], "no checkpoint"),
        (["info", tmp_path], "is not there"),
        (["figures", "mnist-9d"], "mnist-2d"),
        (["data", "imagenet"], "mnist-5k"),
        (["paint"], "sample"),
    ):
        refuses(arguments, message, capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.yaml", "file", "odd.yaml"]


def test_figures_are_refused_without_their_data(tmp_path, monkeypatch, capsys):
    import torchvision
    from servers import refused

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [refused() + "/"])
    monkeypatch.setenv("VAELIB_DATA", str(tmp_path))
    refuses(["figures", "mnist-2d"], "VAELIB_DATA", capsys)


def test_importing_is_silent_and_the_module_runs():
    code = "import vaelib, vaelib.figures, vaelib.gallery, vaelib.widgets, vaelib.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    done = subprocess.run(
        [sys.executable, "-m", "vaelib", "info", "x"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vaelib: no checkpoint 'x'")
    assert len(done.stderr.splitlines()) == 1


def test_resume_from_the_command_line(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    before = (run / "model.safetensors").read_bytes()
    main(["train", "-e", str(tmp_path / "run"), "--resume"])  # already at its end: nothing to do
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    steps = files.read_recipe(run)["steps"] + 2  # or to go on for longer
    same = ["--widths", "[8,16]", "--batch_size", "16"]  # typed again, as they were
    main(["train", "-e", str(tmp_path / "run"), "--resume", "--steps", str(steps), *same])
    best = max(files.read_json(tmp_path / "run" / "history.json"), key=lambda row: row["val_elbo"])
    said = f"run: -ELBO {-best['val_elbo']:.2f} nats on 1,000 images of mnist-5k val, at step "
    assert f"{said}{best['step']}.\n" in capsys.readouterr().out
    assert files.read_json(tmp_path / "run" / "history.json")[-1]["step"] == steps
    assert files.read_recipe(tmp_path / "run")["steps"] == steps


def test_a_run_starts_from_another_one(run, tmp_path):
    recipe = ["train", "-c", str(run / "train.yaml"), "--init", str(run), "--steps", "2"]
    main([*recipe, "-e", str(tmp_path / "next"), "--lr", "1e-12"])  # so small that nothing moves
    first, second = (checkpoints.load_checkpoint(f) for f in (run, tmp_path / "next"))
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], weight)
    assert files.read_recipe(tmp_path / "next")["init"] == str(run)
    # to go on it needs the first one no more
    files.write_recipe(tmp_path / "next", files.read_recipe(tmp_path / "next") | {"init": "gone"})
    main(["train", "-e", str(tmp_path / "next"), "--resume", "--steps", "4"])
    assert files.read_json(tmp_path / "next" / "history.json")[-1]["step"] == 4


def test_published_recipes_are_whole():
    for name in checkpoints.published():
        recipe = yaml.safe_load((checkpoints.find(name) / "train.yaml").read_text())
        config = json.loads((checkpoints.find(name) / "config.json").read_text())
        assert {k: v for k, v in config.items() if k != "image_shape"}.items() <= recipe.items()
        history = files.read_json(checkpoints.find(name) / "history.json")
        assert history[-1]["step"] == recipe["steps"]
        column = "val_objective" if recipe["objective"] == "autoencoder" else "val_elbo"
        assert torch.isfinite(torch.tensor([row[column] for row in history])).all()


class Clock:
    """A clock that moves by a fixed time at each look, however busy the machine is."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 0.05
        return self.now


def test_minutes_write_a_recipe_in_steps_that_replays_them(run, tmp_path, monkeypatch):
    clocked, again = tmp_path / "clocked", tmp_path / "again"
    clock = ["--minutes", "0.04", "--compile", "false"]
    monkeypatch.setattr(recipes.time, "perf_counter", Clock())
    main(["train", "-c", str(run / "train.yaml"), "-e", str(clocked), *clock])
    monkeypatch.undo()
    recipe = yaml.safe_load((clocked / "train.yaml").read_text())
    assert recipe["minutes"] is None
    assert len(recipe["clock_steps"]) == recipes.HUNDREDTHS
    assert recipe["steps"] > 10
    main(["train", "-c", str(clocked / "train.yaml"), "-e", str(again)])
    for name in ("model.safetensors", "train.yaml"):
        assert (again / name).read_bytes() == (clocked / name).read_bytes()


def test_a_run_made_longer_writes_a_recipe_that_replays_it(run, tmp_path):
    longer, again = tmp_path / "longer", tmp_path / "again"
    shutil.copytree(run, longer)
    main(["train", "-e", str(longer), "--resume", "--steps", "10"])
    main(["train", "-c", str(longer / "train.yaml"), "-e", str(again)])
    for name in ("model.safetensors", "train.yaml"):
        assert (again / name).read_bytes() == (longer / name).read_bytes()
    # and longer once more, from the replay as from the first
    for folder in (longer, again):
        main(["train", "-e", str(folder), "--resume", "--steps", "12"])
    assert (again / "model.safetensors").read_bytes() == (longer / "model.safetensors").read_bytes()


def test_an_old_recipe_means_what_it_meant(run, tmp_path):
    old = dict(RECIPE) | {"pace": None, "likelihood": "learned_gaussian"}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    main(["train", "-c", str(tmp_path / "old.yaml"), "-e", str(tmp_path / "run")])
    written = files.read_recipe(tmp_path / "run")
    assert written["decay_vectors"] is True
    assert written["clock_steps"] is None
    assert "pace" not in written
    main(["train", "--data", "mnist-5k", "--steps", "1", "-e", str(tmp_path / "new")])
    assert files.read_recipe(tmp_path / "new")["decay_vectors"] is False


def test_minutes_in_a_recipe_keep_its_own_keys(run, tmp_path):
    (tmp_path / "clock.yaml").write_text(yaml.safe_dump(RECIPE | {"minutes": 1.0, "lr": 1e-5}))
    _, chosen = parse(["train", "-c", str(tmp_path / "clock.yaml")])
    assert (chosen["minutes"], chosen["lr"], chosen["batch_size"]) == (1.0, 1e-5, 16)
    _, chosen = parse(["train", "-c", str(tmp_path / "clock.yaml"), "--steps", "7"])
    assert (chosen["minutes"], chosen["steps"]) == (None, 7)
    # what came of a clock, or of plans, is that run's alone
    came = {"clock_steps": [3] * recipes.HUNDREDTHS, "plans": [[2, 2]], "steps": 9}
    (tmp_path / "came").write_text(yaml.safe_dump(RECIPE | came))  # a recipe by any name
    for typed, wanted in (([], came), (["--lr", "1e-3"], came),
                          (["--steps", "7"], {"clock_steps": None, "plans": [], "steps": 7}),
                          (["--minutes", "2"], {"clock_steps": None, "plans": []})):  # fmt: skip
        _, chosen = parse(["train", "-c", str(tmp_path / "came"), *typed])
        assert {key: chosen[key] for key in wanted} == wanted


def test_arguments_of_an_objective_are_typed_one_by_one(monkeypatch, tmp_path):
    (tmp_path / "r.yaml").write_text("data: mnist-5k\nobjective_args: {tau: 1.0, kind: soft}\n")
    _, chosen = parse(["train", "-c", str(tmp_path / "r.yaml"), "--objective_args.tau", "2.5"])
    assert chosen["objective_args"] == {"tau": 2.5, "kind": "soft"}


def test_an_interrupted_full_evaluation_goes_on(run, tmp_path, monkeypatch):
    # 230 digits with 8 samples: killed after 100, the rest is computed and agrees with one go
    digits, real = data.load("mnist-5k", "val").subset(230), evaluation.evaluate
    folder = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(data, "load", lambda *_, **__: digits)

    def few(model, images, n_importance, *rest, **kwargs):
        return real(model, images, 8, *rest, **kwargs)

    def kill(path, value):
        write_json(path, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "compiled", lambda function: function)
    monkeypatch.setattr(evaluation, "evaluate", few)
    write_json = files.write_json
    monkeypatch.setattr(files, "write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        main(["evaluate", str(folder), "--full"])
    monkeypatch.setattr(files, "write_json", write_json)
    kept = json.loads((folder / "test_full.partial.json").read_text())
    assert len(kept["bounds"]) == 100
    # of other images, weights or samples nothing is gone on with
    other = data.Images("mnist-5k", "val", 255 - digits.images, digits.labels)
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(data, "load", lambda *_, **__: other)
    main(["evaluate", str(copy), "--full"])
    block = json.loads((copy / "metrics.json").read_text())["test_full"]
    whole = few(VAE.from_pretrained(folder), other, 8, None, fast=True)
    assert block["bound"]["neg_log_px"] == whole["bound"]["neg_log_px"]
    monkeypatch.setattr(data, "load", lambda *_, **__: digits)
    main(["evaluate", str(folder), "--full"])
    assert not (folder / "test_full.partial.json").exists()
    block = json.loads((folder / "metrics.json").read_text())["test_full"]
    whole = few(VAE.from_pretrained(folder), digits, 8, None, fast=True)
    assert block["bound"]["neg_log_px"] == whole["bound"]["neg_log_px"]


def test_what_is_typed_beside_minutes_wins(run):
    typed = ["train", "-c", str(run / "train.yaml"), "--minutes", "1", "--lr=1e-5"]
    _, chosen = parse(typed)
    budget.fill_in(chosen, "fp32")
    assert chosen["lr"] == 1e-5
    assert chosen["batch_size"] == budget.suiting(chosen, "fp32")["batch_size"]
    assert chosen["batch_size"] != RECIPE["batch_size"]


def test_a_2d_run_keeps_the_film_of_its_map(run, tmp_path):
    kept, _ = files.read_tensors(run / files.FILM)
    rows = files.read_json(run / "history.json")
    looks = [row["step"] for row in rows]
    assert kept["steps"].tolist() == looks
    val = data.load("mnist-5k", "val")
    q_z = evaluation.elbo_terms(VAE.from_pretrained(run), val)[1]
    best = max(range(len(rows)), key=lambda i: rows[i]["val_elbo"])  # whose weights are kept
    torch.testing.assert_close(kept["z"][best].float(), q_z.loc, atol=0.02, rtol=0.02)
    path = film.save(run, val, tmp_path / "film.gif")
    with Image.open(path) as gif:
        assert gif.n_frames > len(looks)  # and moments in between
        gif.seek(gif.n_frames - 1)
        page = torch.from_numpy(np.asarray(gif.convert("RGB")).copy()).float()
    # dots have colour, everything else is grey: there are some, and not everywhere
    coloured = (page.max(-1).values - page.min(-1).values > 60).float().mean()
    assert 0.001 < coloured < 0.5
    # a run that begins once more begins its film once more
    again = shutil.copytree(run, tmp_path / "again")
    (again / files.STATE).unlink()
    main(["train", "-e", str(again), "--resume"])
    assert files.read_tensors(again / files.FILM)[0]["steps"].tolist() == looks

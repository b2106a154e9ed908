"""The command line as people type it: at once, in plain words, and safe to interrupt."""

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings

import pytest
from PIL import Image

from vaelib import arguments, checkpoints, commands, data, files, recipes
from vaelib.__main__ import main
from vaelib.models import VAE
from vaelib.recipes import ModelConfig

TINY = [
    "--data", "mnist-5k", "--latent_dim", "3", "--widths", "[4,8]", "--batch_size", "8",
    "--precision", "fp32",
]  # fmt: skip


def refused(capsys, *words: str) -> str:
    """The one line that a command is refused with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("vaelib: ")]
    return line


# what help may load: rooms of vaelib, and packages; `info` also reads a checkpoint's header
ROOMS = [
    "__main__", "arguments", "budget", "checkpoints", "choices", "commands", "files", "hub",
    "recipes", "reports",
]  # fmt: skip
PACKAGES = [
    "attr", "attrs", "cython_runtime", "docstring_parser", "importlib_resources", "jsonargparse",
    "typeshed_client", "typing_extensions", "vaelib", "yaml",
]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    ["", "--help", "train --help", "sample --help", "info mnist-2d", "paint", "train --stpes 3"],
)
def test_help_and_mistakes_load_few_modules(words):
    more = ["numpy", "safetensors"] if words.startswith("info") else []
    code = (
        f"import sys; before = set(sys.modules); sys.argv = ['vaelib', *{words.split()!r}]\n"
        "from vaelib.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "names = [m.split('.') for m in set(sys.modules) - before if not m.startswith('_')]\n"
        "rooms = {n[1] for n in names if n[0] == 'vaelib' and len(n) > 1}\n"
        f"found = {{n[0] for n in names}} - sys.stdlib_module_names - {{*{PACKAGES + more}}}\n"
        f"print('besides:', sorted(found), sorted(rooms - {{*{ROOMS}}}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "besides: [] []"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("train --data mnist-5k --steps 1 --batch_size 8 -e run", ["matplotlib"]),
        ("sample mnist-2d --mode manifold", []),
        ("data mnist-5k", ["matplotlib"]),
    ],
)
def test_commands_wait_for_nothing_that_they_do_not_use(words, others, tmp_path):
    others = [*others, "torchvision", "seaborn", "ipywidgets", "IPython", "sklearn", "pandas"]
    code = (
        f"import sys; sys.argv = ['vaelib', *{words.split()!r}]\n"
        "from vaelib.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print('besides:', sorted(sys.modules.keys() & {{*{others}}}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"VAELIB_DATA": str(tmp_path)},
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "besides: []"
    assert "Traceback" not in done.stderr


def test_every_key_of_a_recipe_is_explained_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for key in arguments.recipe_keys():
        assert len(key.text) > 10 or key.name in (
            "optimizer",
            "lr",
            "weight_decay",
            "seed",
            "steps",
        )
        assert f"--{key.name} {key.name.upper()}" in text
        assert key.text in text
    assert text.count("vaelib train -") == 3  # examples
    for group in ("data:", "model:", "objective:", "schedule:", "run:", "-c ", "-e "):
        assert group in text


def test_the_models_keys_are_the_models_arguments():
    own = inspect.signature(VAE).parameters
    config = inspect.signature(ModelConfig).parameters
    assert list(own)[1:] == list(config)  # but for image_shape
    for name, parameter in config.items():
        assert parameter.default == own[name].default
        assert parameter.annotation == own[name].annotation


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_each_command_explains_itself(name, capsys):
    main(["--help"])
    assert re.search(rf"^  {name} +[A-Z]", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    for key in arguments.function_keys(commands.COMMANDS[name]):
        assert key.name in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "did you mean train?"),
        ("train --latentdim 3", "did you mean latent_dim?"),
        ("train --objectiv iwae", "did you mean objective?"),
        ("train --precision fp46", "choose one of auto, bf16, fp32"),
        ("train --schedule cosin", "did you mean cosine?"),
        ("train --lr quick", "give a number"),
        ("train --steps 2.5", "give a whole number"),
        ("train --steps 5 --minutes 1", "give one of them"),
        ("train --likelihood mse", "gaussian, with sigma fixed"),
        ("train --num_epochs 100", "--steps 85938 (100 epochs of 55,000 images"),
        ("train --data mnist-5k --batch_size 100 --epochs=3", "--steps 120 "),
        ("train -c celeba-64 --epochs 100", "--steps, which are epochs * images"),
        ("train --loss mse", "gaussian with --sigma"),
        ("train --kl_weight 3", "here it is --beta"),
        ("train --likelihood MSE", "gaussian, with sigma fixed"),
        ("train --likelihood_args sigma", "give keys and values"),
        ("train --compile", "--compile needs a value"),
        ("sample mnist-2d --output digits.jpg", "ends in .png"),
        ("train -c nowhere.yaml", "nowhere.yaml is not there"),
        ("train -c mnist-2", "did you mean mnist-2d?"),
        ("sample mnist-2d --mode smaple", "did you mean sample?"),
        ("sample mnist-2d --mode sample --traverse_dim 1", "--traverse_dim: no effect"),
        ("sample mnist-2d --mode manifold --latents aggregate", "--latents: no effect"),
        ("sample mnist-2d --data mnist-5k", "--data: no effect with --mode sample and"),
        ("evaluate mnist-2d --full --offline", "one of them"),
        ("evaluate mnist-2d --full --draws 0", "1 or more, with --full"),
        ("evaluate mnist-2d --draws 10", "1 or more, with --full"),
        ("info mnist-3d", "did you mean mnist-2d?"),
    ],
)
def test_mistakes_are_answered_by_what_to_type(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words.split())
    assert not list(tmp_path.iterdir())


VAELIB = [sys.executable, "-m", "vaelib"]


@pytest.mark.skipif(os.name == "nt", reason="pipes of Unix")
def test_a_reader_that_stops_reading_is_no_mistake():
    reads, writes = os.pipe()
    os.close(reads)  # as `vaelib info mnist-2d | head -1` does
    done = subprocess.run([*VAELIB, "info", "mnist-2d"], stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_a_terminal_can_not_show_is_escaped(small_vae, tmp_path):
    checkpoints.save(small_vae, tmp_path)
    files.write_text(tmp_path / files.RECIPE, "data: images:/caf\u00e9\n")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    line = [*VAELIB, "info", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=True)
    assert r"data: images:/caf\xe9" in done.stdout


def test_of_several_processes_the_first_says_what_is_wrong(capsys, monkeypatch):
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as caught:
            main(["paint"])
        assert caught.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_warning_is_one_line_without_its_place_in_the_code():
    main(["--help"])
    shown = warnings.formatwarning("z is ignored", UserWarning, "diagnosis.py", 66, "warn(...)")
    assert shown == "warning: z is ignored\n"


def test_samples_as_files_of_their_own_and_grids_of_a_width(tmp_path):
    out = tmp_path / "some" / "where.png"
    main(["sample", "mlp-50d", "--n_samples", "6", "--n_columns", "6", "--output", str(out)])
    wide = Image.open(out)
    assert wide.width > 3 * wide.height
    each = ["--n_samples", "7", "--separate", "--batch_size", "3", "--output", str(tmp_path / "e")]
    main(["sample", "mlp-50d", *each])
    names = sorted(path.name for path in (tmp_path / "e").iterdir())
    assert names == [f"{i:05d}.png" for i in range(1, 8)]
    assert Image.open(tmp_path / "e" / names[0]).size == (28, 28)


def started(folder, *more: str) -> subprocess.Popen:
    """`vaelib train` as a process, once it has begun to step."""
    line = [sys.executable, "-m", "vaelib", "train", *TINY, "-e", str(folder), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment)
    while not re.match(r"[1-9]\d* of ", said := process.stderr.readline()):
        assert said, "it ended before its first step"
    return process


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run_and_says_how_to_go_on(tmp_path, number):
    process = started(tmp_path / "run", "--steps", "100000", "--eval_every", "90000")
    process.send_signal(number)
    err = process.communicate(timeout=600)[1]
    assert process.returncode == 128 + number
    assert f"vaelib train -e {tmp_path / 'run'} --resume" in err
    assert "Traceback" not in err
    stopped = int(re.search(r"stopped at step ([\d,]+)", err)[1].replace(",", ""))
    metadata = files.read_tensors(tmp_path / "run" / files.STATE)[1]
    assert f'"step": {stopped}' in metadata["run"]


def test_a_run_that_was_stopped_between_evaluations_ends_as_if_it_had_not_been(
    tmp_path, monkeypatch
):
    more = ["--steps", "9", "--eval_every", "4"]
    main(["train", *TINY, *more, "-e", str(tmp_path / "whole")])
    real, steps = recipes.kl_weight, []

    def interrupts(step, config):
        steps.append(step)
        if len(steps) == 7:  # in step 7: between the first and the second evaluation
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the second one ends it
        return real(step, config)

    monkeypatch.setattr("vaelib.training.kl_weight", interrupts)
    with pytest.raises(SystemExit) as caught:
        main(["train", *TINY, *more, "-e", str(tmp_path / "broken")])
    assert caught.value.code == 130
    main(["train", "-e", str(tmp_path / "broken"), "--resume"])
    for name in ("model.safetensors", "train.yaml"):
        a, b = ((tmp_path / run / name).read_bytes() for run in ("whole", "broken"))
        assert a == b
    rows = [files.read_json(tmp_path / run / "history.json") for run in ("whole", "broken")]
    for a, b in zip(*rows, strict=True):
        assert a["train_elbo"] == pytest.approx(b["train_elbo"], abs=1e-3)
        assert a["val_elbo"] == b["val_elbo"]


def test_a_run_folder_never_turns_its_owner_away(tmp_path, capsys):
    run = tmp_path / "run"
    assert "multiple of 3" in refused(capsys, "train", *TINY, "--accumulate", "3", "-e", run)
    assert not run.exists()
    files.write_recipe(run, {"data": "mnist-5k"})  # as if killed before the first evaluation
    (run / f".{files.STATE}-abcdefgh").write_bytes(b"half of it")
    main(["train", *TINY, "--steps", "2", "-e", str(run)])
    assert not list(run.glob(".*-*"))
    assert "step 2" in (run / files.LOG).read_text()
    assert set(files.read_tensors(run / files.FILM)[0]) == {"steps", "pictures"}  # no map of 3-D
    assert "add --resume" in refused(capsys, "train", *TINY, "-e", run)
    (run / files.STATE).unlink()  # or resumed where there is no state yet: from the beginning
    main(["train", "-e", str(run), "--resume"])
    assert (run / files.STATE).exists()
    with files.locked(run):
        line = refused(capsys, "train", "-e", run, "--resume", "--steps", "4")
    assert "being written by another run" in line
    capsys.readouterr()
    main(["train", "-e", str(run), "--resume"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "is finished: all of its 2 steps are done" in out
    (longer,) = re.findall(r"To make it longer: vaelib (.*)", out)
    main(longer.split())
    assert "step 4" in (run / files.LOG).read_text()


@pytest.mark.parametrize("swallowed", [False, True])
def test_an_interrupt_before_the_first_step_is_one_line(
    swallowed, tmp_path, capsys, monkeypatch, request
):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def load(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            if not swallowed:
                raise
            raise ValueError("modules turn an interrupt into something else") from None

    monkeypatch.setattr(data, "load", load)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["train", *TINY])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "vaelib: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_recipe_draws_from_the_images_it_is_given(small_vae, tmp_path, capsys):
    small_vae.save_pretrained(tmp_path / "saved")
    name = str(tmp_path / "saved")
    for more in (["--mode", "reconstruct"], ["--latents", "aggregate"], ["--mode", "traverse"]):
        assert "give sample --data" in refused(capsys, "sample", name, *more)
        out = tmp_path / f"{more[1]}.png"
        main(["sample", name, *more, "--data", "mnist-5k", "--output", str(out)])
        assert Image.open(out).width > 28
        (tmp_path / "saved" / files.LATENTS).unlink(missing_ok=True)


def test_a_recipe_with_a_foreign_key_names_the_nearest(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("latentdim: 3")
    line = refused(capsys, "train", "-c", tmp_path / "mine.yaml")
    assert "a recipe has no key 'latentdim', did you mean latent_dim?" in line


@pytest.mark.skipif(os.name == "nt", reason="limits of Unix")
def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path):
    import resource

    run = tmp_path / "my run"
    line = [*VAELIB, "train", *TINY, "--steps", "2", "-e", str(run)]
    done = subprocess.run(  # no file may grow beyond 20,000 bytes; the weights have 36,000
        line, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (said,) = re.findall(r"^vaelib: (.*)", done.stderr, re.MULTILINE)
    assert said.startswith(f"{run / files.WEIGHTS}: File too large")
    assert not list(run.glob(".*-*"))
    main(shlex.split(said.split("go on with: vaelib ")[1]))
    assert (run / files.WEIGHTS).exists()


def test_an_interrupt_while_the_command_line_loads_is_one_line():
    code = (
        "import builtins, sys\n"
        "real = builtins.__import__\n"
        "def load(name, *rest):\n"
        "    if name == 'jsonargparse': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = load\n"
        "import vaelib.__main__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "vaelib: interrupted\n")

"""Every command that README.md tells people to type runs, made small; an unknown one fails.

The commands are read out of the page: lines of its code blocks and code in its text that begin
with one of PROGRAMS. What makes them small is in `small` and in the fixture `little`.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vaelib import checkpoints, commands, data, evaluation, experiments, files, publishing
from vaelib.__main__ import main

ROOT = Path(__file__).parent.parent
PROGRAMS = ("vaelib", "make", "torchrun", "accelerate")
STANDS_FOR = {"NAME": "mnist-2d", "images:FOLDER": "images:photos", "runs/...": "runs/some"}
# options that say how much is done, and the most of it that a test does
MOST = {
    "--steps": 2, "--minutes": 0.02, "--batch_size": 16, "--n_samples": 4,
    "--nproc_per_node": 2, "--num_processes": 2,
}  # fmt: skip


def commands_in(text: str) -> list[str]:
    """The commands of a page of Markdown, each once: those of its code blocks, then the others."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    fenced = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    lines = []
    for block in fenced.findall(text):
        lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]+)`", fenced.sub("", text))
    found = []
    for line in lines:
        try:
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        except ValueError:  # a quotation mark of another language
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words and Path(words[0]).name in PROGRAMS and not words[0].endswith("/"):
            found.append(shlex.join([Path(words[0]).name, *words[1:]]))
    return list(dict.fromkeys(found))


COMMANDS = commands_in((ROOT / "README.md").read_text(encoding="utf-8"))


def small(words: list[str]) -> list[str]:
    """A command with its placeholders filled in, and less of everything."""
    words = [STANDS_FOR.get(word, word) for word in words if word != "..."]
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in MOST and value:
            words[i] = f"{name}={min(float(value), MOST[name]):g}"
        elif name in MOST:
            words[i + 1] = f"{min(float(words[i + 1]), MOST[name]):g}"
    if "train" in words and "--resume" not in words:
        words += ["--compile", "false"]
        if not {"--steps", "--minutes"} & set(words):
            words += ["--steps", "2"]
    return words


def run_folder(words: list[str]) -> str:
    """The folder after -e."""
    return words[words.index("-e") + 1]


def existing(folder: str) -> None:
    """A run in this folder: the one that README.md trains there, else one of two dimensions."""
    if (Path(folder) / files.WEIGHTS).exists():
        return
    made = [shlex.split(line) for line in COMMANDS if line.startswith("vaelib train ")]
    made = [w[1:] for w in made if folder in w and "--resume" not in w]
    main(small(made[0] if made else ["train", "-c", "mnist-2d", "-e", folder]))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder to work in, with some pictures."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).resize((80, 96)).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture
def little(desk, monkeypatch):
    """Few images, of mnist-5k or of the folder; short bounds; copies of what is published."""
    real_load, real_evaluate = data.load, evaluation.evaluate
    others = {"mnist": "mnist-5k", "celeba": f"images:{desk / 'photos'}"}

    def load(name, split="train", **options):
        name = others.get(name, name)
        split = "val" if (name, split) == ("mnist-5k", "test") else split
        return real_load(name, split, **options).subset(60)

    def evaluate(model, images, n_importance, n_bound_images, *rest, **options):
        return real_evaluate(model, images, 4, 4, *rest, **options)

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(evaluation, "compiled", lambda function: function)
    shown = desk / "checkpoints"
    if not shown.exists():
        shutil.copytree(checkpoints.PUBLISHED, shown)
        for path in shown.glob(f"*/{files.METRICS}"):
            path.unlink()  # of all images
    plans = desk / "experiments"
    plans.mkdir(exist_ok=True)
    for path in experiments.FOLDER.glob("*.yaml"):
        plan = files.read_mapping(path, "YAML")
        plan["recipe"] |= {"steps": 2}
        grid = plan["grid"] if isinstance(plan["grid"], list) else [plan["grid"]]
        plan |= {"grid": [{k: v[:1] for k, v in grid[0].items()}], "seeds": plan["seeds"][:1]}
        (plans / path.name).write_text(yaml.safe_dump(plan))
    monkeypatch.setattr(checkpoints, "PUBLISHED", shown)
    monkeypatch.setattr(publishing, "PUBLISHED", shown)
    monkeypatch.setattr(experiments, "FOLDER", plans)
    monkeypatch.chdir(desk)
    return desk


def in_this_process(words: list[str], capsys) -> None:
    """Run `vaelib` with these words, and look at what came of it."""
    words = small(words)
    if words and words[0] not in commands.COMMANDS:
        pytest.fail(f"vaelib {words[0]}: tests/test_readme.py does not know how to make it small")
    for word in words:
        if word.startswith("runs/") and (words[0] != "train" or "--resume" in words):
            existing(word)
    if words and words[0] == "figures":  # all of them: tests/test_figures.py draws them
        words.append("--help")
    code, _ = 0, capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out
    kind = words[0] if words else ""
    if kind == "train" and "-e" in words:
        assert (Path(run_folder(words)) / files.WEIGHTS).exists()
    if kind == "sample":
        assert Image.open(out.splitlines()[-1]).width > 28
    if kind == "export":
        assert Path(out.split(": ")[0]).stat().st_size > 1e5
    if kind == "evaluate":
        assert "-ELBO" in out
    if kind == "info":
        assert "in all" in out


def launched(words: list[str]) -> None:
    """Run `vaelib train` in two processes."""
    words = small(words)
    if "-c" not in words:
        words += ["-c", "mnist-2d"]
    if "-e" not in words:
        words += ["-e", f"runs/{words[0]}"]
    recipe = checkpoints.find(words[words.index("-c") + 1]) / files.RECIPE
    of_digits = files.read_mapping(recipe, "YAML")["data"].startswith("mnist")
    words += ["--data", "mnist-5k" if of_digits else STANDS_FOR["images:FOLDER"]]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])  # the usual one may be taken by another test
    if words[0] == "accelerate":
        words[2:2] = ["--main_process_port", port]
    clean = os.environ | {"OMP_NUM_THREADS": "1", "PET_MASTER_PORT": port}
    line = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    done = subprocess.run(line, env=clean, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("-ELBO") == 1
    assert (Path(run_folder(words)) / files.WEIGHTS).exists()


def named_target(words: list[str]) -> None:
    """`make` has this target."""
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_runs(line, little, capsys):
    program, *words = shlex.split(line)
    if program == "vaelib":
        in_this_process(words, capsys)
    elif program == "make" and shutil.which("make"):
        named_target(words)
    elif program in ("torchrun", "accelerate") and os.name != "nt":
        launched([program, *words])
    else:
        pytest.skip(f"no {program} here")


def test_commands_are_found():
    assert {"vaelib", "make", "torchrun"} <= {line.split()[0] for line in COMMANDS}
    assert {"train", "sample", "evaluate"} <= {line.split()[1] for line in COMMANDS if " " in line}
    page = (
        "`vaelib/`, `make`, `vaelib.VAE`\n```sh\n$ X=1 .venv/bin/vaelib info \\\n a  # note\n```\n"
    )
    assert commands_in(page) == ["vaelib info a", "make"]


def test_an_unknown_command_fails(little, capsys):
    with pytest.raises(pytest.fail.Exception, match="does not know how to make it small"):
        in_this_process(["paint", "mnist-2d"], capsys)

"""Several processes, as README.md says to start them: one run, shared out; on CPUs, by gloo."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from vaelib import files, recipes
from vaelib.__main__ import main

TRAIN = ["train", "--data", "mnist-5k", "--latent_dim", "3", "--widths", "[4,8]"]
TRAIN += ["--precision", "fp32", "--eval_every", "4"]
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc_per_node=2"],
    "accelerate": ["accelerate", "launch", "--num_processes", "2"],
}
pytestmark = pytest.mark.skipif(os.name == "nt", reason="gloo and torchrun as on Unix")


def free_port() -> int:
    """A free port below those that a system gives to whoever asks for any, as servers here do."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


def launched(name: str, *more: str, program=("-m", "vaelib")) -> subprocess.CompletedProcess:
    """A run of `vaelib train` in two processes; its output is a file's, not a terminal's."""
    port = str(free_port())
    launcher, *options = LAUNCHERS[name]
    words = [*options, *program, *TRAIN, *map(str, more)]
    line = [str(Path(sys.executable).with_name(launcher)), *words]
    if name == "accelerate":
        line[2:2] = ["--main_process_port", port]
    clean = os.environ | {"OMP_NUM_THREADS": "1", "PET_MASTER_PORT": port}
    return subprocess.run(line, env=clean, capture_output=True, text=True, timeout=200)


def one(*words) -> None:
    """The same in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main([str(word) for word in words])


def state(folder: Path) -> dict:
    return files.read_tensors(folder / files.STATE)[0]


def agree(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:  # weights, and the optimiser's moments
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process, at step 8."""
    folder = tmp_path_factory.mktemp("processes") / "one"
    one(*TRAIN, "--steps", "8", "--batch_size", "16", "-e", folder)
    return folder


@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_are_one_run(name, alone, tmp_path):
    run = tmp_path / "run"
    done = launched(name, "--steps", "8", "--batch_size", "16", "-e", run)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(f"{run}: -ELBO") == 1
    assert len(re.findall(r"^8 of 8 steps", done.stderr, re.MULTILINE)) == 1
    names = [{p.relative_to(f).as_posix() for p in f.rglob("*")} for f in (run, alone)]
    assert names[0] == names[1]
    agree(state(run), state(alone))
    started = {key: value.clone() for key, value in state(alone).items()}
    # one process goes on with it
    longer = shutil.copytree(alone, tmp_path / "longer")
    for folder in (run, longer):
        one("train", "-e", folder, "--resume", "--steps", "12")
    agree(state(run), state(longer))
    weights = [key for key in started if key.startswith("model.")]
    moved = [(state(longer)[key] - started[key]).abs().max().item() for key in weights]
    assert max(moved) > 1e-3


def test_a_batch_that_two_can_not_share_is_one_line(tmp_path):
    done = launched("torchrun", "--steps", "8", "--batch_size", "15", "-e", tmp_path / "run")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("vaelib: ")]
    assert said == [
        "vaelib: batch_size 15 in 2 equal parts (processes times accumulate): give a multiple of 2"
    ]
    assert not (tmp_path / "run").exists()


SIGNALLED = """
import os, signal, sys
from vaelib import run
from vaelib.__main__ import main

real = run.Run.micro_batches

def micro_batches(self, step):
    if self.rank == 1 and step.number == 5:  # one process hears of it, in its sixth step
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # and again, as torchrun passes it on
    return real(self, step)

run.Run.micro_batches = micro_batches
main(sys.argv[1:])
"""


def test_two_processes_stop_after_one_step_and_go_on_from_it(alone, tmp_path):
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    run, program = tmp_path / "run", [str(tmp_path / "signalled.py")]
    steps = ["--steps", "8", "--batch_size", "16"]
    done = launched("torchrun", *steps, "-e", run, program=program)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("vaelib: ")]
    assert said == [f"vaelib: stopped at step 6; go on with: vaelib train -e {run} --resume"]
    one("train", "-e", run, "--resume")
    agree(state(run), state(alone))
    rows = [files.read_json(folder / files.HISTORY) for folder in (run, alone)]
    for key in ("step", "train_elbo", "val_elbo"):
        assert [r[key] for r in rows[0]] == pytest.approx([r[key] for r in rows[1]], rel=1e-4)


def test_two_processes_keep_to_one_clock(tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    done = launched("torchrun", "--minutes", "0.05", "-e", run)
    assert done.returncode == 0, done.stderr[-2000:]
    recipe = recipes.read(run)
    assert "several processes do not compile" in done.stderr
    assert (recipe["minutes"], recipe["compile"]) == (None, False)
    assert len(recipe["clock_steps"]) == recipes.HUNDREDTHS
    one("train", "-c", run, "-e", again)  # one process takes the very same steps
    assert state(again).keys() == state(run).keys()
    rows = [files.read_json(folder / files.HISTORY)[-1] for folder in (run, again)]
    assert rows[0]["step"] == rows[1]["step"] == recipe["steps"]
    assert rows[0]["val_elbo"] == pytest.approx(rows[1]["val_elbo"], rel=0.01)

"""Numbers of a block of metrics at their limits, and the lines that show them."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.distributions import Normal

from vaelib import checkpoints, derived, evaluation, files, publishing, reports
from vaelib.__main__ import main
from vaelib.data import Images, load, seen_by
from vaelib.models import VAE, model_card


def test_a_dimension_is_active_above_a_hundredth():
    # two values a and -a have the variance 2 a^2 (over N - 1): 0.0098 and 0.0102
    means = torch.tensor([[0.07, 0.0714], [-0.07, -0.0714]])
    assert evaluation.active_units(Normal(means, torch.ones(2, 2))) == 1


@pytest.mark.parametrize(
    ("shape", "small"),
    [((1, 32, 32), True), ((3, 32, 32), True), ((1, 16, 64), True), ((1, 33, 32), False)],
)
def test_larger_images_have_less_of_the_bound_to_compute(shape, small):
    found = evaluation.quick(VAE(shape, backbone="mlp", hidden=1))
    assert found == evaluation.quick(VAE((1, 1, 1) if small else (1, 64, 64), widths=(1,)))
    more = evaluation.quick(VAE((1, 1, 1), widths=(1,)))
    less = evaluation.quick(VAE((1, 64, 64), widths=(1,)))
    assert all(less[key] < more[key] for key in more)


def test_psnr_counts_what_lies_outside_the_range_as_its_end():
    # decoded far above and far below: white and black, 5 levels from the images
    model = VAE((1, 2, 2), 1, "mlp", hidden=1, likelihood="gaussian").eval()
    model.decode = lambda z: model.likelihood(z.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2))
    q_z = Normal(torch.tensor([[7.0], [-7.0]]), torch.ones(2, 1))
    levels = torch.tensor([250, 5], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    found = evaluation.psnr(model, Images("made-up", "test", levels), q_z)
    torch.testing.assert_close(found, torch.full((2,), 10 * math.log10(255**2 / 25)))


def test_a_block_has_the_nats_of_each_dimension_and_its_report_every_number():
    torch.manual_seed(0)
    model = VAE((1, 6, 6), 3, "mlp", hidden=4, likelihood="learned_gaussian", sigma=0.125).eval()
    images = Images("made-up", "test", torch.randint(256, (9, 1, 6, 6), dtype=torch.uint8))
    block = evaluation.evaluate(model, images, 2, 4)
    assert len(block["kl_per_dim"]) == 3
    assert sum(block["kl_per_dim"]) == pytest.approx(block["kl"][0], abs=1e-3)
    found = {}
    for line in reports.report(block)[1:]:
        words = line.replace(",", " ").split()
        numbers = [word for word in words if word.replace(".", "").lstrip("-").isdecimal()]
        found[words[0]] = numbers
    assert found["bits"] == [f"{block['bits_per_dim']:.3f}"]
    assert found["PSNR"] == [f"{value:.3f}" for value in block["psnr"]]
    assert found["sigma"] == ["0.12500"]
    assert found["active"] == [str(block["active_units"])]
    alone = evaluation.evaluate(model, images[:1], 2, 4)  # of one image there is no variance
    assert alone["active_units"] is None
    assert reports.report(alone)[-1].split() == ["active", "units", "unknown", "of", "one", "image"]
    assert found["-ELBO"][:2] == [f"{value:.3f}" for value in block["neg_elbo"]]


def test_an_autoencoder_is_measured_by_its_reconstruction_alone(tmp_path, capsys):
    torch.manual_seed(0)
    model = VAE((1, 28, 28), 2, "mlp", hidden=4).eval()
    checkpoints.save(model, tmp_path)
    files.write_text(tmp_path / files.RECIPE, "data: mnist-5k\nobjective: autoencoder\n")
    main(["evaluate", str(tmp_path), "--offline"])
    out = capsys.readouterr().out
    block = files.read_metrics(tmp_path)["val_offline"]
    assert not {"neg_elbo", "kl", "bound", "kl_per_dim"} & set(block)
    assert "ELBO" not in out
    assert "bound" not in out

    images = load("mnist-5k", "val")
    x = seen_by(model, images.images, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        nats = -model.decode(model.encode(x).loc).log_prob(x).sum((1, 2, 3)).double()
    assert block["reconstruction"][0] == pytest.approx(nats.mean().item(), abs=1e-3)
    main(["evaluate", str(tmp_path), "--offline"])
    assert "agrees" in capsys.readouterr().out
    main(["info", str(tmp_path)])
    assert "reconstruction" in capsys.readouterr().out
    card = model_card(model, files.read_metrics(tmp_path))
    assert "reconstruction" in card
    assert "neg_elbo" not in card
    assert publishing._result("ae", block)[2:] == ["", "", ""]
    elbo, reconstruction, units, bound = publishing._block("ae", "val_offline", block)[1:]
    assert (elbo, units, bound) == ("", block["active_units"], "")
    assert "+" not in reconstruction
    with pytest.raises(files.CheckpointError, match="no bound: leave --full out"):
        derived.measured(model, tmp_path, images, full=True)


def test_where_factors_are_known_the_codes_are_scored_on_train(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    model = VAE((1, 64, 64), 3, "mlp", hidden=1).eval()
    checkpoints.save(model, tmp_path)
    files.write_text(tmp_path / files.RECIPE, "data: sprites\nobjective: autoencoder\n")
    seen = []

    def scores(codes, factors):
        seen.append((codes, factors))
        return {"mig": 0.12345, "sap": 0.5 + 0.1 * len(seen)}

    monkeypatch.setattr("vaelib.metrics.scores", scores)
    main(["evaluate", str(tmp_path)])
    assert files.read_metrics(tmp_path)["test_quick"]["scores"] == {"mig": 0.1235, "sap": 0.6}
    ((codes, factors),) = seen
    train = load("sprites", "train")
    assert torch.equal(factors["x"], train.factors["x"][:15_000])
    x = seen_by(model, train.images[:15_000], torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(codes[:50], model.encode(x[:50]).loc)
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path)])
    assert "sap was 0.6, is 0.7" in capsys.readouterr().err


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A model in a folder, with 100 of 150 bounds of its full evaluation done.

    Calls of what it returns go on with it, and say how many bounds were computed.
    """
    torch.manual_seed(0)
    model = VAE((1, 2, 2), 2, "mlp", hidden=4, likelihood="gaussian", sigma=0.5).eval()
    checkpoints.save(model, tmp_path)
    images = Images("made-up", "test", torch.randint(256, (150, 1, 2, 2), dtype=torch.uint8))
    count, real, write = [], evaluation.bounds, files.write_json

    def counted(model, images, n_importance, *rest, **options):
        for bound in real(model, images, 3, *rest, **options):
            count.append(bound)
            yield bound

    def kill(path, value):
        write(path, value)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "bounds", counted)
    monkeypatch.setattr(evaluation, "compiled", lambda function: function)
    monkeypatch.setattr(files, "write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate_fully(model, images, tmp_path)
    monkeypatch.setattr(files, "write_json", write)

    def go_on(model=model, images=images) -> int:
        count.clear()
        evaluation.evaluate_fully(model, images, tmp_path)
        return len(count)

    go_on.images, go_on.partial = images, tmp_path / files.PARTIAL
    return go_on


def test_a_full_evaluation_goes_on_where_it_was_interrupted(interrupted):
    assert interrupted() == 50


def test_a_full_evaluation_of_something_else_begins_anew(interrupted, monkeypatch, tmp_path):
    kept, images = interrupted.partial.read_text(), interrupted.images
    inverted = Images("made-up", "test", 255 - images.images)
    for others in (inverted, images[torch.arange(149, -1, -1)]):
        interrupted.partial.write_text(kept)
        assert interrupted(images=others) == 150
    interrupted.partial.write_text(kept)
    assert interrupted(images=images[:120]) == 120
    real = evaluation.use_bf16
    for target, name, value in (
        (evaluation, "use_bf16", lambda *given: not real(*given)),
        (torch, "__version__", "1.0"),
    ):
        interrupted.partial.write_text(kept)
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            assert interrupted() == 150
    # the same weights with another sigma, which config.json alone says
    sharper = VAE((1, 2, 2), 2, "mlp", hidden=4, likelihood="gaussian", sigma=0.1).eval()
    sharper.load_state_dict(VAE.from_pretrained(tmp_path).state_dict())
    weights = (tmp_path / files.WEIGHTS).read_bytes()
    checkpoints.save(sharper, tmp_path)
    assert (tmp_path / files.WEIGHTS).read_bytes() == weights
    interrupted.partial.write_text(kept)
    assert interrupted(sharper) == 150


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept["key"].update(seed=1),
        lambda kept: kept["key"].update(n_importance=4),
        lambda kept: kept["bounds"].extend([0.0] * 100),
        lambda kept: kept.update(bounds="none"),
        lambda kept: kept.pop("bounds"),
        lambda kept: kept.pop("seconds"),
    ],
)
def test_what_is_kept_of_an_evaluation_is_checked(interrupted, change):
    kept = json.loads(interrupted.partial.read_text())
    change(kept)
    interrupted.partial.write_text(json.dumps(kept))
    assert interrupted() == 150


MEMORY = """
import torch
from vaelib import evaluation
from vaelib.data import Images
from vaelib.models import VAE


def megabytes(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


model = VAE((3, 64, 64), 4, "mlp", hidden=4, likelihood="gaussian").eval()
images = Images("made-up", "val", torch.zeros(6000, 3, 64, 64, dtype=torch.uint8))
evaluation.evaluate(model, images[:100], 2, 2)
before = megabytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # forget the most that there was
evaluation.evaluate(model, images, 2, 2)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory there was")
def test_the_memory_of_an_evaluation_does_not_grow_with_its_images():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True
    )
    assert not ran.returncode, ran.stderr
    floats = 6000 * 3 * 64 * 64 * 4 / 2**20  # of all images at once: 281 MB
    assert float(ran.stdout) < 0.75 * floats

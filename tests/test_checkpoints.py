"""Checkpoints: what goes in comes out, and whatever does not fit is one clear line."""

import hashlib
import json
import math
import os
import shutil
import stat
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from servers import refused, serving, silent

import vaelib
from vaelib import checkpoints, data, evaluation, files, objectives, publishing, reports, training
from vaelib.files import CheckpointError
from vaelib.likelihoods import LIKELIHOODS
from vaelib.models import VAE

PUBLISHED = sorted(path.parent.name for path in checkpoints.PUBLISHED.glob("*/config.json"))


@pytest.fixture
def folder(small_vae, tmp_path):
    checkpoints.save(small_vae, tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(small_vae, folder):
    loaded = VAE.from_pretrained(folder)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded.encode(x).loc, small_vae.encode(x).loc)
    assert torch.equal(
        loaded.decode(torch.ones(2, 3)).mean, small_vae.decode(torch.ones(2, 3)).mean
    )
    assert not loaded.training
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_weights_stored_as_fp16_load_as_the_same_numbers_in_fp32(small_vae, folder):
    size = (folder / "model.safetensors").stat().st_size
    checkpoints.halve(folder)
    assert (folder / "model.safetensors").stat().st_size < 0.55 * size
    for key, value in VAE.from_pretrained(folder).state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, small_vae.state_dict()[key].half().float())
    large = {
        key: torch.full_like(value, 1e6, dtype=torch.float32)
        for key, value in load_file(folder / "model.safetensors").items()
    }
    save_file(large, folder / "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"\S+ is too large for fp16; store"):
        checkpoints.halve(folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_mixins_own_save_is_readable_too(small_vae, tmp_path):
    small_vae.save_pretrained(tmp_path)
    assert VAE.from_pretrained(tmp_path).latent_dim == 3


def broken(folder, what):
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors, keys = load_file(weights), json.loads(config.read_text())
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif what == "foreign":
        weights.write_bytes(b"PK\x03\x04 this is a zip file, or half of one")
    elif what == "empty":
        weights.write_bytes(b"")
    elif what == "missing weight":
        save_file({k: v for k, v in tensors.items() if k != "encoder.conv_in.bias"}, weights)
    elif what == "extra weight":
        save_file(tensors | {"more": torch.zeros(1)}, weights)
    elif what == "other shape":
        config.write_text(json.dumps(keys | {"latent_dim": 4}))
    elif what == "unknown key":
        config.write_text(json.dumps(keys | {"colour": "blue"}))
    elif what == "wrong type":
        config.write_text(json.dumps(keys | {"latent_dim": "three"}))
    elif what == "no JSON":
        config.write_text("latent_dim: 3")
    elif what == "no object":
        config.write_text("[1, 2]")
    elif what == "no weights":
        weights.unlink()
    elif what == "no config":
        config.unlink()
    elif what == "a pickle":
        weights.unlink()
        torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "truncated, damaged"),
        ("foreign", "truncated, damaged"),
        ("empty", "truncated, damaged"),
        ("missing weight", r"1 missing \(encoder.conv_in.bias"),
        ("extra weight", r"1 extra \(more"),
        ("other shape", "misshapen"),
        ("unknown key", "unknown keys: colour"),
        ("wrong type", "describes no VAE"),
        ("no JSON", "config.json is no JSON"),
        ("no object", "config.json holds no keys and values"),
        ("no weights", "is not there"),
        ("no config", "is not there"),
        ("a pickle", "is not there"),
    ],
)
def test_unsound_checkpoints_are_refused_in_one_line(folder, what, message):
    broken(folder, what)
    for load in (VAE.from_pretrained, checkpoints.load_checkpoint):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["mnist-3d", "checkpoints/mnist-3d", "./mnist-2d", "a/b/c", "/nowhere/mnist-2d"]
)
def test_mistyped_names_ask_no_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoints.load_checkpoint(name)
    with pytest.raises(CheckpointError, match="no folder"):
        VAE.from_pretrained(name)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    files.write_json(path, {"old": 1})

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_what_is_written_can_be_read_by_others_and_changes_no_line_without_need(tmp_path):
    for name in PUBLISHED:
        folder = checkpoints.find(name)
        files.write_json(tmp_path / "metrics.json", files.read_json(folder / "metrics.json"))
        files.write_recipe(tmp_path, files.read_recipe(folder))
        for file in ("metrics.json", "train.yaml"):
            assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "metrics.json").stat().st_mode) == 0o644


@pytest.fixture
def without_clone(folder, tmp_path, monkeypatch):
    """As in an installed package: no checkpoints/ beside it, an empty cache, a manifest."""
    for name in ("train.yaml", "history.json"):
        (folder / name).write_text("{}")
    manifest = {
        "model": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(checkpoints, "MANIFEST", tmp_path / "manifest.json")
    monkeypatch.setattr(checkpoints, "PUBLISHED", tmp_path / "none")
    monkeypatch.setattr(files, "cache", lambda: tmp_path / "cache")
    monkeypatch.delenv("VAELIB_CHECKPOINTS", raising=False)
    return folder.parent


def cached(tmp_path):
    return {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}


def test_download_verifies_and_happens_once(without_clone, tmp_path, monkeypatch):
    with serving(without_clone) as (address, asked):
        monkeypatch.setenv("VAELIB_CHECKPOINTS", address)
        assert checkpoints.load_checkpoint("model").latent_dim == 3
        assert len(asked) == 4
        checkpoints.load_checkpoint("model")
        assert len(asked) == 4


def test_broken_off_download_goes_on_where_it_stopped(without_clone, tmp_path, monkeypatch):
    with serving(without_clone, broken=["model.safetensors"]) as (address, asked):
        monkeypatch.setenv("VAELIB_CHECKPOINTS", address)
        with pytest.raises(CheckpointError, match=r"model.safetensors can't be fetched"):
            checkpoints.load_checkpoint("model")
        assert "model.safetensors" not in cached(tmp_path)
        whole = cached(tmp_path)
    assert whole
    with serving(without_clone) as (address, asked):
        monkeypatch.setenv("VAELIB_CHECKPOINTS", address)
        checkpoints.load_checkpoint("model")
        assert not {path.rsplit("/", 1)[-1] for path in asked} & whole


def test_tampered_refused_silent_and_missing_are_one_line(without_clone, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="VAELIB_CHECKPOINTS"):
        checkpoints.load_checkpoint("model")
    monkeypatch.setattr(files, "TIMEOUT", 0.5)  # here alone: on busy cores a server may be slow
    other = tmp_path / "other"
    shutil.copytree(without_clone / "model", other / "model")
    (other / "model" / "config.json").write_text("{}")
    with serving(other) as (tampered, _), silent() as mute, serving(tmp_path / "x") as (missing, _):
        for address in (tampered, refused(), mute, missing):
            monkeypatch.setenv("VAELIB_CHECKPOINTS", address)
            with pytest.raises(CheckpointError, match="can't be fetched") as caught:
                checkpoints.load_checkpoint("model")
            assert "\n" not in str(caught.value)
    assert "config.json" not in cached(tmp_path)  # what is whole and right is kept


def test_manifest_is_of_the_published_files():
    manifest = json.loads(checkpoints.MANIFEST.read_text())
    assert sorted(manifest) == PUBLISHED
    for name, listed in manifest.items():
        assert set(publishing.FILES) <= set(listed) <= {*publishing.FILES, *publishing.MORE}
        for file, sha256 in listed.items():
            content = (checkpoints.PUBLISHED / name / file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == sha256


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_small(name):
    most = 12e6 if name.startswith("celeba") else 6e6
    assert (checkpoints.find(name) / "model.safetensors").stat().st_size < most


FACES = ("celeba", "paper-frey")  # whose images do not come with the installation


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.startswith("paper-frey")])
def test_the_faces_numbers_are_reproduced_from_the_definition(name):
    block = files.read_metrics(checkpoints.find(name))["test_quick"]
    try:
        images = data.load("frey", "test")
    except data.DataError as error:
        pytest.skip(str(error))
    assert block["sha256"] == images.sha256
    model = checkpoints.load_checkpoint(name)
    # log N(x; mean, scale) of the dequantised pixels, one draw of z for each image
    generator = torch.Generator().manual_seed(0)
    x = (images.images + torch.rand(images.images.shape, generator=generator)) / 256
    eps = torch.randn(1, 400, model.latent_dim, generator=generator)[0]
    with torch.inference_mode():
        mean, logvar = model.encoder(x).chunk(2, 1)
        a, r = model.decoder(mean + (logvar / 2).exp() * eps).chunk(2, 1)
        scale = 1 / 256 + r.exp().log1p()
        error = ((x - a.sigmoid()) / scale).square()
        nats = -(0.5 * error + scale.log() + 0.5 * math.log(2 * math.pi)).sum((1, 2, 3))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
    assert -nats.mean().item() == pytest.approx(block["reconstruction"][0], abs=0.1)
    assert (kl - nats).mean().item() == pytest.approx(block["neg_elbo"][0], abs=0.1)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not n.startswith((*FACES, "sprites-"))])
def test_val_offline_is_reproduced(name):
    """All 5,000 digits for the ELBO and the first images' bound, as `vaelib evaluate` has it."""
    block = files.read_metrics(checkpoints.find(name))["val_offline"]
    images = data.load("mnist", "val")
    model = checkpoints.load_checkpoint(name)
    noisy = name != "mnist-2d-ae"  # which has a reconstruction alone
    objective = objectives.elbo if noisy else objectives.autoencoder
    terms, q_z = evaluation.elbo_terms(model, images, objective=objective)
    assert block["sha256"] == images.sha256
    found = {"reconstruction": -terms.log_px_z}
    found |= {"neg_elbo": -terms.elbo, "kl": terms.kl} if noisy else {}
    for key, values in found.items():
        assert values.mean().item() == pytest.approx(block[key][0], abs=reports.TOLERANCE)
    assert evaluation.active_units(q_z) == block["active_units"]
    closed = noisy and model.prior_name == "standard"
    assert closed == ("kl_per_dim" in block)
    if noisy and not closed:
        assert "one draw of z" in block["kl_estimator"]
    if closed:
        per_dim = torch.tensor(block["kl_per_dim"])
        torch.testing.assert_close(terms.kl_per_dim.mean(0), per_dim, atol=2e-3, rtol=0)
    # an independent look at one number: the reconstruction from the definition
    x = data.binarise(images.images, torch.Generator().manual_seed(0))[:500]
    with torch.inference_mode():
        q = model.encode(x)
        z = q.loc + noisy * q.scale * torch.randn(500, model.latent_dim)
        p = model.decode(z).mean.clamp(1e-7, 1 - 1e-7)
    nats = -(x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3))
    assert nats.mean().item() == pytest.approx(-terms.log_px_z[:500].mean().item(), abs=1.0)


def bound_again(name: str, block_name: str, images: data.Images, n: int) -> list[float]:
    """What a block says of its bound, and the mean over the first n images, computed anew here."""
    bound = files.read_metrics(checkpoints.find(name))[block_name]["bound"]
    model, found = checkpoints.load_checkpoint(name), []
    x = data.seen_by(model, images.images, torch.Generator().manual_seed(0))[:n]
    with torch.inference_mode():
        for i, image in enumerate(x):
            eps = torch.randn(
                bound["n_importance"],
                1,
                model.latent_dim,
                generator=torch.Generator().manual_seed(i),
            )
            q_z = model.encode(image.unsqueeze(0))
            z = q_z.loc + q_z.scale * eps
            log_px_z = model.decode(z).log_prob(image).sum((-3, -2, -1)).double()
            log_ratio = (eps**2 - z**2).sum(-1) / 2 + q_z.scale.log().sum(-1)  # log p(z) - log q
            log_w = log_px_z + log_ratio
            found.append(-(torch.logsumexp(log_w, 0) - math.log(len(eps))).item())
    return bound["neg_log_px"], sum(found) / n


@pytest.mark.parametrize("name", ["mlp-50d", "mlp-50d-iwae"])
def test_a_published_bound_is_computed_again_from_its_definition(name):
    (mean, error), first = bound_again(name, "val_offline", data.load("mnist", "val"), 100)
    # a hundred of the thousand images: their mean is within five errors of a hundred
    assert first == pytest.approx(mean, abs=5 * error * 10**0.5)
    digits = data.load("mnist", "val").subset(100)
    model = checkpoints.load_checkpoint(name)
    block = evaluation.evaluate(model, digits, 500, 100)
    assert block["bound"]["neg_log_px"][0] == pytest.approx(first, abs=reports.TOLERANCE)


def test_a_published_face_model_is_what_its_block_says():
    name = "celeba-64"
    block = files.read_metrics(checkpoints.find(name))["test_quick"]
    try:
        images = data.load("celeba", "test")
    except data.DataError:
        pytest.skip("CelebA is not on this machine")
    if images.sha256 != block["sha256"]:
        pytest.skip("these are other images, or another version of Pillow decoded them")
    model = checkpoints.load_checkpoint(name)
    terms, q_z = evaluation.elbo_terms(model, images)
    assert -terms.elbo.mean().item() == pytest.approx(block["neg_elbo"][0], abs=0.05)
    psnr = evaluation.psnr(model, images[:100], type(q_z)(q_z.loc[:100], q_z.scale[:100]))
    assert psnr.mean().item() == pytest.approx(block["psnr"][0], abs=0.5)


@pytest.mark.parametrize(
    "wrapped", ["bare", "compiled", "compiled in place", "parallel", "averaged", "numpy"]
)
def test_what_is_saved_can_be_loaded(tmp_path, wrapped):
    torch.manual_seed(0)
    size, dim = (np.array([1, 12, 12]), np.int64(3)) if wrapped == "numpy" else ((1, 12, 12), 3)
    sigma = {"likelihood_args": {"sigma": np.float32(0.25)}} if wrapped == "numpy" else {}
    blocks = np.bool_(True) if wrapped == "numpy" else 1
    arguments = {"sigma": 0.25, "likelihood": "gaussian", "n_res_blocks": blocks} | sigma
    model = VAE(size, dim, widths=[np.int32(8)], **arguments).eval()
    wrap = {
        "compiled": torch.compile,
        "parallel": torch.nn.DataParallel,
        "averaged": torch.optim.swa_utils.AveragedModel,
    }
    saved = wrap.get(wrapped, lambda same: same)(model)
    if wrapped == "compiled in place":
        saved.compile()
    for i, save in enumerate((checkpoints.save, lambda m, f: m.save_pretrained(f))):
        if i and wrapped in wrap:
            continue  # the mixin's method does not see the wrapper
        save(saved, tmp_path / str(i))
        loaded = VAE.from_pretrained(tmp_path / str(i))
        z = torch.ones(2, 3)
        assert torch.equal(loaded.decode(z).mean, model.decode(z).mean)
        assert loaded.latent_dim == 3
        assert loaded.likelihood.sigma == 0.25


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    changed = VAE(latent_dim=3, widths=(8,))
    changed.decoder.conv_out = torch.nn.Conv2d(8, 1, 3)  # its config does not say so

    class Own(VAE):
        def __init__(self, dim: int):
            super().__init__(latent_dim=dim, widths=(8,))

    small = {"latent_dim": 3, "widths": (8,)}
    other_sigma = VAE(**small, likelihood="gaussian", sigma=0.5)
    other_sigma.likelihood.sigma = 0.1  # no weight of it would say so
    replaced = VAE(**small)
    replaced.likelihood = LIKELIHOODS["gaussian"](0.1)
    added = VAE(**small)
    added.decoder.mid_block.append(torch.nn.Tanh())
    tied = VAE(**small, backbone="mlp", hidden=12)
    tied.encoder.hidden[0].bias = tied.decoder.hidden[0].bias
    for model, message in (
        (changed, "does not fit its config.json"),
        (Own(3), "unknown keys"),
        (other_sigma, "likelihood was changed after it was made"),
        (replaced, "likelihood was changed after it was made"),
        (added, "decoder.mid_block.* was changed after it was made"),
        (tied, "can't be written: Some tensors share memory"),
        (torch.compile(torch.compile(VAE(**small))), "give the model itself"),
        (torch.nn.Linear(2, 2), "is a Linear; give the model itself"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoints.save(model, tmp_path / "model")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "model").exists() or not list((tmp_path / "model").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_folder_that_could_not_be_opened_again_is_refused(small_vae, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(CheckpointError, match="a name in UTF-8"):
        checkpoints.save(small_vae, odd)
    assert not (odd / "model.safetensors").exists()


def test_what_can_not_be_saved_is_refused_at_once():
    with pytest.raises(TypeError, match="can't be saved"):
        VAE(widths=(8, object()))


def test_evaluation_does_not_depend_on_the_batch_size(small_vae, digits):
    few = digits.subset(50)
    a, b = (evaluation.elbo_terms(small_vae, few, batch=size)[0] for size in (7, 50))
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-2)


def test_mean_over_images_and_its_error():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    # mean 3, sample variance (4 + 1 + 0 + 9) / 3, error sqrt(14 / 3 / 4)
    assert evaluation.mean_and_error(values) == [3.0, round((14 / 12) ** 0.5, 4)]


def test_active_units_by_hand():
    means = torch.zeros(100, 3)
    means[:, 0] = torch.linspace(-1, 1, 100)  # variance about 1/3
    means[:, 1] = torch.linspace(-0.1, 0.1, 100)  # variance about 0.0034
    q_z = torch.distributions.Normal(means, torch.ones(100, 3))
    assert evaluation.active_units(q_z) == 1


def test_compare_sees_what_differs(small_vae, digits):
    block = evaluation.evaluate(small_vae, digits.subset(20), n_importance=5, n_bound_images=4)
    assert reports.compare(block, block) == []
    assert reports.compare(block | {"binarisation": "as it was called before"}, block) == []
    moved = block | {"neg_elbo": [block["neg_elbo"][0] + 0.1, 1.0], "sha256": "other"}
    moved["bound"] = block["bound"] | {"n_importance": 6, "n_images": 3}
    found = reports.compare(block, moved)
    assert len(found) == 4
    assert reports.compare(moved | {"psnr": [20.0, 1.0]}, moved | {"psnr": [20.03, 1.0]}) == [
        "psnr was 20.0, is 20.03"
    ]
    # a block that says less, of another program say, differs in what it does not say
    assert len(reports.compare({"sha256": block["sha256"]}, block)) == 8
    assert block["bound"]["neg_log_px"][0] < block["bound"]["neg_elbo_same_images"][0]


def test_what_another_checkpoint_has_is_stored_once(without_clone, tmp_path, monkeypatch):
    base = without_clone / "model"
    plain = vaelib.VAE.from_pretrained(base)
    model = vaelib.VAE(**plain._hub_mixin_config | {"prior": "flow"})
    training.begin(model, str(base))
    other = without_clone / "model-flow"
    checkpoints.save(model, other)
    whole = (other / "model.safetensors").stat().st_size
    checkpoints.lean(other, base)
    with pytest.raises(ValueError, match="which has others"):
        checkpoints.lean(base, other)
    spared = sum(w.nbytes for w in plain.state_dict().values())
    assert (other / "model.safetensors").stat().st_size < whole - 0.9 * spared
    again = vaelib.load_checkpoint(other)
    assert all(torch.equal(w, again.state_dict()[k]) for k, w in model.state_dict().items())
    n = sum(number for _, number in files.read_shapes(other).values())
    assert n == sum(w.numel() for w in model.state_dict().values())
    # fetched, the other one comes with it
    for name in ("train.yaml", "history.json"):
        (other / name).write_text("{}")
    manifest = {
        folder.name: {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        for folder in (base, other)
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with serving(without_clone) as (address, asked):
        monkeypatch.setenv("VAELIB_CHECKPOINTS", address)
        assert checkpoints.load_checkpoint("model-flow").prior_name == "flow"
        assert len(asked) == 8
    # and without it, or with another in its place, that is said
    checkpoints.save(vaelib.VAE(**plain._hub_mixin_config), base)
    with pytest.raises(CheckpointError, match="put that checkpoint beside this one"):
        vaelib.load_checkpoint(other)
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="put that checkpoint beside this one"):
        vaelib.VAE.from_pretrained(other)

"""Models on the hub: both files are asked for by the owner's and the model's name."""

import re

import pytest
import torch
from huggingface_hub import ModelCard

from vaelib import checkpoints, evaluation, files
from vaelib.files import CheckpointError
from vaelib.models import VAE


def test_a_hub_id_is_fetched_and_what_is_none_is_not(small_vae, tmp_path, monkeypatch):
    checkpoints.save(small_vae, tmp_path)
    asked = []

    def served(name, file, **options):
        asked.append((name, file, options["revision"], options["local_files_only"]))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", served)
    loaded = VAE.from_pretrained("owner/name", revision="v2", local_files_only=True)
    assert sorted(asked) == [
        ("owner/name", file, "v2", True) for file in ("config.json", "model.safetensors")
    ]
    for a, b in zip(loaded.parameters(), small_vae.parameters(), strict=True):
        assert torch.equal(a, b)
    asked.clear()
    for wrong in ("name", "owner/", "/name", "owner/name/more"):
        with pytest.raises(CheckpointError, match="hub id"):
            VAE.from_pretrained(wrong)
    assert asked == []
    with pytest.raises(CheckpointError, match=r"vaelib.load_checkpoint\('mnist-50d'\)"):
        VAE.from_pretrained("mnist-50d")


def test_a_saved_model_has_a_card_that_says_how_to_load_it(small_vae, tmp_path, digits):
    block = evaluation.evaluate(small_vae, digits.subset(5), 2, 2)
    files.write_json(tmp_path / files.METRICS, {"val": block})
    small_vae.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    n_parameters = sum(p.numel() for p in small_vae.parameters())
    for fact in ("1 x 28 x 28", "latent dimensions: 3", "bernoulli", f"{n_parameters:,}"):
        assert fact in card
    assert f"5 images of mnist-5k val: neg_elbo {block['neg_elbo'][0]:.2f}" in card
    assert ModelCard(card).data.library_name == "vaelib"
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    space = {}
    exec(code.replace("FOLDER", str(tmp_path)), space)
    assert space["pictures"].shape == (16, 1, 28, 28)
    for a, b in zip(space["model"].parameters(), small_vae.parameters(), strict=True):
        assert torch.equal(a, b)
    (tmp_path / "README.md").write_text("mine")
    small_vae.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"

"""Models on the hub: both files are asked for by the owner's and the model's name."""

import pytest
import torch

from vaelib import checkpoints
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

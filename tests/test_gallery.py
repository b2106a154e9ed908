"""Pictures of few images, and what is kept beside the weights it was made from."""

import pytest
import torch

from vaelib import checkpoints, files, gallery


@pytest.mark.parametrize(("n", "rows"), [(2, 1), (5, 2), (7, 3), (40, 4)])
def test_as_many_pairs_as_there_are_images_for(small_vae, digits, n, rows):
    figure = gallery.interpolate(small_vae, "m", digits.subset(n), 3, 4)
    page = figure.axes[0].images[0].get_array()
    # a row is 28 pixels and a gap of 2; two real ends, and the path with its own two ends
    assert page.shape[:2] == (rows * 30 - 2, (2 + 3 + 2) * 30 - 2)


def test_what_is_kept_beside_weights_is_theirs_alone(small_vae, tmp_path):
    checkpoints.save(small_vae, tmp_path)
    tensors = {"weights": torch.tensor([0.25, 0.75])}
    checkpoints.keep_tensors(tmp_path, files.LATENTS, tensors, {"by": "hand"})
    kept, about = checkpoints.kept_tensors(tmp_path, files.LATENTS)
    assert kept["weights"].tolist() == [0.25, 0.75]
    assert about["by"] == "hand"
    assert checkpoints.kept_tensors(tmp_path, files.ATTRIBUTES) is None
    with torch.no_grad():
        next(small_vae.parameters()).add_(1.0)
    checkpoints.save(small_vae, tmp_path)
    assert checkpoints.kept_tensors(tmp_path, files.LATENTS) is None

"""Pictures of few images, and what is kept beside the weights it was made from."""

from dataclasses import replace

import pytest
import torch

from vaelib import checkpoints, derived, files, gallery


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


def test_attributes_that_too_few_images_have_or_lack_are_left_out(
    small_vae, digits, tmp_path, monkeypatch
):
    n, halves = 60, torch.arange(60) % 2 == 0
    few, six = torch.arange(n) < 4, torch.arange(n) < 6
    columns = {"half": halves, "few": few, "most": ~few, "six": six, "all but six": ~six}
    some = replace(digits.subset(n), attributes=columns)
    monkeypatch.setattr(derived, "first_images", lambda *_: some)
    checkpoints.save(small_vae, tmp_path)
    table = derived.attributes(small_vae, tmp_path)
    assert set(table) == {"half", "six", "all but six"}
    # the other way round is the other direction, which tells as well
    one, other = (table[name] for name in ("six", "all but six"))
    torch.testing.assert_close(one["directions"][0], -other["directions"][0])
    torch.testing.assert_close(one["auc"], other["auc"], atol=1e-3, rtol=0)

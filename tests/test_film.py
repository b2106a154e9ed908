"""The film of a latent map: a frame is added at each look, and each is in the GIF."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vaelib import checkpoints, files, film
from vaelib.data import seen_by
from vaelib.models import VAE


def test_frames_are_added_one_after_the_other_and_saved(tmp_path, digits):
    torch.manual_seed(0)
    model, few = VAE(latent_dim=2, backbone="mlp", hidden=8).eval(), digits.subset(30)
    checkpoints.save(model, tmp_path)
    x = seen_by(model, few.images, torch.Generator().manual_seed(0))
    means = []
    for step in (10, 20, 40):
        film.keep_frame(model, few, tmp_path, SimpleNamespace(rows=[{"step": 1}, {"step": step}]))
        means.append(model.encode(x).loc.detach().clone())
        torch.nn.init.normal_(model.encoder.to_latent.weight, std=step / 10)
    kept, _ = files.read_tensors(tmp_path / files.FILM)
    assert kept["steps"].tolist() == [10, 20, 40]
    torch.testing.assert_close(kept["z"].float(), torch.stack(means), rtol=1e-2, atol=1e-2)
    path = film.save(tmp_path, few, tmp_path / "film.gif")
    times = []
    with Image.open(path) as gif:
        for number in range(gif.n_frames):
            gif.seek(number)
            times.append(gif.info["duration"])
    assert len(times) == 3
    assert times[-1] > times[0]  # the last picture stays
    assert times[0] == pytest.approx(times[1])

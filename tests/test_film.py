"""The film of a latent map, and its colours: those of every picture of the same classes."""

import io
import math
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vaelib import checkpoints, data, derived, figures, files, film, widgets
from vaelib.data import seen_by
from vaelib.models import VAE


def test_frames_are_added_one_after_the_other_and_saved(tmp_path, digits):
    torch.manual_seed(0)
    model, few = VAE(latent_dim=2, backbone="mlp", hidden=8).eval(), digits.subset(30)
    checkpoints.save(model, tmp_path)
    x = seen_by(model, few.images, torch.Generator().manual_seed(0))
    means = []
    for step in (10, 20, 40):
        history = SimpleNamespace(rows=[{"step": 1}, {"step": step}])
        derived.keep_frame(model, few, tmp_path, history)
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
    assert len(times) > 3  # and some on the way from one look to the next
    assert times[-1] > times[0]  # the last picture stays
    assert times[0] == pytest.approx(times[1])


def test_without_labels_the_film_is_of_the_same_draws_as_they_become_pictures(tmp_path):
    torch.manual_seed(0)
    model = VAE((1, 28, 20), 3, "mlp", hidden=8, likelihood="sigmoid_gaussian").eval()
    checkpoints.save(model, tmp_path)
    pixels = torch.zeros(5, 1, 28, 20, dtype=torch.uint8)
    faces = data.Images("faces", "val", pixels)
    means = []
    z = model.prior.sample(24, torch.Generator().manual_seed(0))
    for step in (10, 20):
        derived.keep_frame(model, faces, tmp_path, SimpleNamespace(rows=[{"step": step}]))
        means.append(model.decode(z).mean.detach())
        torch.nn.init.normal_(model.decoder.to_image.weight, std=1)
    kept, _ = files.read_tensors(tmp_path / files.FILM)
    assert kept["steps"].tolist() == [10, 20]
    assert kept["pictures"].shape == (2, 24, 1, 28, 20)
    torch.testing.assert_close(kept["pictures"] / 255, torch.stack(means), atol=0.5 / 255, rtol=0)
    with Image.open(film.save(tmp_path, faces, tmp_path / "film.gif")) as gif:
        assert gif.n_frames == 2
        first = np.asarray(gif.convert("L")).copy()
        gif.seek(1)
        last = np.asarray(gif.convert("L"))
    assert (first.astype(float) - last).std() > 5
    assert len(np.unique(last)) > 20  # greys

    large = VAE((3, 64, 64), 3, "mlp", hidden=8).eval()
    pixels = torch.zeros(5, 3, 64, 64, dtype=torch.uint8)
    folder = tmp_path / "large"
    derived.keep_frame(
        large, data.Images("f", "val", pixels), folder, SimpleNamespace(rows=[{"step": 1}])
    )
    assert not folder.exists()


def test_dots_go_straight_from_look_to_look_and_most_frames_are_early():
    torch.manual_seed(0)
    z, steps = torch.randn(4, 5, 2).half(), torch.tensor([10, 20, 50, 1010])
    places, moments = film.between(z, steps, 41)
    assert (moments[0], moments[-1], len(moments)) == (10, 1010, 41)
    torch.testing.assert_close(places[0], z[0].float())
    torch.testing.assert_close(places[-1], z[-1].float())
    gaps = [after - before for before, after in pairwise(moments)]
    assert max(gaps[:10]) < min(gaps[-10:])
    assert moments[20] < 10 + 1000 / 5
    for place, step in zip(places, moments, strict=True):
        for axis in range(2):
            # numpy's own interpolation, a dot at a time; steps are rounded
            way = z[:, 0, axis].float().numpy()
            near = [np.interp(step + d, steps.numpy(), way) for d in (-0.5, 0.5)]
            assert min(near) - 1e-4 <= place[0, axis] <= max(near) + 1e-4
    one, (step,) = film.between(z[:1], steps[:1], 41)
    assert (one.shape, step) == ((1, 5, 2), 10)


def colour(text: str) -> tuple[int, ...]:
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


def test_a_class_has_one_colour_in_map_film_and_explorer():
    n, seen = len(figures.CLASSES), {}
    angle = 2 * math.pi * torch.arange(n) / n
    z = 2.5 * torch.stack([angle.cos(), angle.sin()], 1)
    z, labels = z.repeat_interleave(300, 0), torch.arange(n).repeat_interleave(300)
    z = z + 0.12 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    drawn = Image.open(io.BytesIO(figures.latent_map(z, labels).png())).convert("RGB")
    seen["map"] = {rgb for count, rgb in drawn.getcolors(1 << 20) if count > 20}
    (frame,) = film.frames(z.unsqueeze(0), labels, [1], "m")
    seen["film"] = {rgb for count, rgb in frame.convert("RGB").getcolors(1 << 20) if count > 20}
    for where, found in seen.items():
        for text in figures.CLASSES:  # a map is stored in 256 colours, each within 8 of its own
            nearest = min(
                max(abs(a - b) for a, b in zip(colour(text), c, strict=True)) for c in found
            )
            assert nearest <= (8 if where == "map" else 0), (where, text)
    pixels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    images = data.Images("own", "val", pixels, labels=torch.arange(20) % 10)
    about = widgets.explorer_data(VAE((1, 8, 8), 2, widths=(4,)), "m", images)
    assert about["points"]["colours"] == list(figures.CLASSES)
    source = (widgets.SOURCES / "explorer.js").read_text(encoding="utf-8")
    assert not re.search(r"#[0-9a-fA-F]{6}", source)  # it has no list of its own


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
SEEN_BY = {
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopes": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]],
    "deuteranopes": [
        [0.3673, 0.8606, -0.2280],
        [0.2801, 0.6725, 0.0474],
        [-0.0118, 0.0429, 0.9689],
    ],
    "tritanopes": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def lab(rgb: np.ndarray, matrix) -> np.ndarray:
    """CIE L*a*b* of sRGB colours as somebody sees them. Shapes: (N, 3) -> (N, 3)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(matrix).T, 0, 1)
    to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    xyz = linear @ np.array(to_xyz).T / [0.9505, 1.0, 1.0888]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize("who", SEEN_BY)
def test_ten_colours_can_be_told_apart(who):
    rgb = np.array([colour(text) for text in figures.CLASSES]) / 255
    seen = lab(rgb, SEEN_BY[who])
    far = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert far[np.triu_indices(10, 1)].min() > 17  # seaborn's ten: 11 at worst, matplotlib's: 5
    for a, b in [(4, 9), (7, 9), (4, 7), (3, 8), (3, 5), (5, 8), (2, 3), (2, 6), (0, 6)]:
        assert far[a, b] > 30  # digits whose clouds touch
    assert 30 < seen[:, 0].min() < seen[:, 0].max() < 90  # on white and on black

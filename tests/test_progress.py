"""Progress: in a notebook one plain line at the end, in a log a few, in a terminal a bar."""

import io
import re
import sys
from types import SimpleNamespace

import IPython.display
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from vaelib import progress, widgets


@pytest.fixture
def shown(monkeypatch):
    """What a notebook's cell shows in the end, by display."""
    cells = []

    def display(data, raw, display_id):
        assert raw
        assert display_id
        cells.append(data["text/plain"])
        place = len(cells) - 1

        def update(data, raw):
            cells[place] = data["text/plain"]

        return SimpleNamespace(update=update)

    monkeypatch.setattr(IPython.display, "display", display)
    return cells


def test_a_line_ends_as_plain_text(shown, capsys):
    line = progress.Line(range(2000), "run", unit="step", mininterval=0)
    for i in line:
        line.set_postfix_str(f"val {i} nats")
    (text,) = shown
    assert text.startswith("run, 2,000 of 2,000 steps in 00:")
    assert text.endswith(", val 1999 nats")
    assert capsys.readouterr().err == ""


def test_a_line_of_unknown_length_and_one_that_vanishes(shown):
    list(progress.Line(iter(range(30)), unit="step"))
    list(progress.Line(range(30), leave=False))
    list(progress.Line(range(3), leave=False, delay=100))  # done before it was worth a line
    assert shown[0].startswith("30 steps in ")
    assert shown[1:] == [""]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    bar = progress.progress(range(3), file=sys.stderr)
    assert type(bar) is tqdm
    list(bar)
    assert "3/3" in sys.stderr.getvalue()


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bar = progress.progress(range(72_000), "run", unit="step", postfix=progress.COMPILING)
    assert type(bar) is progress.Log
    for i in bar:
        now[0] += 100.0 if i == 0 else 0.1  # two hours, and the first step compiles
        if i == 0:
            progress.first_is_done(bar)
        elif i % 500 == 0:
            bar.set_postfix_str(f"val {i} nats")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "run, 0 of 72,000 steps in 00:00, compiling, about a minute the first time"
    # at 10 steps a second; what compiling took does not count
    assert re.fullmatch(r"run, \d+ of 72,000 steps in 00:00, (1:59:59|2:00:00) left", lines[1])
    assert lines[-1] == "run, 72,000 of 72,000 steps in 1:59:59, val 71500 nats"
    assert 10 < len(lines) < 30
    list(progress.progress(range(9), leave=False, delay=100))
    assert capsys.readouterr().err == ""


def test_widgets_leave_a_picture(small_vae, digits):
    import base64

    sliders = widgets.latent_sliders(small_vae)
    found = {"explorer": widgets.LatentExplorer(
        small_vae, widgets.explorer_data(small_vae, "small", digits.subset(50)))}  # fmt: skip
    for widget in (sliders, *found.values()):
        bundle = widget._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert not any(word in bundle["text/plain"] for word in ("HBox", "0x"))
        png = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
        assert png.height >= 224
    with torch.inference_mode():  # the sliders' picture is the one that they show
        mean = small_vae.decode(torch.zeros(1, 3)).mean[0, 0]
    shown = torch.frombuffer(bytearray(Image.open(io.BytesIO(
        base64.b64decode(sliders._repr_mimebundle_()["image/png"]))).convert("L").resize(
            (28, 28), Image.Resampling.NEAREST).tobytes()), dtype=torch.uint8)  # fmt: skip
    torch.testing.assert_close(shown.reshape(28, 28) / 255, mean, atol=0.01, rtol=0)

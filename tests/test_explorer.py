"""The explorer in a browser: the same numbers as PyTorch, and controls that do what they say.

Run where there is a Chromium and Playwright for Python; `.ci/run` installs both.
"""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor
from traitlets.config import PyFileConfigLoader

import vaelib
from vaelib import blocks, checkpoints, data, derived, export, files, widgets
from vaelib.__main__ import main
from vaelib.likelihoods import LIKELIHOODS, Gaussian
from vaelib.models import VAE
from vaelib.priors import PRIORS, StandardNormal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from live import CHROMIUM, FLAGS, lab, run_all  # noqa: E402

DECODER = (export.SOURCES / "decoder.js").read_text()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright for Python")
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    with (
        playwright.sync_playwright() as p,
        p.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        yield browser


@contextlib.contextmanager
def opened(browser, timeout: int):
    """A page that keeps what it logs, and what it asks of any network."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(timeout)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


@pytest.fixture
def page(browser):
    with opened(browser, 60_000) as page:
        yield page


def halved(module: nn.Module) -> nn.Module:
    """Random weights everywhere (some start at zero), rounded to half precision."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = (torch.randn_like(parameter) * 0.3).half().float()
    return module.eval()


def in_javascript(page, module: nn.Module, x: torch.Tensor, **facts) -> torch.Tensor:
    weights: list[torch.Tensor] = []
    net = export.describe(module, weights) | facts
    text = export.packed(weights) if weights else ""
    page.add_script_tag(content=DECODER)
    answer = page.evaluate(
        """([net, text, data, shape]) => {
            const x = { data: Float32Array.from(data), shape };
            const y = run(attach(net, unpack(text)), x);
            return [Array.from(y.data), y.shape];
        }""",
        [net, text, x.flatten().tolist(), list(x.shape)],
    )
    return torch.tensor(answer[0]).reshape(answer[1])


TRIED = [
    (blocks.ConvBlock(3, 5), (3, 7, 6)),
    (blocks.ConvBlock(16, 8), (16, 5, 9)),
    (blocks.Downsample(4, 6), (4, 9, 8)),
    (blocks.Upsample(6, 3), (6, 5, 4)),
    (blocks.ResidualBlock(16), (16, 3, 5)),
    (nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2, bias=False)), (5,)),
]


@pytest.mark.parametrize(("block", "shape"), TRIED, ids=lambda value: type(value).__name__)
def test_every_block_computes_the_same_in_javascript(page, block, shape):
    halved(block)
    x = torch.randn(shape)
    with torch.no_grad():
        expected = block(x.unsqueeze(0))[0]
    torch.testing.assert_close(in_javascript(page, block, x), expected, atol=1e-4, rtol=1e-4)


def test_every_block_there_is_has_been_tried():
    classes = {thing for thing in vars(blocks).values() if isinstance(thing, type)}
    assert {c for c in classes if issubclass(c, nn.Module)} <= {type(b) for b, _ in TRIED}


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_shape": (1, 28, 20), "latent_dim": 3, "widths": (4, 8)},
        {"image_shape": (3, 16, 16), "latent_dim": 5, "widths": (8,), "likelihood": "gaussian"},
        {
            "image_shape": (3, 10, 9),
            "latent_dim": 1,
            "widths": (4,),
            "likelihood": "pixel_gaussian",
        },
        {"latent_dim": 2, "backbone": "mlp", "hidden": 9, "likelihood": "continuous_bernoulli"},
    ],
    ids=lambda a: a.get("likelihood", "bernoulli"),
)
def test_whole_models_compute_the_same_picture(page, arguments):
    model = VAE(**arguments)
    halved(model.decoder)
    z = torch.randn(model.latent_dim)
    with torch.no_grad():
        mean = model.decode(z.unsqueeze(0)).mean[0]
    raw = in_javascript(page, model.decoder, z, image_shape=model.image_shape)
    likelihood = arguments.get("likelihood", "bernoulli")
    bytes_ = page.evaluate(
        "([y, likelihood]) => Array.from(toBytes({data: Float32Array.from(y)}, likelihood))",
        [raw.flatten().tolist(), likelihood],
    )
    shown = torch.tensor(bytes_).reshape(mean.shape) / 255
    assert (shown - mean.clamp(0, 1)).abs().max() < 0.6 / 255  # half a grey level


def in_node(expression: str):
    """What a JavaScript expression over decoder.js is, by node: no page is needed for numbers."""
    if not (node := shutil.which("node")):
        pytest.skip("no node on this machine")
    script = f"{DECODER}\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run([node], input=script, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", export.page_likelihoods())
def test_every_likelihood_has_the_same_mean_in_javascript(name):
    near_0 = torch.logspace(-6, 0, 25)
    ends = torch.tensor([-1e4, -2e3, 2e3, 1e4])
    v = torch.cat([torch.linspace(-600, 600, 2401), near_0, -near_0, ends])
    rest = torch.zeros(LIKELIHOODS[name]().n_params - 1, len(v))
    params = torch.cat([v.unsqueeze(0), rest]).reshape(1, -1, 1, len(v))  # (1, n C, H, W)
    expected = LIKELIHOODS[name]()(params).mean.flatten()
    values = f"Float32Array.from({v.tolist()})"
    means = in_node(f"Array.from({values}, (v) => means.{name}(v))")
    torch.testing.assert_close(torch.tensor(means), expected.detach(), rtol=2e-6, atol=1e-7)
    shown = torch.tensor(in_node(f"Array.from(toBytes({{ data: {values} }}, '{name}'))")) / 255
    assert (shown - expected.clamp(0, 1)).abs().max() < 0.51 / 255


def test_python_reads_the_list_of_likelihoods_as_javascript_does():
    assert export.page_likelihoods() == in_node("Object.keys(means)")


def test_what_a_page_does_not_know_is_refused(tmp_path, monkeypatch, capsys):
    class Laplace(Gaussian):
        """A likelihood that decoder.js has no mean of."""

    class Wide(StandardNormal):
        """A prior that the explorer can't draw from."""

    monkeypatch.setitem(LIKELIHOODS, "laplace", Laplace)
    monkeypatch.setitem(PRIORS, "wide", Wide)
    for key, name in (("likelihood", "laplace"), ("prior", "wide")):
        folder = tmp_path / name
        checkpoints.save(VAE(latent_dim=2, widths=(4,), **{key: name}), folder)
        with pytest.raises(SystemExit) as caught:
            main(["export", str(folder), "-o", str(tmp_path / "page.html")])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{key} {name}" in line or f"{name} {key}" in line
        assert not (tmp_path / "page.html").exists()
    explorer_data = widgets.explorer_data(VAE(latent_dim=2, widths=(4,), likelihood="laplace"), "m")
    assert explorer_data["name"] == "m"  # in a notebook Python decodes


PAGES = ["mnist-2d", "mnist-50d", "sprites-tc", "celeba-64"]


@pytest.mark.parametrize("name", PAGES)
def test_shipped_weights_agree_to_a_thousandth(page, name):
    model = vaelib.load_checkpoint(name)
    for parameter in model.decoder.parameters():
        parameter.data = parameter.half().float()
    for seed in range(3):
        z = torch.randn(model.latent_dim, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            mean = model.decode(z.unsqueeze(0)).mean[0]
        ours = in_javascript(page, model.decoder, z, image_shape=model.image_shape)
        assert (model.likelihood(ours).mean - mean).abs().max() < 1e-3


def png(page) -> bytes:
    url = page.evaluate("() => document.querySelector('.vae-picture').toDataURL()")
    return base64.b64decode(url.split(",")[1])


def content(page) -> list:
    return list(Image.open(io.BytesIO(png(page))).convert("L").tobytes())


def eventually(page, seen) -> bool:
    """Whether `seen()` becomes true: at once, or after a while on a busy machine."""
    return any(seen() or page.wait_for_timeout(50) for _ in range(1200))


@pytest.fixture(scope="module", params=PAGES)
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    main(["export", request.param, "-o", str(path)])
    return request.param, path


def test_the_page_works_from_disk_without_a_network(page, exported):
    name, path = exported
    assert path.stat().st_size < (8e6 if name == "celeba-64" else 4e6)
    page.goto(path.as_uri())
    page.wait_for_selector(".vae-picture[data-frame]")
    model = vaelib.load_checkpoint(name)
    for parameter in model.decoder.parameters():
        parameter.data = parameter.half().float()
    with torch.no_grad():
        mean = model.decode(torch.zeros(1, model.latent_dim)).mean[0].clamp(0, 1)
    channels = Image.open(io.BytesIO(png(page))).convert("RGB").split()[: len(mean)]
    shown = torch.tensor([list(c.tobytes()) for c in channels]).reshape(mean.shape) / 255
    assert (shown - mean).abs().max() < 1e-2  # what is on the canvas is the prior's mean
    before = content(page)
    first = page.locator(".vae-right input[type=range]").first
    first.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert eventually(page, lambda: content(page) != before)
    assert float(first.input_value()) == pytest.approx(0.4)
    page.get_by_role("button", name="mean").click()
    assert eventually(page, lambda: content(page) == before)
    for button in ("draw", "shuffle"):
        last = content(page)
        page.get_by_role("button", name=button, exact=True).click()
        assert eventually(page, lambda last=last: content(page) != last)
    last = content(page)
    if name == "celeba-64":  # no photographs to start from, but what was learned from them
        page.get_by_role("button", name="draw, fitted").click()
        page.get_by_label("Smiling").fill("1.5")
        assert "non-commercial" in page.locator(".vae-terms").inner_text()
    else:
        page.locator(".vae-strip button").first.click()
    assert eventually(page, lambda: content(page) != last)
    with page.expect_download() as download:
        page.get_by_role("button", name="save PNG").click()
    assert download.value.suggested_filename == f"{name}.png"
    assert page.said == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in page.asked)


def test_hold_and_compare_ends_where_it_was_held(page, exported):
    page.goto(exported[1].as_uri())
    page.wait_for_selector(".vae-picture[data-frame]")
    pictures, last = [], content(page)
    for slot in "AB":
        page.get_by_role("button", name="draw", exact=True).click()
        assert eventually(page, lambda last=last: content(page) != last)
        pictures.append(last := content(page))
        page.get_by_role("button", name=f"hold {slot}").click()
    for value, picture in zip("01", pictures, strict=True):
        page.get_by_label("A to B").fill(value)
        assert eventually(page, lambda picture=picture: content(page) == picture)
    page.get_by_label("A to B").fill("0.5")
    assert eventually(page, lambda: content(page) not in pictures)


def test_dragging_on_the_map_moves_z(page, exported):
    name, path = exported
    page.goto(path.as_uri())
    page.wait_for_selector(".vae-picture[data-frame]")
    chart = page.locator(".vae-map canvas")
    if name != "mnist-2d":
        assert chart.count() == 0
        return
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 6 / 7, box["y"] + box["height"] / 2, steps=20)
    page.mouse.up()

    def z() -> list[float]:
        return [float(page.get_by_label(re.compile(rf"^z\[{d}\]")).input_value()) for d in (0, 1)]

    # the map reaches from -3.5 to 3.5
    assert eventually(page, lambda: z() == pytest.approx([2.5, 0.0], abs=0.06))
    chart.focus()
    page.keyboard.press("ArrowUp")
    assert eventually(page, lambda: z() == pytest.approx([2.5, 0.1], abs=0.06))


def test_the_latest_position_wins_and_the_last_is_shown(page):
    # a decoder that paints z[0], and answers when it is let: 50 moves are not 50 decodings
    source = (export.SOURCES / "explorer.js").read_text()
    page.set_content("<div id=root></div>")
    page.add_script_tag(content=source)
    about = {"name": "t", "shape": [1, 2, 2], "dims": [{"dim": 0, "nats": None}], "limit": 3}
    page.evaluate(
        """(about) => {
            window.calls = 0; window.most = 0; window.waiting = [];
            const decode = (z) => new Promise((answer) => {
                const picture = new Uint8Array(4).fill(100 + Math.round(50 * z[0]));
                waiting.push(() => answer(picture));
                calls++; most = Math.max(most, waiting.length);
            });
            window.it = mount(document.getElementById("root"), about, decode, 3);
        }""",
        about,
    )
    page.evaluate(
        """async () => {
            const answered = () => {
                waiting.splice(0).forEach((answer) => answer());
                return new Promise((r) => setTimeout(r));
            };
            for (let i = 1; i <= 50; i++) {
                it.go([i / 50]);
                await new Promise((r) => setTimeout(r));
                if (i % 10 === 0) await answered();
            }
            while (waiting.length) await answered();
        }"""
    )
    assert content(page)[0] == 150
    assert page.evaluate("calls") < 20
    assert page.evaluate("most") == 3


def test_an_answer_that_comes_late_is_not_shown_over_a_newer_one(page):
    page.set_content("<div id=root></div>")
    page.add_script_tag(content=(export.SOURCES / "explorer.js").read_text())
    about = {"name": "t", "shape": [1, 2, 2], "dims": [{"dim": 0, "nats": None}], "limit": 3}
    page.evaluate(
        """(about) => {
            window.waiting = {};
            const decode = (z) => new Promise((answer) => {
                const picture = new Uint8Array(4).fill(100 + Math.round(50 * z[0]));
                waiting[z[0]] = () => {
                    answer(picture);
                    return new Promise((r) => setTimeout(r));
                };
            });
            window.it = mount(document.getElementById("root"), about, decode, 3);
            it.go([1]);
        }""",
        about,
    )
    page.evaluate("waiting[1]()")
    assert content(page)[0] == 150
    page.evaluate("waiting[0]()")
    assert content(page)[0] == 150


def test_a_jump_takes_the_attributes_back(page):
    page.set_content("<div id=root></div>")
    page.add_script_tag(content=(export.SOURCES / "explorer.js").read_text())
    about = {"name": "t", "shape": [1, 2, 2], "dims": [{"dim": 0, "nats": None}], "limit": 3}
    about |= {"directions": [{"name": "smile", "v": [2.0]}]}
    decode = "(z) => new Uint8Array(4).fill(100 + 10 * z[0])"
    page.evaluate(
        f"(about) => {{ window.it = mount(document.getElementById('root'), about, {decode}); }}",
        about,
    )
    page.get_by_label("smile").fill("1.5")
    assert page.evaluate("Array.from(it.current())") == [3.0]
    assert eventually(page, lambda: content(page)[0] == 130)
    page.get_by_role("button", name="mean").click()
    assert page.evaluate("Array.from(it.current())") == [0.0]
    assert page.get_by_label("smile").input_value() == "0"


def test_errors_are_shown_not_swallowed(page):
    page.set_content("<div id=root></div>")
    page.add_script_tag(content=(export.SOURCES / "explorer.js").read_text())
    about = {"name": "t", "shape": [1, 2, 2], "dims": [{"dim": 0, "nats": None}], "limit": 3}
    page.evaluate(
        "(about) => mount(document.getElementById('root'), about,"
        "() => { throw new Error('the kernel does not answer') })",
        about,
    )
    status = page.locator(".vae-status")
    assert eventually(page, lambda: "the kernel does not answer" in status.inner_text())


@pytest.mark.parametrize("latent_dim", [1, 2, 256])
@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 32, 32)])
def test_any_model_gets_a_page_and_a_widget(tmp_path, shape, latent_dim):
    likelihood = "bernoulli" if shape[0] == 1 else "gaussian"
    model = VAE(shape, latent_dim, widths=(4,), likelihood=likelihood).eval()
    explorer_data = widgets.explorer_data(model, "any", None, [1.0] * latent_dim)
    assert export.write_page(model, explorer_data, "", tmp_path / "page.html") < 4e6
    json.dumps(explorer_data, allow_nan=False)
    explorer, sent = widgets.LatentExplorer(model, explorer_data), []
    explorer.send = lambda message, buffers=None: sent.append((message, buffers))
    explorer._answer(None, {"number": 7, "view": 0.5, "z": [1] * latent_dim}, None)
    (message, (picture,)) = sent[0]
    assert message == {"number": 7, "view": 0.5}
    with torch.no_grad():
        mean = model.decode(torch.ones(1, latent_dim)).mean[0]
    shown = torch.frombuffer(bytearray(picture), dtype=torch.uint8).reshape(shape)
    assert (shown / 255 - mean.clamp(0, 1)).abs().max() <= 0.51 / 255


@pytest.fixture(scope="module")
def told():
    """A model of sprites, of whose latents two follow a factor; and what the explorer knows."""

    class Told(VAE):
        def encode(self, x):
            lit = (x.sum(3) > 0) * torch.arange(64.0)  # of each row with a white pixel its number
            y = lit.sum((1, 2)) / (lit > 0).sum((1, 2))
            noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
            mean = torch.stack([y, noise, x.sum((1, 2, 3)).sqrt()], 1)
            return torch.distributions.Normal(mean, torch.ones_like(mean))

    torch.manual_seed(0)
    model, images = Told((1, 64, 64), 3, "mlp", hidden=2), data.load("sprites", "test")
    return model, images, widgets.explorer_data(model, "told", images, [1.0, 0.5, 0.2])


def test_the_factor_that_a_latent_follows_is_found(told):
    model, images, found = told
    assert derived.followed(model, images) == {0: {"follows": "y"}, 2: {"follows": "scale"}}
    assert [d.get("follows") for d in found["dims"]] == ["y", None, "scale"]
    assert derived.followed(model, data.load("mnist-5k", "val")) == {}
    assert widgets.still(model, found).startswith(b"\x89PNG")


def test_a_slider_is_named_by_the_factor_that_it_follows(page, told, tmp_path):
    model, _, found = told
    export.write_page(model, found, "", tmp_path / "told.html")
    page.goto((tmp_path / "told.html").as_uri())
    text = page.inner_text("body")
    assert "z[0] (y), 1.0 nats" in text
    assert "z[1], 0.5 nats" in text


@pytest.mark.parametrize("prior", ["vamp", "flow"])
def test_draw_is_of_the_models_own_prior(page, tmp_path, prior):
    sizes = {"n_inputs": 3} if prior == "vamp" else {"n_layers": 2, "hidden": 4}
    model = VAE((1, 6, 5), 3, "mlp", hidden=4, prior=prior, prior_args=sizes).eval()
    with torch.no_grad():  # far from N(0, I): each latent near 6
        if prior == "vamp":
            model.encoder.to_latent.bias[:3] = 6
        for coupling in model.prior.flow.transform.transforms if prior == "flow" else ():
            coupling.hyper[-1].bias.view(-1, 2)[:, 0] = -6
        assert model.prior.sample(500).mean(0).sub(6).abs().max() < 1
    export.write_page(model, widgets.explorer_data(model, "far"), "", tmp_path / "far.html")
    page.goto((tmp_path / "far.html").as_uri())
    page.wait_for_selector(".vae-picture[data-frame]")
    assert page.get_by_label("draw's temperature").count() == 0
    values = page.locator(".vae-value")
    assert set(values.all_inner_texts()) == {"0.00"}
    for button, near in (("draw", 6), ("zero", 0)):
        page.get_by_role("button", name=button, exact=True).click()
        assert eventually(
            page, lambda near=near: all(abs(float(v) - near) < 5 for v in values.all_inner_texts())
        )
    assert page.said == []


def test_the_widget_asks_the_kernel_for_a_draw(page):
    """Its JavaScript over a kernel that answers with what it was asked, or with an error."""
    about = {"name": "t", "shape": [1, 2, 2], "limit": 3, "prior": "flow"}
    about["dims"] = [{"dim": d, "nats": None} for d in range(2)]
    page.set_content("<div id=root></div>")
    source = widgets.LatentExplorer._esm.replace("export default", "window.widget =")
    page.add_script_tag(content=source)
    page.evaluate(
        """(about) => {
            window.asked = [];
            const model = {
                get: () => about,
                on: (_, answer) => { model.answer = answer; },
                send: (request) => {
                    window.asked.push(request);
                    const { number, view, z } = request;
                    if (z) model.answer({ number, view }, [new DataView(new ArrayBuffer(4))]);
                    else if (window.broken) model.answer({ number, view, error: "no prior" }, []);
                    else model.answer({ number, view, z: [1.5, -2.25] }, []);
                },
            };
            window.widget.render({ model, el: document.getElementById("root") });
        }""",
        about,
    )
    page.get_by_role("button", name="draw", exact=True).click()
    values = page.locator(".vae-value")
    assert eventually(page, lambda: values.all_inner_texts() == ["1.50", "-2.25"])
    assert eventually(page, lambda: page.evaluate("asked.at(-1).z") == [1.5, -2.25])
    page.evaluate("window.broken = true")
    page.get_by_role("button", name="draw", exact=True).click()
    assert eventually(page, lambda: "no prior" in page.locator(".vae-status").inner_text())


def test_a_picture_leaves_the_number_of_threads_as_it_was():
    model, before = VAE(latent_dim=2, widths=(8,)).eval(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        widgets.pixels(model, torch.zeros(2))
        with pytest.raises(ValueError, match="this model has D = 2"):
            widgets.pixels(model, torch.zeros(5))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_without_anywidget_there_are_plain_sliders():
    script = """
import sys
sys.modules["anywidget"] = None
from vaelib import models, widgets
model = models.VAE(latent_dim=12, widths=(4,)).eval()
explorer_data = widgets.explorer_data(model, "m", None, [float(d) for d in range(12)])
box = widgets.LatentExplorer(model, explorer_data)
sliders, image, trouble = box.children
assert [s.description for s in sliders.children][:2] == ["z[11]", "z[10]"], sliders.children
before = image.value
sliders.children[0].value = 3.0
assert image.value != before and trouble.value == ""
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = VAE(latent_dim=2, widths=(4,)).eval()
    explorer_data = widgets.explorer_data(model, "broken", None)
    model.decoder.conv_out.conv.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        export.write_page(model, explorer_data, "", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    explorer, sent = widgets.LatentExplorer(model, explorer_data), []
    explorer.send = lambda message, buffers=None: sent.append(message)
    explorer._answer(None, {"number": 1, "view": 0.5, "z": [0.0, 0.0]}, None)
    assert "not finite" in sent[0]["error"]
    with pytest.raises(ValueError, match="does not have it"):
        export.describe(nn.Sequential(nn.ReLU()), [])


@pytest.mark.parametrize("latent_dim", [1, 2, 20])
def test_a_closed_notebook_shows_the_first_picture_and_where_it_is(latent_dim):
    model = VAE((3, 14, 10), latent_dim, widths=(4,), likelihood="gaussian").eval()
    images = torch.randint(255, (30, 3, 14, 10), dtype=torch.uint8)
    images = data.Images("own", "test", images, torch.arange(30) % 4)
    for some, n_starts in ((None, 0), (images, 0), (images, 5)):
        explorer_data = widgets.explorer_data(model, "m", some, n_starts=n_starts)
        bundle = widgets.LatentExplorer(model, explorer_data)._repr_mimebundle_()
        page = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).convert("RGB")
        z = explorer_data["starts"][0]["z"] if n_starts else [0.0] * latent_dim
        picture = Image.open(io.BytesIO(widgets.picture(model, z))).convert("RGB")
        top = (page.height - picture.height) // 2
        shown = page.crop((0, top, picture.width, top + picture.height))
        assert shown.tobytes() == picture.tobytes()
        beside = page.crop((picture.width, 0, page.width, page.height))
        assert len(beside.getcolors(10**6)) > 10  # map or sliders, and no empty paper


@pytest.mark.parametrize("shape", [(1, 10, 14), (3, 14, 10)])
def test_images_of_any_shape_are_there_to_start_from(shape):
    model = VAE(shape, 2, widths=(4,), likelihood="gaussian").eval()
    pixels = torch.randint(255, (30, *shape), dtype=torch.uint8)
    explorer_data = widgets.explorer_data(model, "m", data.Images("own", "test", pixels))
    assert explorer_data["shape"] == list(shape)
    assert [start["label"] for start in explorer_data["starts"][:2]] == ["image 1", "image 2"]
    for start, image in zip(explorer_data["starts"], pixels, strict=False):
        png = base64.b64decode(start["picture"].split(",")[1])
        shown = to_tensor(Image.open(io.BytesIO(png)))
        assert (shown * 255 - image).abs().max() <= 1.01  # (g + u) / 256
        assert len(start["z"]) == 2
    assert len(explorer_data["points"]["z"]) == 30


@pytest.mark.parametrize(("name", "shareable"), [("celeba", False), ("mnist-5k", True)])
def test_images_go_into_a_page_where_they_may(tmp_path, monkeypatch, name, shareable):
    model = VAE((3, 16, 16), 2, widths=(4,), likelihood="gaussian").eval()
    faces = data.Images(name, "test", torch.randint(255, (30, 3, 16, 16), dtype=torch.uint8))
    seen = []
    files.write_recipe(tmp_path, {"data": name})
    checkpoints.save(model, tmp_path)
    monkeypatch.setattr(widgets.derived, "images_for", lambda *_, **__: faces)
    monkeypatch.setattr(export, "write_page", lambda _, found, *__: seen.append(found) or 1)
    main(["export", str(tmp_path), "-o", str(tmp_path / "page.html")])
    (found,) = seen
    assert ("starts" in found, "points" in found) == (shareable, shareable)
    assert "non-commercial" in found.get("terms", "") or shareable


def test_a_model_whose_data_nobody_knows_is_explored_without(tmp_path, capsys):
    checkpoints.save(VAE(latent_dim=2, widths=(4,)), tmp_path)
    for recipe, reason in ((None, "names no data"), ({"data": "minst"}, "minst")):
        if recipe:
            files.write_recipe(tmp_path, recipe)
        _, explorer_data = widgets.of_checkpoint(str(tmp_path))
        assert "starts" not in explorer_data
        (line,) = capsys.readouterr().out.splitlines()
        assert reason in line
        assert line.endswith("Going on without images to start from.")


def test_make_lab_sends_every_message_at_once(monkeypatch):
    config = PyFileConfigLoader("jupyter_server_config.py", str(ROOT / "jupyter")).load_config()
    connection = config.ServerApp.kernel_websocket_connection_class
    calls = []
    monkeypatch.setattr(connection.__base__, "connect", lambda _: calls.append("connected"))
    handler = types.SimpleNamespace(set_nodelay=calls.append)
    monkeypatch.setattr(connection, "websocket_handler", handler)
    connection().connect()
    assert calls == [True, "connected"]


SETTLED = """(explorer, before) => new Promise((done) => {
    const began = performance.now();
    let picture = null, since = began;
    const look = () => {
        const now = performance.now();
        const shown = explorer.querySelector(".vae-picture").toDataURL();
        if (shown !== picture) [picture, since] = [shown, now];
        if ((shown !== before && now - since > 400) || now - began > 60_000) done(shown);
        else setTimeout(look, 50);
    };
    look();
})"""


@pytest.fixture(scope="module")
def in_lab(browser, tmp_path_factory):
    """Notebook 07, opened in JupyterLab as `make lab` starts it."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = (ROOT / "notebooks" / "07-live-sliders.ipynb").read_text(encoding="utf-8")
    # with the digits that are always there, not with the ten thousand of a test split
    load = r"vaelib.load(\"mnist\", \"test\", fallback=True)"
    assert notebook.count(load) == 1
    notebook = notebook.replace(load, r"vaelib.load(\"mnist-5k\", \"val\")")
    (folder / "07.ipynb").write_text(notebook, encoding="utf-8")
    with lab(folder, str(ROOT / "jupyter")) as address, opened(browser, 120_000) as page:
        page.goto(f"{address}/lab/tree/07.ipynb")
        page.wait_for_selector(".jp-OutputArea-output img")
        page.address = address
        yield page


def test_a_notebook_shows_its_pictures_before_anything_runs(in_lab):
    in_lab.locator(".jp-Notebook").hover()
    in_lab.mouse.wheel(0, 20_000)
    in_lab.wait_for_function("document.querySelectorAll('.jp-OutputArea-output img').length >= 3")


def test_the_notebook_in_jupyterlab(in_lab):
    run_all(in_lab, ".vae-map .vae-mark")
    in_lab.wait_for_selector(".vae-picture[data-frame]")
    deep, flat, faces = in_lab.locator(".vae-explorer").all()
    for explorer in (deep, flat, faces):
        explorer.scroll_into_view_if_needed()
        before = explorer.evaluate("(e) => e.querySelector('.vae-picture').toDataURL()")
        slider = explorer.locator(".vae-right input[type=range]").first
        slider.focus()
        for _ in range(30):
            in_lab.keyboard.press("ArrowRight")
        by_key = explorer.evaluate(SETTLED, before)
        assert by_key != before
        box = slider.bounding_box()
        in_lab.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
        assert explorer.evaluate(SETTLED, by_key) != by_key
    chart = flat.locator(".vae-map canvas")
    chart.scroll_into_view_if_needed()
    before = flat.evaluate("(e) => e.querySelector('.vae-picture').toDataURL()")
    box = chart.bounding_box()
    in_lab.mouse.move(box["x"] + 150, box["y"] + 150)
    in_lab.mouse.down()
    in_lab.mouse.move(box["x"] + 60, box["y"] + 200, steps=10)
    in_lab.mouse.up()
    assert flat.evaluate(SETTLED, before) != before
    assert flat.locator(".vae-status").inner_text() == ""
    local = (in_lab.address, "data:", "blob:", "ws://127.0.0.1")
    assert [url for url in in_lab.asked if not url.startswith(local)] == []
    errors = [text for text in in_lab.said if "error" in text.lower()]
    assert errors == []

"""How live the sliders are: notebook 07 in a real browser, a key held and a pointer dragged;
and how long a picture takes in the pages without Python.

    python benchmarks/live.py

Starts JupyterLab, as it comes and as `make lab` does, runs the notebook in headless Chromium
(the system's, by Playwright for Python), moves a control for some seconds and notes, for every
picture that reaches the canvas, the milliseconds since the control was where it shows it.
"""

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@contextlib.contextmanager
def lab(folder: Path, settings: str = ""):
    """The address of a JupyterLab that serves `folder`, as it comes but for its token.

    `settings` is a folder of further ones, as `make lab` has.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}", "--allow-root",
        "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    # what is shown must not depend on news, settings or workspaces of whoever runs this
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"JUPYTER_CONFIG_DIR": home, "JUPYTERLAB_WORKSPACES_DIR": home}
        environment["JUPYTER_CONFIG_PATH"] = settings
        # cells out of sight are in the page too
        tracker = Path(home) / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
        tracker.parent.mkdir(parents=True)
        tracker.write_text('{"windowingMode": "none"}')
        environment["JUPYTERLAB_SETTINGS_DIR"] = home
        server = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(120):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api", timeout=5).close()
                    break
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def run_all(page, ready: str) -> None:
    """Run all cells of the notebook that is open, and wait until `ready` is there."""
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    # without a kernel it would ask for one
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector(ready, timeout=180_000)


NOTE = """(explorer) => {
    if (!explorer.waits)
        explorer.addEventListener("picture", (event) => explorer.waits.push(event.detail));
    explorer.waits = [];
}"""


def measure(page, explorer, move, seconds: float = 5.0) -> tuple[float, float, list[float]]:
    """Positions and pictures a second, and each picture's milliseconds, while `move` is called."""
    explorer.evaluate(NOTE)
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        move(n)
        n += 1
    spent = time.perf_counter() - began
    waits = explorer.evaluate("(explorer) => explorer.waits")
    page.wait_for_timeout(1000)
    return n / spent, len(waits) / spent, waits


DECODE = """() => {
    const net = attach(page.net, unpack(page.weights)), n = page.about.dims.length;
    return Array.from({ length: 60 }, () => {
        const z = Float32Array.from({ length: n }, () => 2 * Math.random() - 1);
        const began = performance.now();
        toBytes(run(net, { data: z, shape: [n] }), page.likelihood);
        return performance.now() - began;
    });
}"""


def pages(browser) -> None:
    """Milliseconds from z to bytes in each page of docs/, the first ten pictures aside."""
    print("| page | MB | median ms | 95 % ms |")
    print("|---|---|---|---|")
    for path in sorted((ROOT / "docs").glob("*-*.html")):
        page = browser.new_page()
        page.goto(path.as_uri())
        times = sorted(page.evaluate(DECODE)[10:])
        page.close()
        size = path.stat().st_size / 1e6
        print(f"| {path.stem} | {size:.2f} | {times[25]:.1f} | {times[47]:.1f} |")


def sliders(browser, address: str) -> dict[tuple[str, str], tuple]:
    """What `measure` says of each model in notebook 07 and each control."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/lab/tree/07-live-sliders.ipynb")
    run_all(page, ".vae-map .vae-mark")
    page.locator(".vae-explorer").nth(2).wait_for(timeout=180_000)
    page.wait_for_timeout(10_000)
    found = {}
    for name, explorer in zip(
        ("mnist-50d", "mnist-2d", "celeba-64"), page.locator(".vae-explorer").all(), strict=True
    ):
        explorer.scroll_into_view_if_needed()
        slider = explorer.locator(".vae-right input[type=range]").first
        slider.focus()

        def key(n):  # held: it goes down again and again, 30 to 40 times a second
            page.keyboard.down("ArrowRight" if n // 100 % 2 == 0 else "ArrowLeft")
            page.wait_for_timeout(20)

        found[name, "key held"] = measure(page, explorer, key)
        page.keyboard.up("ArrowRight")
        page.keyboard.up("ArrowLeft")
        box = slider.bounding_box()
        middle = box["y"] + box["height"] / 2

        def drag(n, box=box, middle=middle):
            share = 0.05 + 0.009 * abs(n % 200 - 100)  # there and back
            page.mouse.move(box["x"] + share * box["width"], middle)

        drag(0)
        page.mouse.down()
        found[name, "pointer dragged"] = measure(page, explorer, drag)
        page.mouse.up()
    return found


def main() -> None:
    from playwright.sync_api import sync_playwright

    servers = {"stock": "", "`make lab`": str(ROOT / "jupyter")}
    with (
        sync_playwright() as p,
        p.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        pages(browser)
        print("\n| server | model | control | positions/s | pictures/s | median ms | 95 % ms |")
        print("|---|---|---|---|---|---|---|")
        for server, settings in servers.items():
            with lab(ROOT / "notebooks", settings) as address:
                for (name, control), (moves, rate, waits) in sliders(browser, address).items():
                    late = sorted(waits)[int(0.95 * len(waits))]
                    print(
                        f"| {server} | {name} | {control} | {moves:.0f} | {rate:.0f} "
                        f"| {statistics.median(waits):.0f} | {late:.0f} |"
                    )


if __name__ == "__main__":
    main()

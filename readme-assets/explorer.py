"""Films the explorer in use, for README.md: a pointer dragged over the map of docs/mnist-2d.html.

    python readme-assets/explorer.py

Needs Chromium and Playwright for Python, as the tests of the explorer do.
"""

import io
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from live import CHROMIUM, FLAGS  # noqa: E402

N_FRAMES, MILLISECONDS = 64, 90


def place(t: float) -> tuple[float, float]:
    """Where on the map the pointer is, in shares of its width and height; t from 0 to 1."""
    angle = 2 * math.pi * t
    return 0.5 + 0.3 * math.sin(angle), 0.5 - 0.3 * math.sin(2 * angle)


def main() -> None:
    from playwright.sync_api import sync_playwright

    frames = []
    with (
        sync_playwright() as p,
        p.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        page = browser.new_page(viewport={"width": 720, "height": 640})
        page.goto((ROOT / "docs" / "mnist-2d.html").as_uri())
        page.wait_for_selector(".vae-picture[data-frame]")
        page.wait_for_timeout(500)
        whole = page.locator(".vae-explorer").bounding_box()
        chart = page.locator(".vae-map canvas").bounding_box()
        parts = ((".vae-legend", 0), (".vae-buttons", 0), (".vae-line", 1))  # the second slider
        below = [page.locator(name).nth(number).bounding_box() for name, number in parts]
        ends = max(box["y"] + box["height"] for box in below)
        for i in range(N_FRAMES):
            share = place(i / N_FRAMES)
            x, y = (
                chart[a] + s * chart[b]
                for a, b, s in zip("xy", ("width", "height"), share, strict=True)
            )
            page.mouse.move(x, y)
            page.mouse.down()
            page.wait_for_timeout(120)
            height = ends - whole["y"]
            width = whole["width"]
            clip = {"x": whole["x"], "y": whole["y"], "width": width, "height": height}
            shot = page.screenshot(clip=clip)
            frame = Image.open(io.BytesIO(shot)).convert("RGB")
            frame = ImageOps.expand(frame, (0, 0, 0, 6), "white")  # without what comes below
            x, y = x - whole["x"], y - whole["y"]  # a screenshot has no pointer: draw one
            arrow = [(x, y), (x, y + 17), (x + 4.5, y + 13), (x + 11, y + 12)]
            ImageDraw.Draw(frame).polygon(arrow, fill="black", outline="white")
            frames.append(frame)
    path = ROOT / "readme-assets" / "MNIST" / "explorer.gif"
    palette = frames[0].quantize(160, kmeans=3)  # one for all, so that still parts cost nothing
    first, *rest = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    first.save(path, save_all=True, append_images=rest, duration=MILLISECONDS, loop=0)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

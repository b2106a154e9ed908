"""The repository as a whole: links lead somewhere, tables are generated, imports point down."""

import ast
import re
import subprocess
from pathlib import Path

import nbformat
import pytest

from vaelib import checkpoints

ROOT = Path(__file__).parent.parent
ORDER = [
    "blocks", "likelihoods", "models", "objectives", "folders", "data", "evaluation", "checkpoints",
    "recipes", "training", "latents", "figures", "film", "gallery", "widgets",
    "exercises", "export", "__main__",
]  # fmt: skip
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("notebooks/*.ipynb")])


def prose(page: Path) -> str:
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    return "\n".join(
        c.source for c in nbformat.read(page, as_version=4).cells if c.cell_type == "markdown"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page)) + re.findall(r'src="([^"]+)"', prose(page))
    for link in links:
        if not link.startswith(("http", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_tables_of_results_are_those_of_metrics_json():
    for page in (ROOT / "README.md", ROOT / "checkpoints" / "README.md"):
        for kind in ("digits", "faces"):
            table = checkpoints.results_table(kind, every_block=page.parent.name == "checkpoints")
            assert table in page.read_text(encoding="utf-8")


def test_nothing_imports_upward():
    modules = {path.stem for path in (ROOT / "vaelib").glob("*.py")} - {"__init__"}
    assert modules == set(ORDER)
    for place, module in enumerate(ORDER):
        tree = ast.parse((ROOT / "vaelib" / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vaelib"):
                names = node.module.split(".")[1:] or [alias.name for alias in node.names]
                for name in names:
                    assert ORDER.index(name) < place, f"{module} imports {name}"


def test_every_published_picture_is_shown_or_at_least_there():
    for name in checkpoints.published():
        kinds = {
            p.stem.removeprefix(f"{name}-") for p in ROOT.glob(f"readme-assets/*/{name}-*.png")
        }
        assert kinds >= {"samples", "reconstructions", "interpolations", "traversals"}
        assert kinds >= {"latent-histogram", "loss-curve", "architecture"}


def test_no_pickle_is_loaded_anywhere():
    for path in (ROOT / "vaelib").glob("*.py"):
        assert not re.search(r"import pickle|torch\.load\(", path.read_text()), path


def test_files_committed_are_small():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.exists():
            assert path.stat().st_size < 12e6, name

"""The repository as a whole: links lead somewhere, tables are generated, imports point down."""

import ast
import graphlib
import re
import subprocess
from pathlib import Path

import nbformat
import pytest

import vaelib
from vaelib import checkpoints, data, publishing, recipes

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vaelib"
# the rooms in reading order, as the package's docstring lists them
README_WORDS = 1500  # 60 more for each later part: CONTRIBUTING.md
ORDER = re.findall(r"\w+", vaelib.__doc__.split("before it:")[1])
CORE = ("blocks", "likelihoods", "models", "objectives", "evaluation", "training")
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
    shown = []
    for page in (ROOT / "README.md", ROOT / "checkpoints" / "README.md"):
        text = page.read_text(encoding="utf-8")
        kinds = re.findall(r"<!-- (\S+): written by `vaelib figures` -->", text)
        assert kinds
        for kind in kinds:
            table = publishing.results_table(kind)
            assert f"{table}\n<!-- end of {kind} -->" in text
            shown += re.findall(r"^\| `(\S+)`", table, re.MULTILINE)
    every = checkpoints.published()
    alone = [name for name in every if not name.startswith(publishing.IN_SERIES)]
    assert sorted(shown[: len(alone)]) == alone  # one table of the README, each model once
    assert set(shown[len(alone) :]) == set(every)


def test_the_readme_is_short_and_its_tables_are_narrow():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= README_WORDS
    for line in text.splitlines():
        assert line.count("|") <= 6 or not line.startswith("|"), line


# --- the package: what imports what, and how long it is


def name_of(path: Path) -> str:
    """vaelib/data/mnist.py -> data.mnist; vaelib/data/__init__.py -> data; the package: ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str, module: str, modules, is_package: bool = False) -> set[str]:
    """The modules of vaelib that a source imports anywhere, nested and lazy imports too.

    What comes from the package itself ("from vaelib import VAE") is "".
    """
    here = module.split(".") if module else []
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            dotted = [a.name.split(".") for a in node.names]
            found |= {".".join(parts[1:]) for parts in dotted if parts[0] == "vaelib"}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = ["vaelib", *here[: len(here) - node.level + is_package], *parts]
            if parts[:1] == ["vaelib"]:
                base = ".".join(parts[1:])
                for alias in node.names:
                    inner = f"{base}.{alias.name}".lstrip(".")
                    found.add(inner if inner in modules else base)
    return found


def upward(sources: dict[str, str], order: list[str], packages=()) -> list[str]:
    """What is wrong with the imports of some sources by module name: each must point down.

    Between rooms by their order; inside a room that is a folder there must be no circle.
    """
    wrong, inside = [], {}
    for module, source in sources.items():
        room = module.split(".")[0]
        for other in imported(source, module, sources, module in packages):
            other_room = other.split(".")[0]
            if other_room == room:
                inside.setdefault(module, set()).add(other)
            elif not other or order.index(other_room) > order.index(room):
                wrong.append(f"{module} imports {other or 'the package'}")
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        wrong.append(f"in a circle: {', '.join(error.args[1])}")
    return wrong


def test_nothing_imports_upward():
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items() if name}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert {name.split(".")[0] for name in sources} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))
    assert upward(sources, ORDER, packages) == []


@pytest.mark.parametrize(
    "line",
    [
        "from vaelib.high import thing",
        "from vaelib import high",
        "from vaelib import high as other",
        "import vaelib.high",
        "import vaelib.high as high, os",
        "from . import high",
        "from .high import thing",
        "from vaelib import VAE",
        "import vaelib",
        "def lazy():\n    if True:\n        from vaelib.high import thing",
        "from vaelib.folder.last import thing",
        "from vaelib import folder",
    ],
)
def test_an_upward_import_is_found(line):
    order = ["low", "folder", "high"]
    rest = {"folder": "", "folder.first": "", "folder.last": "", "high": "from vaelib import low"}
    assert upward(rest | {"low": "import os\nfrom pathlib import Path"}, order, {"folder"}) == []
    assert len(upward(rest | {"low": line}, order, {"folder"})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("folder.first", "from vaelib.folder.last import thing"),
        ("folder.first", "from .last import thing"),
        ("folder.first", "from . import last"),
        ("folder.first", "from vaelib import folder"),
        ("folder.first", "from ..high import thing"),
        ("folder", "from ..high import thing"),
        ("folder", "from .. import high"),
    ],
)
def test_an_upward_import_from_a_folder_is_found(module, line):
    sources = {
        "low": "", "high": "from vaelib import low",
        "folder": "from .last import thing\nfrom .first import other",
        "folder.first": "from vaelib.low import thing",
        "folder.last": "def f():\n    from vaelib.folder import first",
    }  # fmt: skip
    order = ["low", "folder", "high"]
    assert upward(sources, order, {"folder"}) == []
    sources[module] += f"\n{line}"
    assert len(upward(sources, order, {"folder"})) == 1


def test_files_are_short():
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.js")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 300, f"{path.relative_to(ROOT)} has {lines} lines"


def lengths(path: Path) -> dict[str, int]:
    """Lines of every function in a file; of JavaScript, of those that end at their own indent."""
    text, found = path.read_text(encoding="utf-8"), {}
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name] = node.end_lineno - node.lineno + 1
        return found
    head = r"^( *)(?:export |async )*(?:function )?(\w+)\(.*\) \{$"
    for match in re.finditer(head, text, re.MULTILINE):
        end = re.compile(rf"^{match[1]}\}}", re.MULTILINE).search(text, match.end())
        if match[2] not in ("for", "if", "while", "catch"):
            found[match[2]] = text.count("\n", match.start(), end.start()) + 1
    return found


def test_functions_are_short(tmp_path):
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.js")]:
        for name, lines in lengths(path).items():
            assert lines <= 90, f"{name} in {path.relative_to(ROOT)} has {lines} lines"
    assert {"mount", "addMap"} <= lengths(PACKAGE / "explorer" / "explorer.js").keys()
    (tmp_path / "long.js").write_text("function f(x) {\n" + "  x();\n" * 89 + "}\n")
    (tmp_path / "long.py").write_text("class C:\n def f(x):\n" + "  x()\n" * 90)
    assert [lengths(tmp_path / f"long.{kind}") for kind in ("js", "py")] == [{"f": 91}] * 2


def test_the_core_can_be_read_in_an_evening():
    lines = {name: len(MODULES[name].read_text().splitlines()) for name in CORE}
    assert sum(lines.values()) < 1500, lines


def test_the_map_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)/` \| (.*) \|$", text, re.MULTILINE))
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    paths = [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]
    folders = {p.parts[0] for p in paths if len(p.parts) > 1 and not p.parts[0].startswith(".")}
    assert rows.keys() == folders


def test_pictures_know_no_data_set_by_name():
    names = {source.name for source in data.SOURCES}
    rooms = {"figures", "film", "gallery", "widgets", "export", "publishing"}
    for module in (name for name in MODULES if name.split(".")[0] in rooms):
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in names, f"{module} knows {node.value}"


def test_every_published_picture_is_shown_or_at_least_there():
    for name in checkpoints.published():
        kinds = {
            p.stem.removeprefix(f"{name}-") for p in ROOT.glob(f"readme-assets/*/{name}-*.png")
        }
        assert kinds >= {"samples", "loss-curve"}
        if recipes.read(checkpoints.find(name)).get("two_stage"):
            continue  # only its prior is its own
        assert "reconstructions" in kinds
        if not name.startswith(publishing.IN_SERIES):
            assert kinds >= {"interpolations", "traversals", "latent-histogram"}


def test_no_pickle_is_loaded_anywhere():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"import pickle|torch\.load\(", path.read_text()), path


def test_files_committed_are_small():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.exists():
            assert path.stat().st_size < 12e6, name

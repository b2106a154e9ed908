"""Notebooks: every solution passes its check, every page follows the template.

That they run from top to bottom is nbval's part; see the Makefile.
"""

import contextlib
import io
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch

from vaelib import data, exercises

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?```python\n(.*?)```", re.DOTALL)


def cells(path):
    return nbformat.read(path, as_version=4).cells


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_solution_passes_its_check_and_plausible_wrong_answers_do_not(path, monkeypatch):
    """Set up, then for each exercise: the stub, the solution, wrong answers, each checked."""
    load = data.load

    def some(name, *args, **kwargs):  # ten thousand digits take half a minute to encode
        images = load(name, *args, **kwargs)
        return images.subset(2000) if name == "mnist" else images

    monkeypatch.setattr(data, "load", some)
    space, waiting, n_solved = {"display": lambda *_, **__: None}, None, 0
    for cell in cells(path):
        if tagged(cell, "setup"):
            exec(cell.source, space)
        elif tagged(cell, "exercise"):
            assert " = None" in cell.source
            stub, notes = cell.source, cell.metadata["exercise"]
            assert notes.keys() == {"minutes", "points", "expect", "wrong"}
        elif tagged(cell, "check"):
            waiting = cell.source
        elif waiting and (found := SOLUTION.search(cell.source)):
            number = re.search(r"answer_(\d+)", stub).group(1)
            wrong = [w if "answer_" in w else f"answer_{number} = {w}" for w in notes["wrong"]]
            said = []
            for answer in (stub, found.group(1), *wrong):
                exec(answer, space)
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(waiting, space)
                said.append(out.getvalue().strip().removeprefix(f"Exercise {number}: "))
            assert said == ["not attempted.", "correct.", *["not yet."] * len(wrong)]
            assert len(wrong) >= 3
            waiting, n_solved = None, n_solved + 1
    n_exercises = sum(tagged(cell, "exercise") for cell in cells(path))
    assert n_solved == n_exercises >= 3


def test_a_wrong_answer_is_not_called_right(capsys):
    from vaelib.exercises import check

    check(1, 5, lambda a: a == 4)
    assert capsys.readouterr().out == "Exercise 1: not yet.\n"


def test_a_seal_is_that_of_the_right_answer_and_of_what_is_near_it():
    for right, within, good, bad in (
        (4.0, 0.01, [4, 4.009, 3.991, torch.tensor(4.0)], [4.02, -4, 0]),
        ((0.3, -1.2), (0.01, 0.1), [(0.3, -1.2), (0.305, -1.25)], [(0.3, 1.2), (0.33, -1.2)]),
        ("a", None, ["a", "A", "(a)"], ["b", "ab", True]),
        (False, None, [False], [True, "False", 0.0]),
        ({"x", "y"}, None, [{"y", "x"}], [{"x"}, {"x", "y", "z"}]),
    ):
        is_right = exercises.sealed(exercises.seal_of(right, within), within)
        assert all(map(is_right, good))
        assert not any(map(is_right, bad))
    with pytest.raises(ValueError, match="give 2 numbers"):
        exercises.sealed("0", (1, 1))((2,))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_copies_for_students_and_for_instructors(path):
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.writes(notebook)
    theirs, ours = exercises.students(notebook), exercises.instructors(notebook)
    assert nbformat.writes(notebook) == before  # both are copies
    for copy in (theirs, ours):
        nbformat.validate(copy)
        assert [c.source for c in copy.cells if c.cell_type == "code"] == [
            c.source for c in notebook.cells if c.cell_type == "code"
        ]
    text = nbformat.writes(theirs)
    assert "<details>" not in text
    assert '"expect"' not in text
    assert not any(cell.get("outputs") for cell in theirs.cells)
    prose = "\n".join(cell.source for cell in ours.cells if cell.cell_type == "markdown")
    solutions = SOLUTION.findall("\n".join(cell.source for cell in notebook.cells))
    assert "<details>" not in prose
    for cell in notebook.cells:
        if tagged(cell, "exercise"):
            assert cell.metadata["exercise"]["expect"] in prose
            solution = solutions.pop(0)
            assert solution in prose
            assert solution not in text
    headings = [line for line in prose.splitlines() if line.startswith("### Exercise")]
    assert len(headings) == sum(tagged(cell, "exercise") for cell in notebook.cells)
    kept = "\n".join(cell.source for cell in theirs.cells)
    assert all(heading in kept for heading in headings)
    assert "## References" in kept


def test_copies_are_written_where_their_links_hold(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exercises, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    for name in ("00-start-here.ipynb", "README.md"):
        shutil.copy(FOLDER / name, tmp_path / "notebooks" / name)
    exercises.main()
    assert "student: 1 notebooks" in capsys.readouterr().out
    for folder in ("student", "instructor"):
        assert {p.name for p in (tmp_path / folder).iterdir()} == {
            "00-start-here.ipynb",
            "README.md",
        }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_has_its_rows_in_the_tables(path):
    number, folder = path.stem[:2], path.parent
    pages = [
        (folder.parent / "README.md", f"notebooks/{path.name}"),
        (folder / "README.md", path.name),
    ]
    for page, link in pages:
        rows = page.read_text(encoding="utf-8").splitlines()
        assert sum(row.startswith(f"| [{number} · ") and f"]({link}) |" in row for row in rows) == 1
    assert sum(row.startswith(f"| {number} | ") for row in rows) == 1  # for instructors


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_template(path):
    text = "\n".join(c.source for c in cells(path) if c.cell_type == "markdown")
    assert text.startswith(f"# {path.stem[:2]} · ")
    parts = ("**You will learn**", "**Before this**", "**Takes**", "## References", "## Where next")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "Check yourself" in text
    for cell in cells(path):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 25


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs_are_of_one_clean_run(path):
    code = [c for c in cells(path) if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert not any(out.output_type == "error" for out in cell.outputs)
        text = "\n".join(str(out) for out in cell.outputs)
        assert not re.search(r"(/home/|/root/|/work/|/tmp/|/Users/|C:\\\\)", text)
        # a closed notebook looks whole: widgets leave a picture, progress a plain line
        assert not re.search(r"object at 0x|HBox\(|%\||\b0step", text)
        for out in cell.outputs:
            if "application/vnd.jupyter.widget-view+json" in out.get("data", {}):
                assert "image/png" in out.data
    assert path.stat().st_size < 1.5e6
    # the state of widgets, half of a file's size, shows nothing that their pictures do not
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_there_is_room_below_a_solution(path):
    for cell in cells(path):
        assert not re.search(r"</details>\s+[^#\s]", cell.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_that_is_mentioned_is_linked(path):
    text = "\n".join(c.source for c in cells(path) if c.cell_type == "markdown")
    for start, number in re.findall(r"(.?)\b[Nn]otebook (\d\d)\b", text):
        assert start == "[", f"notebook {number}"
    for number, link in re.findall(r"\[[Nn]otebook (\d\d)\]\(([^)]+)\)", text):
        assert link.startswith(f"{number}-")


def test_each_notebook_leads_to_the_one_before_and_the_one_after():
    """In the order of the table in notebooks/README.md."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| \[(.+?)\]\((.+?\.ipynb)\)", text, re.MULTILINE)
    assert [file for _, file in order] == [path.name for path in NOTEBOOKS]
    for i, (_, file) in enumerate(order):
        expected = [("Next", *order[i + 1])] if i + 1 < len(order) else []
        expected += [("Previous", *order[i - 1])] if i else []
        last = cells(FOLDER / file)[-1].source
        assert last.startswith("## Where next\n")
        found = re.findall(r"^(Next|Previous): \[(.+?)\]\((.+?)\)", last, re.MULTILINE)
        assert found == expected


def test_the_explorer_stands_where_a_latent_space_is_shown():
    shown = {p.stem[:2] for p in NOTEBOOKS if any("LatentExplorer(" in c.source for c in cells(p))}
    assert shown == {"00", "05", "06", "07", "11"}

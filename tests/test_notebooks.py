"""Notebooks: every solution passes its check, every page follows the template.

That they run from top to bottom is nbval's part; see the Makefile.
"""

import contextlib
import io
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?```python\n(.*?)```", re.DOTALL)


def cells(path):
    return nbformat.read(path, as_version=4).cells


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_solution_passes_its_check_and_nothing_else_does(path):
    """Set up, then for each exercise: the stub, a wrong answer and the solution, each checked."""
    space, waiting, n_solved = {"display": lambda *_, **__: None}, None, 0
    for cell in cells(path):
        if tagged(cell, "setup"):
            exec(cell.source, space)
        elif tagged(cell, "exercise"):
            assert " = None" in cell.source
            stub = cell.source
        elif tagged(cell, "check"):
            waiting = cell.source
        elif waiting and (found := SOLUTION.search(cell.source)):
            said = []
            for answer in (stub, found.group(1)):
                exec(answer, space)
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(waiting, space)
                said.append(out.getvalue().strip())
            number = re.search(r"answer_(\d)", stub).group(1)
            assert said == [f"Exercise {number}: not attempted.", f"Exercise {number}: correct."]
            waiting, n_solved = None, n_solved + 1
    n_exercises = sum(tagged(cell, "exercise") for cell in cells(path))
    assert n_solved == n_exercises >= 3


def test_a_wrong_answer_is_not_called_right(capsys):
    from vaelib.exercises import check

    check(1, 5, lambda a: a == 4)
    assert capsys.readouterr().out == "Exercise 1: not yet.\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_template(path):
    text = "\n".join(c.source for c in cells(path) if c.cell_type == "markdown")
    assert text.startswith(f"# {path.stem[:2]} · ")
    parts = ("**You will learn**", "**Before this**", "**Takes**", "## References", "## Next")
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

"""The checks under the notebooks' exercises, and the copies of notebooks for students and teachers.

`python -m vaelib.exercises` (or `make copies`) writes those into student/ and instructor/.
"""

import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

from vaelib import files

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"  # there in a clone alone
FOLDED = re.compile(r"<details><summary>Solution</summary>\s*(.*?)\s*</details>\n*", re.DOTALL)


def check(number: int, answer, is_right: Callable) -> None:
    """Say whether an exercise's answer is right; None means that nobody has tried it yet.

    `is_right(answer)` returns a bool. Whatever it raises is shown, not hidden: a wrong shape
    says more than "wrong".
    """
    if answer is None:
        print(f"Exercise {number}: not attempted.")
        return
    print(f"Exercise {number}: {'correct.' if is_right(answer) else 'not yet.'}")


def sealed(seal: str, within: float | tuple[float, ...] | None = None) -> Callable:
    """Whether an answer has this seal: a check that does not show what is right.

    `within` is how near a number must come, about; of several numbers, one for each. Without it
    the answer is a word, True or False, or a set of words; capitals and brackets do not matter.
    """

    def is_right(answer) -> bool:
        cells = [[cell - 1, cell, cell + 1] for cell in _cells(answer, within)]
        tried = itertools.product(*cells) if within else [answer]
        return any(_hash(one) == seal for one in tried)

    return is_right


def seal_of(answer, within: float | tuple[float, ...] | None = None) -> str:
    """The seal of the right answer, to be written into its check."""
    return _hash(tuple(_cells(answer, within)) if within else answer)


def _cells(answer, within) -> list[int]:
    """Numbers in units of how near they must come."""
    if (several := isinstance(within, tuple)) and len(answer) != len(within):
        raise ValueError(f"give {len(within)} numbers")
    pairs = zip(answer, within, strict=True) if several else [(answer, within)]
    return [round(float(value) / unit) for value, unit in pairs] if within else []


def _hash(answer) -> str:
    answer = answer.item() if hasattr(answer, "item") else answer
    plain = answer.strip("() ").lower() if isinstance(answer, str) else answer
    plain = sorted(map(str.lower, plain)) if isinstance(plain, set) else plain
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:12]


def students(notebook):
    """A copy without outputs, solutions and what is meant for instructors."""
    copy = notebook.copy()
    copy.cells = [cell.copy() for cell in notebook.cells]
    for cell in copy.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = FOLDED.sub("", cell.source)
    copy.cells = [cell for cell in copy.cells if cell.source.strip()]
    return copy


def instructors(notebook):
    """A copy with solutions unfolded, and after each what to expect of students."""
    copy, notes = notebook.copy(), None
    copy.cells = [cell.copy() for cell in notebook.cells]
    for cell in copy.cells:
        notes = cell.metadata.get("exercise", notes)
        if cell.cell_type == "markdown" and (found := FOLDED.search(cell.source)):
            lines = [
                "**Solution.**",
                found[1],
                f"**For instructors.** {notes['minutes']} minutes, points: {notes['points']}. "
                f"{notes['expect']}",
                "The check refuses, among others:",
                "\n\n".join(f"```python\n{wrong}\n```" for wrong in notes["wrong"]),
            ]
            before, after = cell.source[: found.start()], cell.source[found.end() :]
            cell.source = "\n\n".join([before, *lines, after]).strip()
    return copy


def main() -> None:
    """Write both copies of every notebook beside notebooks/, from where their links hold too."""
    import nbformat

    for name, made in (("student", students), ("instructor", instructors)):
        folder = NOTEBOOKS.parent / name
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            copy = made(nbformat.read(path, as_version=4))
            files.write_text(folder / path.name, nbformat.writes(copy))
        files.write_text(folder / "README.md", (NOTEBOOKS / "README.md").read_text("utf-8"))
        print(f"{folder}: {len(list(folder.glob('*.ipynb')))} notebooks")


if __name__ == "__main__":
    main()

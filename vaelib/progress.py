"""Progress: a bar in a terminal; in a notebook one line of text, which is what stays there."""

import io
import sys

from tqdm import tqdm


class Line(tqdm):
    """A bar as a line of a notebook's output, redrawn in place."""

    def __init__(self, *args, **options):
        self.handle = None
        super().__init__(*args, **options | {"file": io.StringIO()})

    def __str__(self) -> str:
        of = f" of {self.total:,}" if self.total else ""
        done = f"{self.n:,}{of} {self.unit}s in {self.format_interval(self.format_dict['elapsed'])}"
        return ", ".join(filter(None, (self.desc, done, self.postfix)))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the line, or `msg` in its place."""
        from IPython.display import display

        shown = {"text/plain": str(self) if msg is None else msg}
        if self.handle:
            self.handle.update(shown, raw=True)
        else:
            self.handle = display(shown, raw=True, display_id=True)


def progress(*args, **options) -> tqdm:
    """tqdm's bar where this is a terminal or a log, a `Line` in a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    in_notebook = shell is not None and "IPKernelApp" in shell.config
    return (Line if in_notebook else tqdm)(*args, **options)

"""Progress: a bar in a terminal, a line of text in a notebook, lines now and then in a log."""

import io
import sys
import time

from tqdm import tqdm

COMPILING = "compiling, about a minute the first time"
PAUSE = 30.0  # seconds between two lines of a log, at least


class Text(tqdm):
    """Progress in words, for `display` to show; as a string, what there is to say now."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options | {"file": io.StringIO()})

    def __str__(self) -> str:
        now = self.format_dict
        of = f" of {self.total:,}" if self.total else ""
        done = f"{self.n:,}{of} {self.unit}s in {self.format_interval(now['elapsed'])}"
        left = ""
        if self.total and self.initial < self.n < self.total and now["elapsed"]:
            rate = now["rate"] or (self.n - self.initial) / now["elapsed"]
            left = f"{self.format_interval((self.total - self.n) / rate)} left"
        return ", ".join(filter(None, (self.desc, done, left, self.postfix)))


class Line(Text):
    """One line of a notebook's output, redrawn in place."""

    def __init__(self, *args, **options):
        self.handle = None
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the line, or `msg` in its place."""
        from IPython.display import display

        shown = {"text/plain": str(self) if msg is None else msg}
        if self.handle:
            self.handle.update(shown, raw=True)
        else:
            self.handle = display(shown, raw=True, display_id=True)


class Log(Text):
    """Lines in a file or a pipe: the first and the last, and in between one in a while.

    A while is `PAUSE`, later a fifth of the time that has passed: some 25 lines in two hours.
    After `unpause`, which is when what takes its time once is done, the next line comes at once.
    """

    def __init__(self, *args, **options):
        self.began, self.last, self.shown, self.ends = time.monotonic(), None, None, False
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, where it is time for one. `msg` "" is the end of what leaves nothing."""
        now = time.monotonic()
        due = self.last is None or now - self.last >= max(PAUSE, (now - self.began) / 5)
        if msg == "" or not (due or self.ends):
            return
        if (text := str(self)) != self.shown and sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
            self.last, self.shown = now, text

    def unpause(self) -> None:
        """Start the clock again."""
        super().unpause()
        self.last = None

    def close(self) -> None:
        """End with a line of what came of it."""
        self.ends = True
        super().close()


def first_is_done(bar: tqdm) -> None:
    """After a first step that took its time, as it compiled: measure the speed from here."""
    if getattr(bar, "postfix", None) == COMPILING:
        bar.postfix = None
    bar.unpause()
    bar.last_print_n = getattr(bar, "n", 0) + 1  # tqdm counts this step when the next one begins


def progress(*args, **options) -> tqdm:
    """tqdm's bar in a terminal, a `Line` in a notebook, a `Log` where nobody watches."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and "IPKernelApp" in shell.config:
        return Line(*args, **options)
    watched = sys.stderr is not None and sys.stderr.isatty()
    return (tqdm if watched else Log)(*args, **options)

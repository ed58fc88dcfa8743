"""What a person sees while a stage works: nothing for five seconds, then a bar.

On a terminal a bar that goes away when the work is done; elsewhere (a log, a pipe) one line about every ten seconds.
Both go to stderr. `Progress` is what `Context.progress` is: called with what is being done, how much of it is done and
how much there is.
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PATIENCE = 5.0  # seconds before anything is shown
EVERY = 10.0  # seconds between two lines where there is no terminal


class Progress:
    """Shows one piece of work at a time. `name` is put before it: the stage that is running."""

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.name = ""
        self._stream = stream or sys.stderr
        self._now = now
        self._what = ""
        self._began = self._shown = 0.0
        self._bars: Bars | None = None
        self._bar: TaskID | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._now()
        if what != self._what:
            self.close()
            self._what, self._began, self._shown = what, now, now
        if now - self._began >= PATIENCE:
            if self._stream.isatty():
                self._draw(done, total)
            elif now - self._shown >= EVERY and done < total:
                self._shown = now
                self._line(done, total, now - self._began)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Takes the bar away; the next call begins a new piece of work."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._bar, self._what = None, None, ""

    def _line(self, done: int, total: int, seconds: float) -> None:
        left = f", about {seconds / done * (total - done):.0f} s left" if done else ""
        share = f" ({100 * done / total:.0f} %)" if total else ""
        print(
            f"{self.name}: {self._what} {done:,} of {total:,}{share}, {seconds:.0f} s{left}",
            file=self._stream,
            flush=True,
        )

    def _draw(self, done: int, total: int) -> None:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            text = TextColumn("{task.description}")
            self._bars = Bars(text, *columns, console=Console(file=self._stream), transient=True)
            self._bars.start()
            self._bar = self._bars.add_task(f"{self.name}: {self._what}", total=total)
        assert self._bar is not None
        self._bars.update(self._bar, completed=done, total=total)

"""How commands look and end on the terminal."""

import gc
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from tasks.core.errors import AutodidactError

if TYPE_CHECKING:
    from rich.table import Table


class Lines(logging.Handler):
    """Writes each message as a plain line to where stderr leads now."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def listen() -> None:
    """Lets the terminal hear what the stages and their engines say: `tasks` itself only logs."""
    said = logging.getLogger("tasks")
    said.setLevel(logging.INFO)
    said.handlers, said.propagate = [Lines()], False  # Prefect's handlers would say it again


def code(command: Callable[[], object]) -> int:
    """Runs the command; an error raised on purpose becomes one message and its exit code."""
    listen()
    try:
        command()
    except AutodidactError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def quickly() -> None:
    """Spares the interpreter its last collection: walking through all that torch made takes more than a second."""
    gc.freeze()


def empty(columns: Sequence[str], left: Collection[str]) -> "Table":
    """A table without rows; columns are flush right, those in `left` flush left."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    for column in columns:
        made.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return made

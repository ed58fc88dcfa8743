"""How every `python -m flows.*` ends: its message on stderr and its exit code, 0 done, 1 failed, 2 bad input."""

import gc
import sys
from collections.abc import Callable

from tasks.core.errors import AutodidactError


def code(command: Callable[[], object]) -> int:
    """Runs the command; an error raised on purpose becomes one message and its exit code."""
    try:
        command()
    except AutodidactError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def quickly() -> None:
    """Spares the interpreter its last collection: walking through all that torch made takes more than a second."""
    gc.freeze()

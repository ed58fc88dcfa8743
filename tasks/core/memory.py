"""Running out of memory, a GPU's or the machine's: how libraries say it, and the one error that it becomes here."""

import contextlib
import textwrap
from collections.abc import Iterator

from tasks.core.errors import AutodidactError, OutOfMemory

WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")
LONGEST = 160  # characters that are shown of what a library says


def is_short(error: BaseException) -> bool:
    """Whether a library says that memory did not suffice. PyTorch's own class for it is that of GPUs only."""
    if isinstance(error, AutodidactError):
        return False  # said already
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in said for words in WORDS)
    )


def reason(error: BaseException) -> str:
    """The beginning of what the error says, on one line; its type where it says nothing."""
    first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return textwrap.shorten(first, LONGEST, placeholder=" ...")


@contextlib.contextmanager
def told(what: str, advice: str = "") -> Iterator[None]:
    """Raises `OutOfMemory`, "`what` (the library's words); `advice`", in place of a library's error."""
    try:
        yield
    except Exception as error:
        if not is_short(error):
            raise
        raise OutOfMemory(f"{what} ({reason(error)})" + (f"; {advice}" if advice else "")) from error

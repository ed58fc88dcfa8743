"""How long importing libraries took: most of a short stage is that, and it is reported beside the work.

Imports are lazy here, so they happen in the middle of the work; `install` wraps the import statement and adds up the
time of outermost imports, whichever thread runs them.
"""

import builtins
import threading
import time
from collections.abc import Mapping, Sequence
from types import ModuleType

_nesting = threading.local()
_lock = threading.Lock()
_import = builtins.__import__
_total = 0.0


def install() -> None:
    """Counts from now on; calling it again changes nothing."""
    if builtins.__import__ is _import:
        builtins.__import__ = _timed


def seconds() -> float:
    """Seconds spent in import statements since `install`."""
    return _total


def _timed(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    global _total
    if getattr(_nesting, "inside", False):
        return _import(name, globals, locals, fromlist, level)
    _nesting.inside = True
    began = time.perf_counter()
    try:
        return _import(name, globals, locals, fromlist, level)
    finally:
        _nesting.inside = False
        with _lock:
            _total += time.perf_counter() - began

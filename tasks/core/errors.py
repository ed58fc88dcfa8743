"""Every error that autodidact raises on purpose.

Each also inherits the standard-library error it refines, so that a caller who knows nothing of this
module can still catch it. A message says what was given, why it cannot work and what to do.
`BadInput` is found before any work (exit code 2); `StageFailed` while a stage runs (exit code 1).
"""

import difflib
from collections.abc import Iterable


class AutodidactError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what `python -m flows.*` returns."""

    exit_code = 1


class BadInput(AutodidactError, ValueError):
    """Parameters, files or models that cannot work, found before any work was done."""

    exit_code = 2


class UnknownName(BadInput, KeyError):
    """A key, block, recipe or family that does not exist; the message names the nearest that does."""

    def __str__(self) -> str:
        return str(self.args[0])


class TableMismatch(BadInput, TypeError):
    """A Parquet file whose columns or types are not those of its table."""


class MissingArtifact(BadInput, FileNotFoundError):
    """An input artifact that is not there; usually `dvc repro` or `dvc pull` makes it."""

    def __str__(self) -> str:
        return str(self.args[0])


class Unwritable(BadInput, OSError):
    """A folder or file that has to be written to and cannot be."""

    def __str__(self) -> str:
        return str(self.args[0])


class LabelsForbidden(BadInput, PermissionError):
    """A stage asked for the truth in a run that declares `labels: false`."""

    def __str__(self) -> str:
        return str(self.args[0])


class StageFailed(AutodidactError, RuntimeError):
    """A stage that could not finish; nothing of what it wrote is kept as an artifact."""


class OutOfMemory(StageFailed, MemoryError):
    """Memory, a GPU's or the machine's, did not suffice; the message says what takes less."""


class EmptyDataset(StageFailed, ValueError):
    """Filtering left nothing to train on; the message says which block dropped how many and why."""


def missing(what: object) -> MissingArtifact:
    """The error for an input artifact that is not there."""
    return MissingArtifact(f"{what} is not there; `dvc repro` makes it, `dvc pull` or `dvc checkout` restores it")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message that names the nearest valid name; empty where none is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says, or the error's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """All of what a library's error says, 500 characters at most, or the error's name."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def unknown_name(kind: str, given: str, known: Iterable[str], where: str = "") -> UnknownName:
    """The error for a name that does not exist, with the nearest valid one."""
    names = sorted(known)
    place = f"{where}: " if where else ""
    hint = did_you_mean(given, names)
    return UnknownName(f"{place}unknown {kind} '{given}'{hint} (known: {', '.join(names) or 'none'})")

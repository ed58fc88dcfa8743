"""The figures of a calibration as tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.machine import terminal

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 140  # characters
SHARES = {  # of preferences: heading -> figure
    "prefers as\nthe human %": "accuracy",
    "ties %": "ties",
    "orders\ndisagree %": "disagree",
    "unread %": "unread",
    "prefers what is\nshown first %": "first_shown",
}


def table(record: Mapping[str, Any]) -> "Table":
    """A line for each critic that was asked."""
    return _of_labels(record) if record["kind"] == "labels" else _of_preferences(record)


def _of_labels(record: Mapping[str, Any]) -> "Table":
    columns = ("critic", "agreement %\n(95 % interval)", "kappa\n(95 % interval)", "AUROC\n(95 % interval)", "unread %",
               "scores of right\n(quartiles)", "scores of wrong\n(quartiles)")  # fmt: skip
    made = terminal.empty(columns, left=("critic",))
    for name, found in _asked(record):
        told = [
            _percent(found["agreement"]),
            _number(found["kappa"]),
            _number(found["auroc"]),
            _percent(found["unread"], False),
        ]
        made.add_row(name, *told, *(_spread(found["scores"][side]) for side in ("right", "wrong")))
    return made


def _of_preferences(record: Mapping[str, Any]) -> "Table":
    made = terminal.empty(("critic", *SHARES), left=("critic",))
    for name, found in _asked(record):
        made.add_row(
            name, *(_percent(found[figure], figure in ("accuracy", "first_shown")) for figure in SHARES.values())
        )
    return made


def _asked(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, found) for name, found in record["critics"].items() if not found["left_out"]]


def _percent(figure: Mapping[str, float | None], ends: bool = True) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "-"
    told = f"{100 * value:.1f}"
    return f"{told} ({100 * low:.1f}-{100 * high:.1f})" if ends and low is not None and high is not None else told


def _number(figure: Mapping[str, float | None]) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else "")


def _spread(ends: list[float] | None) -> str:
    return "-" if ends is None else " ".join(f"{end:.2f}" for end in ends[1:4])

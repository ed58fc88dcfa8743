"""The table of all iterations: `python -m flows.summary`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flows.history.overview import WIDER, WIDTH, benchmarks, small, table
from flows.machine import terminal
from tasks.core.catalog import ARTIFACTS

if TYPE_CHECKING:
    from rich.console import Console


def show(root: Path, console: "Console | None" = None) -> None:
    """Prints the table and where to look next; at least as wide as the table needs, whatever the terminal."""
    from rich.console import Console

    out = console or Console(highlight=False)
    out.width = max(out.width, WIDTH + WIDER * len(benchmarks(root)))
    out.print(table(root))
    if few := small(root):
        out.print(few)
    if (root / ARTIFACTS["report"].path / "report.md").is_file():
        out.print("all figures: data/report/report.md    curves: make ui")
    else:
        out.print("all figures: data/i*/evaluation/metrics.json    curves: make ui")


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: show(Path.cwd())))

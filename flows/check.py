"""Refuses what cannot work, before any work: `python -m flows.check`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.machine import terminal
from flows.params import file
from flows.run.ready import check


def command(
    estimate: Annotated[
        bool, typer.Option(help="Requests, tokens, time, cost and disk of what would run now.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="With --estimate: of all stages, up to date or not.")
    ] = False,
    seconds: Annotated[
        float,
        typer.Option("--trial", min=0, help="With --estimate: measure for so many seconds at most; 0: not at all."),
    ] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="With --estimate: every figure, for programs.")] = False,
) -> None:
    """Whether params.yaml can work, before any work."""
    root = Path.cwd()
    said = check(root)
    if not (estimate and as_json):
        print(said)
    if estimate:
        from flows.estimate import table
        from flows.estimate.totals import estimate as estimated
        from flows.run import graph

        made = estimated(root, file.load(root), graph.stale(root), everything, seconds)
        table.show(made, as_json)


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

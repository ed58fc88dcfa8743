"""The life of a row or model: `python -m flows.trace ID`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.history import lives
from flows.history.artifacts import Record
from flows.history.page import page
from flows.machine import terminal


def show(record: Record, everything: bool) -> None:
    """Prints the record; styles and nothing else are left out where the output is no terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line, style in page(record, everything).lines:
        console.print(Text(line, style))


def command(
    id: Annotated[str, typer.Argument(help="of a prompt, candidate, dataset row or model; six characters are enough")],
    everything: Annotated[bool, typer.Option("--all", help="cut no list and no text")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the whole record, for programs")] = False,
) -> None:
    """Prints where something comes from and what became of it."""
    record = lives.life(Path.cwd(), id)
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        show(record, everything)


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

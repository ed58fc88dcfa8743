"""Two evolutions, commits, folders or iterations on the same held-out prompts:
`python -m flows.compare A B [--rows N] [--all] [--json]`.

A and B are each an iteration of this run (`i01`), a folder that holds a run, a commit, or an evolution by its name in
MLflow (or the digits of its id); `NAME@i03` is one iteration of those. Printed are the parameters that differ, accuracy
with 95 % intervals, the exact McNemar test on the same prompts, pass@k, tokens, and the prompts that went from wrong to
right and back. `--json` prints the whole record (flows/comparison/contrast.py). Reads artifacts, writes nothing.

Exit codes: 0, or 2 for an unknown name, artifacts that are gone, and different tasks.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from flows.comparison.contrast import contrast
from flows.comparison.shown import show
from flows.comparison.sides import side
from flows.machine import terminal

SIDE = "an iteration of this run, a folder, a commit or an evolution's name; NAME@i03: one of its iterations"


def command(
    a: Annotated[str, typer.Argument(help=SIDE)],
    b: Annotated[str, typer.Argument(help=SIDE)],
    rows: Annotated[int, typer.Option(min=0, help="changed prompts to show, each way")] = 3,
    everything: Annotated[bool, typer.Option("--all", help="cut no list and no text")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the whole record, for programs")] = False,
) -> None:
    """Prints how two runs or iterations differ, and which of them is better where that can be told."""
    with tempfile.TemporaryDirectory(prefix="compare-") as made:
        folders = [Path(made) / letter for letter in "ab"]
        for folder in folders:
            folder.mkdir()
        record = contrast(*(side(Path.cwd(), name, folder) for name, folder in zip((a, b), folders, strict=True)))
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        show(record, rows, everything)


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

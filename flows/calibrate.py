"""Critics against human judgements, before they are trusted:
`python -m flows.calibrate FILE [--iteration i01] [--column prompt=NAME]... [--json]`.

FILE (JSONL, JSON, CSV, TSV or Parquet) has the columns prompt, response, label or prompt, chosen, rejected
(flows/calibration/given.py). Every critic of params.yaml is asked about its rows: through the code of stage critique, with
the judge of the iteration, by default the first. Replies are stored like all others, so a second call asks for nothing.
Printed are agreement, Cohen's kappa, AUROC, scores and the share unread; of preferences the share that the critic shares,
ties, and whether it prefers a place. The same figures go to `.autodidact/calibration/` under the file's name, as JSON.
Nothing is written to data/.

Exit codes: 0, 1 where a judge could not be asked, or 2 for bad input.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.calibration.display import WIDTH, table
from flows.calibration.inquiry import calibrate
from flows.machine import terminal
from tasks.core.errors import BadInput


def show(record: dict[str, Any]) -> None:
    """Prints the table, what was left out and why, and where the figures are."""
    from rich.console import Console

    out = Console(highlight=False)
    out.width = max(out.width, WIDTH)
    out.print(
        f"{record['rows']:,} rows of {record['kind']}, judged by the policy of {record['judge']['path']}", markup=False
    )
    if any(not found["left_out"] for found in record["critics"].values()):
        out.print(table(record))
    for name, found in record["critics"].items():
        if found["left_out"]:
            out.print(f"{name} was not asked: {found['left_out']}", markup=False)
    out.print(
        f"requests: {record['requests']:,}, of which {record['asked']:,} were asked now and the others were stored"
    )
    out.print(f"figures: {os.path.relpath(record['stored'])}", markup=False)


def command(
    file: Annotated[Path, typer.Argument(help="human judgements: JSONL, JSON, CSV, TSV or Parquet")],
    iteration: Annotated[str | None, typer.Option(help="whose critics and judge; default: the first")] = None,
    column: Annotated[list[str] | None, typer.Option(help="a column's name in the file: prompt=question")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="every figure, for programs")] = False,
) -> None:
    """Whether the critics of params.yaml agree with humans."""
    names = dict(given.partition("=")[::2] for given in column or [])
    if unknown := sorted(names.keys() - {"prompt", "response", "label", "chosen", "rejected"}):
        raise BadInput(f"--column: given {unknown[0]!r}; the columns are prompt, response, label, chosen and rejected")
    record = calibrate(Path.cwd(), file, names, iteration)
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        show(record)


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

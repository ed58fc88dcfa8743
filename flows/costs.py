"""What every execution used and cost: `python -m flows.costs`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.history.account import Account, Spent, account
from flows.machine import terminal
from flows.params import file

if TYPE_CHECKING:
    from rich.table import Table


WIDTH = 124  # characters
COLUMNS = (
    "iteration", "stage", "runs", "requests\nmade", "prompt\ntokens", "completion\ntokens", "seconds", "engine\nbusy",
    "tokens\n/ second", "training\ntokens",
)  # fmt: skip


def as_json(found: Account) -> dict[str, Any]:
    """Stages, iterations and the whole run, with every figure of `paid` and `needed`."""

    def both(iteration: str | None) -> dict[str, Any]:
        return {which: found.figures(found.sum(which, iteration)) for which in ("paid", "needed")}

    iterations = list(dict.fromkeys(line.iteration for line in found.lines if line.iteration))
    return {
        "currency": found.prices.currency if found.priced else None,
        "stages": [
            {"iteration": line.iteration, "stage": line.stage, "state": line.state}
            | {which: found.figures(getattr(line, which)) for which in ("paid", "needed")}
            for line in found.lines
        ],
        "iterations": {
            iteration: {**both(iteration), "rows": found.rows.get(iteration, 0), **found.per_row(iteration)}
            for iteration in iterations
        },
        "run": {**both(None), "rows": sum(found.rows.values()), **found.per_row()},
    }


def table(found: Account) -> "Table":
    """A line for each stage that was run, a sum for each iteration and for the run."""
    columns = [*COLUMNS, *([f"cost\n{found.prices.currency}"] if found.priced else []), ""]
    made = terminal.empty(columns, left=("iteration", "stage", ""))
    iterations = list(dict.fromkeys(line.iteration for line in found.lines))
    for iteration in iterations:
        mine = [line for line in found.lines if line.iteration == iteration and line.state != "missing"]
        for line in mine:
            note = "" if line.state == "paid" else line.state
            made.add_row(
                iteration or "", line.stage, *_cells(found, line.paid, line.state in ("restored", "unknown")), note
            )
        if iteration and mine:
            total = sum((line.paid for line in mine), Spent())
            made.add_row(iteration, "sum", *_cells(found, total), _row_note(found, iteration), end_section=True)
    made.add_row("run", "paid", *_cells(found, found.sum("paid")), _row_note(found))
    made.add_row("run", "needed", *_cells(found, found.sum("needed")), "")
    return made


def _cells(found: Account, spent: Spent, blank: bool = False) -> list[str]:
    """The cells of one line; "-" for what did not happen or is not known."""
    least = ">= " if spent.unknown and spent.executions else ""
    width = len(COLUMNS) - 2 + found.priced
    if blank or (spent.unknown and not spent.executions):
        return ["-"] * width
    runs = f"{spent.executions}" + (f" ({spent.failed} failed)" if spent.failed else "")
    busy = f"{100 * spent.busy:.0f} %" if spent.busy else "-"
    speed = f"{spent.tokens_per_second:,.0f}" if spent.tokens_per_second else "-"
    numbers = [f"{value:,.0f}" if value else "-" for value in (spent.made, spent.prompt_tokens, spent.tokens)]
    trained = f"{spent.training_tokens:,.0f}" if spent.training_tokens else "-"
    cells = [runs, *numbers, f"{least}{spent.seconds:,.1f}", busy, speed, trained]
    return [*cells, f"{least}{spent.cost(found.prices):,.4f}"] if found.priced else cells


def _row_note(found: Account, iteration: str | None = None) -> str:
    """What an accepted row took."""
    each = found.per_row(iteration)
    if not each:
        return ""
    number = found.rows[iteration] if iteration else sum(found.rows.values())
    cost = f", {each['row_cost']:.3g} {found.prices.currency}" if "row_cost" in each else ""
    return f"{number:,} rows, {each['row_tokens']:,.0f} tokens{cost} each"


def command(
    as_json_: Annotated[bool, typer.Option("--json", help="For programs: every figure, nothing rounded away.")] = False,
) -> None:
    """What every stage, iteration and the run used and cost."""
    root = Path.cwd()
    found = account(root, file.load(root))
    if as_json_:
        print(json.dumps(as_json(found), indent=2))
        return
    from rich.console import Console

    out = Console(highlight=False)
    out.width = max(out.width, WIDTH)
    out.print(table(found))
    if any(line.state == "unknown" or line.paid.unknown for line in found.lines):
        out.print("unknown: no record fits these artifacts, or an execution was killed; sums leave it out (>=)")
    if not found.priced:
        out.print("no prices: set the section `prices` of params.yaml, which reruns nothing")


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

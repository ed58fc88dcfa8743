"""The record of a comparison on the terminal: differing parameters, accuracies with the test, pass@k, changed prompts."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flows.comparison.contrast import Record
from flows.history.page import printable
from flows.machine import terminal
from tasks.core.uncertainty import LEVEL

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 138  # characters
PARAMETERS = 20  # lines of them without --all
LETTERS = 160  # of a prompt or an answer without --all


def show(record: Record, rows: int, everything: bool, console: "Console | None" = None) -> None:
    """Prints the record, with so many changed prompts each way. Text of models cannot steer the terminal."""
    from rich.console import Console
    from rich.text import Text

    out = console or Console(highlight=False, soft_wrap=True)
    out.width = max(out.width, WIDTH)
    for line in _head(record, everything):
        out.print(Text(line))
    out.print(accuracies(record))
    if any(pair["pass"] for pair in record["iterations"]):
        out.print(passes(record))
    for line in (*_notes(record), *_changed(record, rows, everything)):
        out.print(Text(line))


def _head(record: Record, everything: bool) -> Iterator[str]:
    for letter, side in zip("AB", record["sides"], strict=True):
        yield f"{letter}  {side['name']}" + ("" if side["name"] == side["evolution"] else f"  ({side['evolution']})")
    given = record["parameters"]
    yield ""
    yield f"parameters that differ, A -> B: {len(given) or 'none'}"
    shown = given if everything else given[:PARAMETERS]
    yield from (f"  {printable(line)}" for line in shown)
    if len(shown) < len(given):
        yield f"  ... and {len(given) - len(shown)} more (--all)"
    yield ""


def accuracies(record: Record) -> "Table":
    """A line for each pair of iterations: accuracies, their difference, the paired test, tokens."""
    columns = ("iteration", "A: accuracy %\n(95 % interval)", "B: accuracy %\n(95 % interval)", "B - A\n(95 % interval)",
               "gained", "lost", "p", "B is", "A: tokens", "B: tokens")  # fmt: skip
    made = terminal.empty(columns, left=("iteration", "B is"))
    for pair in record["iterations"]:
        one, two = pair["accuracy"]
        test = pair["test"]
        cells = ["-"] * 5
        if test:
            difference = _cell(test["difference"], test["low"], test["high"], "+")
            cells = [difference, f"{test['gained']}", f"{test['lost']}", f"{test['p']:.3g}", test["verdict"]]
        shares = [_cell(side["share"], side["low"], side["high"]) for side in (one, two)]
        tokens = [f"{side['tokens']:,}" if side["tokens"] else "-" for side in (one, two)]
        made.add_row(_name(pair), *shares, *cells, *tokens)
    return made


def passes(record: Record) -> "Table":
    """A line for each pair of iterations and k."""
    columns = (
        "iteration",
        "k",
        "A: pass@k %\n(95 % interval)",
        "B: pass@k %\n(95 % interval)",
        "B - A\n(95 % interval)",
    )
    made = terminal.empty(columns, left=("iteration",))
    for pair in record["iterations"]:
        for passed in pair["pass"]:
            cells = [_mean(passed["first"]), _mean(passed["second"]), _mean(passed["difference"], "+")]
            made.add_row(_name(pair), f"{passed['k']}", *cells)
    return made


def _notes(record: Record) -> Iterator[str]:
    reasons = {pair["unpaired"] for pair in record["iterations"] if pair["unpaired"]}
    yield from (f"no paired test: {reason}" for reason in sorted(reasons))
    if any(pair["test"] for pair in record["iterations"]):
        yield f"p: exact McNemar test on the same held-out prompts, two-sided; better or worse where it is {LEVEL:g} or less"


def _changed(record: Record, rows: int, everything: bool) -> Iterator[str]:
    found = record["changed"]["rows"]
    if not record["iterations"][-1]["test"]:
        return
    name = _name(record["iterations"][-1])
    for right, told in ((True, "from wrong to right"), (False, "from right to wrong")):
        these = [row for row in found if row["right"] is right]
        yield ""
        yield f"{name}: {len(these)} {'prompt' if len(these) == 1 else 'prompts'} {told}"
        for row in these if everything else these[:rows]:
            yield f"  {row['prompt_id']}  {_text(row['prompt'], everything)}"
            yield f"    A {'wrong' if right else 'right'}:  {_answer(row, '', everything)}"
            yield f"    B {'right' if right else 'wrong'}:  {_answer(row, '_now', everything)}"
        if not everything and len(these) > rows:
            yield f"  ... and {len(these) - rows} more (--rows, --all)"


def _answer(row: Mapping[str, Any], which: str, everything: bool) -> str:
    """The response, and before it the answer that was read from it where that is not all of it."""
    answer, response = row[f"answer{which}"], row[f"response{which}"]
    if answer is None:
        return f"(no answer)  {_text(response, everything)}"
    same = answer.split() == response.split()
    return _text(answer if same else f"{answer}  <-  {response}", everything)


def _text(text: str | None, everything: bool) -> str:
    whole = printable(" ".join((text or "(its text is gone)").split()))
    return whole if everything or len(whole) <= LETTERS else f"{whole[:LETTERS]} ... ({len(whole)} characters, --all)"


def _name(pair: Record) -> str:
    one, two = pair["iterations"]
    return one if one == two else f"{one}, {two}"


def _mean(given: Mapping[str, float | None], sign: str = "") -> str:
    return _cell(given["mean"], given["low"], given["high"], sign)


def _cell(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    """In percent, or points: 35.0 (18.1-56.7), with a sign +5.0 (-2.5 to 12.5)."""
    if value is None:
        return "-"
    told = f"{100 * value:{sign}.1f}"
    if low is None or high is None:
        return told
    return f"{told} ({100 * low:.1f} to {100 * high:.1f})" if sign else f"{told} ({100 * low:.1f}-{100 * high:.1f})"

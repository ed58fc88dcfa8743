"""The comparison of two sides as one record of plain values, for the terminal and for programs.

Iterations of two evolutions are paired by their names, and a named iteration with a named one. Shares are in 0..1,
intervals are of 95 %, `p` is two-sided; null stands for what cannot be computed, and `unpaired` says why there is no
paired test. `changed` are the prompts of the last pair whose greedy answer was right for one side alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.comparison import paired
from flows.comparison.sides import Side
from flows.params import schema, sections, write
from tasks.core.errors import BadInput

Record = dict[str, Any]


def contrast(first: Side, second: Side) -> Record:
    """The record. Raises `BadInput` where there is nothing that both sides have: another task, or no iteration in common;
    `MissingArtifact` where a side has no artifacts."""
    if first.family != second.family:
        raise BadInput(
            f"{first.label} and {second.label} cannot be compared: they are different tasks, {first.family} and "
            f"{second.family} (prepare.family)"
        )
    pairs = _pairs(first, second)
    last, both = pairs[-1], [name for name, _ in pairs]
    return {
        "sides": [{"name": s.label, "evolution": s.evolution, "iteration": s.iteration} for s in (first, second)],
        "parameters": write.changes(_values(first, both), _values(second, both)),
        "iterations": [_pair(first, second, *pair) for pair in pairs],
        "changed": {"iterations": list(last), "rows": _changed(first, second, *last)},
    }


def _pairs(first: Side, second: Side) -> list[tuple[str, str]]:
    """Which iteration is compared with which."""
    if first.iteration and second.iteration:
        return [(first.iterations[0], second.iterations[0])]
    for side, other in ((first, second), (second, first)):
        if side.iteration and not other.iteration:
            raise BadInput(
                f"{side.label} is one iteration and {other.label} is a whole run; name one of its iterations: "
                f"{other.label}@{other.iterations[-1]}"
            )
    both = [(name, name) for name in first.iterations if name in second.iterations]
    if not both:
        raise BadInput(
            f"{first.label} and {second.label} have no measured iteration in common ({', '.join(first.iterations)} and "
            f"{', '.join(second.iterations)}); name one of each, as in {first.label}@{first.iterations[-1]}"
        )
    return both


def _values(side: Side, compared: Sequence[str]) -> dict[str, Any]:
    """The parameters that decide what a side computes: of a named iteration with its row, else as they are, without
    rows of iterations that are not compared."""
    if side.iteration is None:
        values = {name: value for name, value in side.params.items() if name not in schema.UNREAD}
        for table in ("iterations", "evaluations"):
            values[table] = {name: row for name, row in values[table].items() if name in compared}
        return values
    shared = {name: side.params[name] for name in schema.TOP if name in (*schema.SHARED, "engine", "prepare", "base")}
    row = sections.row(side.params, side.iteration)
    stages = [stage for stage in schema.LOOP if stage == "evaluate" or side.iteration in side.params["iterations"]]
    return shared | row | {stage: sections.section(side.params, stage, side.iteration) for stage in stages}


def _pair(first: Side, second: Side, one: str, two: str) -> Record:
    before, after = first.predictions(one), second.predictions(two)
    test, why = paired.paired(before, after), paired.apart(before, after)
    found: Record = {"iterations": [one, two], "accuracy": [], "unpaired": why, "test": None}
    for side, iteration, table in ((first, one, before), (second, two, after)):
        share, (low, high) = paired.accuracy(table)
        found["accuracy"].append({"share": share, "low": low, "high": high, "tokens": side.tokens(iteration)})
    if test is not None:
        low, high = test.interval
        found["test"] = {
            "prompts": test.prompts, "gained": test.gained, "lost": test.lost, "p": test.p, "verdict": test.verdict,
            "difference": test.difference, "low": low, "high": high,
        }  # fmt: skip
    found["pass"] = [
        {"k": passed.k}
        | {name: _interval(*getattr(passed, name)) for name in ("first", "second", "difference")}
        for passed in paired.passed(before, after)
    ]  # fmt: skip
    return found


def _interval(value: float | None, ends: tuple[float | None, float | None]) -> Mapping[str, float | None]:
    return {"mean": value, "low": ends[0], "high": ends[1]}


def _changed(first: Side, second: Side, one: str, two: str) -> list[Record]:
    """Prompts from wrong to right, then from right to wrong; none where the two cannot be paired."""
    before, after = first.predictions(one), second.predictions(two)
    if paired.apart(before, after) is not None:
        return []
    texts = second.prompts() or first.prompts()
    rows = paired.changed(before, after).sort("right", descending=True, maintain_order=True)
    return [{**row, "prompt": texts.get(row["prompt_id"])} for row in rows.iter_rows(named=True)]

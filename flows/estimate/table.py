"""How an estimate (`flows.estimate.totals`) is shown: a table with a line a stage, what it does not say, or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.estimate import trial
from flows.estimate.totals import Estimate, Measured, Need, name_of
from flows.machine import terminal
from flows.params.schema import Prices

if TYPE_CHECKING:
    from rich.table import Table

BUSY = 0.5  # of the cores: more load than this and the measurements are those of a busy machine
WIDTH = 150  # characters
CHECKPOINT = 12  # bytes for each parameter that is trained: its float32 weight and Adam's two moments


def as_json(made: Estimate) -> dict[str, Any]:
    """Every stage that is estimated, and what was measured."""
    stages = [
        {**asdict(need), "cost_at_most": need.cost(made.prices), "cost_expected": need.cost(made.prices, False)}
        for need in made.wanted
    ]
    current = [name_of((need.stage, need.iteration)) for need in made.needs if not need.runs]
    return {
        "stages": stages,
        "up_to_date": current,
        "measured": asdict(made.measured),
        "currency": made.prices.currency,
    }


def table(made: Estimate) -> "Table":
    """A line for each stage that takes something, a sum of each iteration and of the run."""
    priced = made.prices.any
    columns = [
        "iteration", "stage", "requests\nat most", "prompt\ntokens", "completion\ntokens, at most", "expected\nrequests",
        "engine\ntime", "training\ntokens", "training\ntime", "disk",
    ]  # fmt: skip
    columns += [f"cost at\nmost, {made.prices.currency}"] if priced else []
    shown = terminal.empty(columns, left=("iteration", "stage"))
    iterations = list(dict.fromkeys(need.counts_for for need in made.wanted))
    for iteration in iterations:
        mine = [need for need in made.wanted if need.counts_for == iteration]
        for need in mine:
            if need.requests or need.training_rows or (need.model_bytes or 0) + need.table_bytes > 0:
                shown.add_row(iteration or "", need.stage, *_cells([need], made.prices, priced))
        if iteration:
            shown.add_row(iteration, "sum", *_cells(mine, made.prices, priced), end_section=True)
    shown.add_row("run", "", *_cells(made.wanted, made.prices, priced))
    return shown


def _cells(needs: Sequence[Need], prices: Prices, priced: bool) -> list[str]:
    def total(name: str) -> str:
        value = sum(getattr(need, name) for need in needs)
        return f"{value:,.0f}" if value else "-"

    engine, trained = ([getattr(need, name) for need in needs] for name in ("engine_seconds", "training_seconds"))
    models_ = [need.model_bytes for need in needs]
    written = sum(need.table_bytes + need.reply_bytes for need in needs)
    disk = "unknown" if None in models_ else human(sum(value or 0.0 for value in models_) + written)
    cells = [total("requests"), total("prompt_tokens"), total("tokens"), total("expected_requests"), _span(engine)]
    cells += [total("training_tokens"), _span(trained), disk]
    costs = [need.cost(prices) for need in needs]
    known = [cost for cost in costs if cost is not None]
    return [*cells, f"{sum(known):,.2f}" if len(known) == len(costs) else "unknown"] if priced else cells


def _span(spans: Sequence[tuple[float, float] | None]) -> str:
    """Least and most time of several."""
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return "unknown"
    least, most = (sum(span[i] for span in known) for i in (0, 1))
    if not most:
        return "-"
    low, high = duration(least), duration(most)
    return low if low == high else f"{low} to {high}"


def duration(seconds: float) -> str:
    """4.2 s, 12 min or 3.1 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def human(number: float) -> str:
    """1.4 MB or 15.2 GB."""
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if number >= s), (1.0, "B"))
    return f"{number / scale:.1f} {unit}"


def remarks(made: Estimate) -> list[str]:
    """What the table does not say."""
    found = made.measured
    idle = [name_of((need.stage, need.iteration)) for need in made.needs if not need.runs]
    lines = []
    if idle and not made.everything:
        lines.append(f"up to date, not counted (--all counts them): {', '.join(idle)}")
    lines.append(
        "requests, completion tokens: at most, no two requests alike, every answer refused, every reply of full length. "
        "Early cut-off and DVC's run cache can spare more."
    )
    lines.append(
        f"expected, assumed: questions repeat as the seed corpus's do, replies are as long as {_lengths(found)}"
    )
    if found.calls or found.training:
        of = "the model that is there" if found.real else "the architecture with random weights"
        lines.append(
            f"time: of engine and trainer alone, from at most {made.seconds:.0f} s of measuring {of} here; least: a "
            "call's longest reply as the expected ones' and the faster steps; most: up to the limit and the slower ones"
        )
        if found.load > BUSY:
            lines.append(
                f"the machine was busy before measuring (load {found.load:.1f} a core): alone, a run may take a fraction of this"
            )
    if found.gpus and (hours := _hours(made.wanted)):
        lines.append(
            f"GPU-hours: {hours[0]:.2f} to {hours[1]:.2f}, of one GPU; several share them (runner.workers, accelerate) and take "
            "about as many together"
        )
    if found.problem:
        more = "; --trial SECONDS gives it more time" if found.problem.startswith(trial.STOPPED) else ""
        lines.append(f"time is unknown, or known in part: {found.problem}{more}")
    elif not found.calls:
        lines.append("engine time is unknown: nothing was measured (a server elsewhere is not asked)")
    if not made.prices.any:
        lines.append("no prices: set the section `prices` of params.yaml, which reruns nothing")
    if found.bytes is not None and found.parameters is not None:
        kept = sum(1 for need in made.wanted if need.model_bytes)
        more = human(CHECKPOINT * found.parameters)
        lines.append(
            f"disk: a model is {human(found.bytes)}, {kept} are written; DVC's cache holds artifacts once more where the file "
            f"system has no reflinks; while all weights are trained, each of up to 2 checkpoints takes about {more}"
        )
    return lines


def _hours(needs: Sequence[Need]) -> tuple[float, float] | None:
    """Least and most hours of engine and trainer together; None where some are unknown."""
    spans = [span for need in needs for span in (need.engine_seconds, need.training_seconds)]
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return None
    return sum(least for least, _ in known) / 3600, sum(most for _, most in known) / 3600


def _lengths(found: Measured) -> str:
    """Whose replies the expected ones are like."""
    if found.real and found.calls:
        cut = max(call.limit for call in found.calls)
        return f"the trial's, of {cut} tokens at most; where it cut them off they are taken to end as often later as before"
    return "the seed corpus's" if found.replies else "their limit"


def show(made: Estimate, as_json_: bool = False) -> None:
    """Prints the table and what it does not say, or everything as JSON."""
    if as_json_:
        print(json.dumps(as_json(made), indent=2))
        return
    if not made.wanted:
        print("everything is up to date (--all tells what it would take from nothing)")
        return
    from rich.console import Console

    out = Console(highlight=False)
    out.width = max(out.width, WIDTH)
    out.print(table(made))
    for line in remarks(made):
        print(line)

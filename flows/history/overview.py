"""The table at the end of a run: one line per iteration, then where to look next.

Everything comes from the artifacts (`data/iNN/evaluation/metrics.json`, `policy.json`, the tokens that the
tables count), only the seconds and, where params.yaml gives prices, what was paid (`flows.costs`) from the records;
without a record they are unknown. A figure that could not be computed, for a family without truth or a critic that
accepted nothing, is shown as "-". An iteration is said to be better or worse than the base model only where the paired
test of their held-out answers says so (`flows.comparison.paired`). Standard benchmarks come after the project's own figures, the first of them by name
where there are many, with the half-width of their 95 % interval.

`python -m flows.summary` prints it; nothing is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.comparison.paired import UNCLEAR, paired
from flows.history import account as history_account
from flows.history import lock, records
from flows.history.artifacts import Artifacts
from flows.machine import state, terminal
from flows.params import file
from tasks.blocks.evaluate.benchmarks import PREFIX, scores
from tasks.core.catalog import ARTIFACTS, BASE
from tasks.core.errors import TableMismatch
from tasks.core.uncertainty import Z95

if TYPE_CHECKING:
    from rich.table import Table


UNKNOWN = "unknown"
WIDTH = 124  # characters
WIDER = 16  # by so many for each benchmark
SHARES = {  # column -> figure of metrics.json, shown in percent
    "pass@8": "pass_at_8",
    "critique\nprecision": "critique_precision",
    "critique\nrecall": "critique_recall",
    "refined\nwrong\n->right": "refine_wrong_to_right",
    "refined\nright\n->wrong": "refine_right_to_wrong",
}
FEW = 100  # held-out prompts from which a figure means something
BENCHMARKS = 3  # columns of them, at most


def columns(benchmarks: Sequence[str]) -> list[str]:
    """The table's headings; `benchmarks`: figures of standard benchmarks."""
    own = [name.removeprefix(PREFIX).replace("_", "\n") for name in benchmarks]
    return [
        "iteration",
        "accuracy %\n(95 % interval)",
        f"against\n{BASE}",
        *SHARES,
        *own,
        "tokens",
        "seconds",
        "promoted",
    ]


def benchmarks(root: Path) -> list[str]:
    """The figures of standard benchmarks that the table shows, by name."""
    files = (root / ARTIFACTS["metrics"].at(iteration) for iteration in lock.iterations(file.load(root)))
    return scores(name for path in files for name in state.read_json(path) or {})[:BENCHMARKS]


def rows(root: Path) -> list[tuple[str, ...]]:
    """The table's cells, one tuple per evaluated iteration. Raises `BadInput` for an unreadable params.yaml."""
    params = file.load(root)
    seconds, against = _seconds(root, params), _against_base(root, lock.iterations(params))
    shown = benchmarks(root)
    found = []
    for iteration in lock.iterations(params):
        metrics = state.read_json(root / ARTIFACTS["metrics"].at(iteration)) or {}
        policy = state.read_json(root / ARTIFACTS["policy"].at(iteration)) or {}
        generated = sum(lock.tokens(root, iteration).values())
        promoted = "-" if iteration == BASE or "promoted" not in policy else "yes" if policy["promoted"] else "no"
        shares = [_percent(metrics.get(name)) for name in SHARES.values()]
        shares += [_benchmark(metrics, name) for name in shown]
        tokens = f"{generated:,}" if generated else "-"
        first = (iteration, _accuracy(metrics), against.get(iteration, "-"))
        found.append((*first, *shares, tokens, seconds.get(iteration, UNKNOWN), promoted))
    return found


def paid(root: Path) -> tuple[str, list[str]] | None:
    """Heading and cells of the column of costs, an iteration each; None where nothing has a price."""
    params = file.load(root)
    account = history_account.account(root, params) if "prices" in params else None
    if account is None or not account.priced:
        return None
    spent = [account.sum("paid", iteration) for iteration in lock.iterations(params)]
    told = [f"{'>= ' if one.unknown else ''}{one.cost(account.prices):,.2f}" for one in spent]
    return f"paid,\n{account.prices.currency}", [
        UNKNOWN if one.unknown and not one.executions else text for one, text in zip(spent, told, strict=True)
    ]


def table(root: Path) -> "Table":
    """The rows as a rich table."""
    headings, lines = columns(benchmarks(root)), rows(root)
    if extra := paid(root):
        headings = [*headings, extra[0]]
        lines = [(*cells, cell) for cells, cell in zip(lines, extra[1], strict=True)]
    made = terminal.empty(headings, left=("iteration", "promoted"))
    for cells in lines:
        made.add_row(*cells)
    return made


def small(root: Path) -> str | None:
    """A caution where so few prompts are evaluated that figures say little; None where there are enough."""
    counts = {name: _rows(root / ARTIFACTS[name].path) for name in ("heldout", "probe")}
    heldout, probe = counts["heldout"], counts["probe"]
    if heldout is None or probe is None or heldout >= FEW:
        return None
    half = 100 * Z95 * 0.5 / max(1, heldout) ** 0.5
    return (
        f"{heldout} held-out prompts: one accuracy is known to within {half:.0f} points, so this run checks the wiring; "
        f"`promoted` goes by the probe set, {probe} prompts"
    )


def _rows(path: Path) -> int | None:
    """The rows of a table, None where it is not there."""
    return pl.scan_parquet(path).select(pl.len()).collect().item() if path.is_file() else None


def _against_base(root: Path, iterations: Sequence[str]) -> dict[str, str]:
    """Points of accuracy that each iteration is above the base model on the same prompts, and whether that makes it better
    or worse; iterations that cannot be compared are left out."""
    artifacts, found = Artifacts(root), {}
    tables = {}
    for iteration in iterations:
        with suppress(TableMismatch):
            where, columns = pl.col("kind") == "greedy", ["prompt_id", "kind", "correct"]
            tables[iteration] = artifacts.table("predictions", iteration, where, columns)
    for iteration, table in tables.items():
        test = paired(tables[BASE], table) if iteration != BASE and BASE in tables else None
        if test is not None:
            verdict = "" if test.verdict == UNCLEAR else f" {test.verdict}"
            found[iteration] = f"{100 * test.difference:+.1f}{verdict}"
    return found


def _seconds(root: Path, params: Mapping[str, Any]) -> dict[str, str]:
    """Seconds of each iteration's executions; ">=" where some of them left no record."""
    files = lock.Files(root)
    known = records.records(root)
    spent: dict[str, list[float | None]] = {}
    for execution in lock.executions(root, params, files):
        if execution.counts_for:
            record = lock.record_of(execution, known, files)
            spent.setdefault(execution.counts_for, []).append(float(record.get("seconds") or 0.0) if record else None)
    return {iteration: _sum(parts) for iteration, parts in spent.items()}


def _sum(parts: Iterable[float | None]) -> str:
    given = list(parts)
    known = [part for part in given if part is not None]
    if not known:
        return UNKNOWN
    return f"{'' if len(known) == len(given) else '>= '}{sum(known):,.0f}"


def _accuracy(metrics: Mapping[str, Any]) -> str:
    low, high = _percent(metrics.get("accuracy_low")), _percent(metrics.get("accuracy_high"))
    share = _percent(metrics.get("accuracy"))
    return share if "-" in (share, low, high) else f"{share} ({low}-{high})"


def _benchmark(metrics: Mapping[str, Any], name: str) -> str:
    value, error = metrics.get(name), metrics.get(f"{name}_stderr")
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ±{Z95 * error:.3f}" if error is not None else "")


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else "-"

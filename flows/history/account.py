"""What the stages' executions used: requests, tokens, seconds, and cost at the prices of params.yaml.

Read from the records (`flows.history.records`), one for each execution, and from dvc.lock; nothing is estimated. Two sums:

paid      over all executions with these params (the evolution, see `flows.history`): stages that were run again, failed
          or interrupted are paid again; replies that were stored are not.
needed    the last execution of every stage alone, with the tokens of stored replies, as if it had been the only one:
          what these artifacts would cost from nothing.

A stage's figures are `paid` in this evolution, `restored` (its artifacts are those of an execution with other params,
which paid for them), `unknown` (no record fits the artifacts: DVC restored them, or the state folder was deleted) or
`missing` (not run). What is unknown is left out of sums; those of seconds and cost then read ">=". An execution that was killed leaves a
record without figures, so it counts as an execution and what it used is unknown.

engine seconds  while the engine was computing; its share of the executions' seconds is `busy`
training seconds  of train and base, libraries' import left out
cost  prompt and completion tokens, engine hours and training hours, each times its price; prices in one currency
rows  new rows of data/iNN/dataset, SFT and pairs: `per row` divides what the stages from synthesize to filter paid

`python -m flows.costs [--json]` prints the table; nothing is written.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flows.history import lock, records
from flows.history.lock import Files
from flows.history.records import Record
from flows.params import schema, sections
from flows.params.schema import Prices
from tasks.core.block import validate
from tasks.core.catalog import ARTIFACTS

MAKING = ("synthesize", "sample", "critique", "refine", "filter")  # the stages that make an iteration's rows


@dataclass(frozen=True)
class Spent:
    """Sums over executions. `requests`: replies that were wanted; `made`: those that were computed. `tokens` are
    completions. `unknown`: executions that are not in the sums, because nothing is known of them."""

    executions: int = 0
    failed: int = 0
    unknown: int = 0
    requests: float = 0
    made: float = 0
    prompt_tokens: float = 0
    tokens: float = 0
    training_tokens: float = 0
    seconds: float = 0.0
    engine_seconds: float = 0.0
    training_seconds: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def busy(self) -> float | None:
        """Share of the seconds in which the engine computed; above 1 where several engines did. None: no seconds."""
        return self.engine_seconds / self.seconds if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens per second of the busy engine, training tokens per second where there are only those."""
        if self.engine_seconds:
            return self.tokens / self.engine_seconds
        return self.training_tokens / self.training_seconds if self.training_seconds else None

    def cost(self, prices: Prices) -> float:
        """In the currency of `prices`."""
        return (
            (self.prompt_tokens * prices.prompt_tokens + self.tokens * prices.completion_tokens) / 1e6
            + self.engine_seconds / 3600 * prices.engine_hours
            + self.training_seconds / 3600 * prices.training_hours
        )


@dataclass(frozen=True)
class Line:
    """One stage of one iteration. `state`: paid, restored, unknown or missing."""

    iteration: str | None  # None for report
    stage: str
    state: str
    paid: Spent
    needed: Spent


@dataclass(frozen=True)
class Account:
    """All stages of the graph, the new rows of each iteration's dataset, and the prices."""

    lines: list[Line]
    rows: dict[str, int]
    prices: Prices

    @property
    def priced(self) -> bool:
        """Whether anything has a price."""
        return self.prices.any

    def sum(self, which: str, iteration: str | None = None) -> Spent:
        """`which`: paid or needed; of one iteration or, without one, of the whole run."""
        return sum((getattr(line, which) for line in self.lines if iteration in (None, line.iteration)), Spent())

    def per_row(self, iteration: str | None = None) -> dict[str, float]:
        """Tokens (prompt and completion) and cost that were paid for each new row; empty without rows, or where a
        part of it is unknown or was paid elsewhere."""
        iterations = [iteration] if iteration else list(self.rows)
        number = sum(self.rows.get(iteration, 0) for iteration in iterations)
        made = [line for line in self.lines if line.iteration in iterations and line.stage in MAKING]
        if not number or any(line.state != "paid" or line.needed.unknown for line in made):
            return {}
        paid = sum((line.paid for line in made), Spent())
        found = {"row_tokens": (paid.prompt_tokens + paid.tokens) / number}
        return found | ({"row_cost": paid.cost(self.prices) / number} if self.priced else {})

    def figures(self, spent: Spent) -> dict[str, float]:
        """Names and values for MLflow and `--json`; `cost` only where anything has a price."""
        found: dict[str, float | None] = {
            **asdict(spent),
            "busy": spent.busy,
            "tokens_per_second": spent.tokens_per_second,
            "cost": spent.cost(self.prices) if self.priced else None,
        }
        return {name: round(value, 6) for name, value in found.items() if value is not None}


def account(root: Path, params: Mapping[str, Any], files: Files | None = None) -> Account:
    """The accounts of the repository at `root`. Raises `BadInput` for prices that are none."""
    files = files or Files(root)
    prices: Prices = validate(Prices, params["prices"], "prices")
    current = {(e.stage, e.iteration): e for e in lock.executions(root, params, files)}
    known = records.records(root)  # after dvc.lock, whose newest stage has one then
    ours = lock.evolution_id(params)
    lines = []
    for stage in schema.STAGES:
        for iteration in sections.stage_keys(params, stage):
            name = (stage, iteration)
            mine = [r for r in known if (r["stage"], r["iteration"]) == name and r.get("status") != "running"]
            paid = [r for r in mine if (r.get("tags") or {}).get("evolution") == ours]
            execution = current.get(name)
            last = lock.record_of(execution, mine, files) if execution else None
            spent = sum((of_record(record) for record in paid), Spent())
            needed = needed_of(last) if last else Spent(unknown=1) if execution else Spent()
            state = "paid" if paid else "restored" if last else "unknown" if execution else "missing"
            if state == "unknown":
                spent = Spent(unknown=1)
            lines.append(Line(lock.counts_for(stage, iteration), stage, state, spent, needed))
    lines.sort(key=lambda line: sections.number(line.iteration) if line.iteration else float("inf"))
    return Account(
        lines,
        {iteration: count for iteration in lock.iterations(params) if (count := rows_of(root, iteration))},
        prices,
    )


def of_record(record: Record) -> Spent:
    """What one execution used."""
    figures: Mapping[str, float] = record.get("figures") or {}
    trained = figures.get("training_tokens", 0)
    seconds = record.get("seconds")
    work = record.get("work_seconds") or seconds or 0.0
    return Spent(
        executions=1,
        failed=int(record.get("status") == "failed"),
        unknown=int(seconds is None),
        requests=figures.get("requests", 0),
        made=figures.get("requests_made", 0),
        prompt_tokens=figures.get("engine_prompt_tokens", 0),
        tokens=figures.get("engine_tokens", 0),
        training_tokens=trained,
        seconds=float(seconds or 0.0),
        engine_seconds=figures.get("engine_seconds", 0.0),
        training_seconds=float(work) if trained else 0.0,
    )


def needed_of(record: Record) -> Spent:
    """What the execution would have used with nothing stored: its tokens with those of stored replies. Its seconds are
    those of what it computed, so they are `unknown` where replies were stored."""
    figures: Mapping[str, float] = record.get("figures") or {}
    spent = asdict(of_record(record))
    distinct = figures.get("requests_distinct", spent["made"])
    stored = distinct > spent["made"]
    tokens = {
        "made": distinct,
        "prompt_tokens": figures.get("distinct_prompt_tokens", spent["prompt_tokens"]),
        "tokens": figures.get("distinct_tokens", spent["tokens"]),
        "unknown": int(stored),
    }
    return Spent(**(spent | tokens))


def rows_of(root: Path, iteration: str) -> int:
    """Rows and pairs of an iteration's dataset that are the iteration's own; 0 where there is no dataset."""
    import polars as pl

    folder = root / ARTIFACTS["dataset"].at(iteration)
    number = 0
    for name, own in (("sft", pl.col("part") == "own"), ("pairs", pl.lit(True))):
        path = folder / f"{name}.parquet"
        if path.is_file():
            wanted = (pl.col("iteration") == iteration) & own
            number += int(pl.scan_parquet(path).filter(wanted).select(pl.len()).collect().item())
    return number

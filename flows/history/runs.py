"""Which runs MLflow should have, as plain values: the tree of evolution, iterations and stage executions.

In:   params.yaml, dvc.lock, records, accounts and JSON artifacts, as the other modules of `flows.history` read them.
Out:  the `Wanted` of the evolution, with everything below it. `flows.history.mlflow` makes MLflow equal to it.

Two values describe the run of one stage execution. Its entry in dvc.lock is found by the entry's md5, and its record by
the record's id. A record that did not finish opens a run. The entry takes over the run that its record opened, or opens
one. A finished record opens none: it completes the run that is there.

Steps are the iterations' numbers. Probe results are named `probe/...` and `guard/...`, the gate's scores `gate/...`,
training curves `curve/...`, what was used `paid/...`, `needed/...` and `row/...`, so that the UI groups its charts.
Held-out figures carry their own names. Nothing here imports MLflow, and nothing here writes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.history import account, lock, records
from flows.history.account import Account
from flows.history.lock import Execution, Files
from flows.history.records import Record
from flows.machine import processes, state
from flows.params import sections
from flows.params.schema import LOOP, UNREAD
from tasks.core.catalog import ARTIFACTS, BASE

Point = tuple[str, float, int]  # a metric's name, its value, its step


@dataclass(frozen=True)
class Wanted:
    """A run as it should be, and the runs below it."""

    name: str
    identity: Mapping[str, str]  # tags that find it within its evolution
    alias: Mapping[str, str] = field(default_factory=dict)  # tags that find it where it was opened without these
    create: bool = True  # False: wanted only where it is there
    status: str | None = None  # None: runs while a run below it does, and is never complete
    start: int | None = None  # milliseconds since 1970; None where unknown
    seconds: float | None = None  # None where unknown
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)  # metrics that are followed, at `step`
    step: int = 0
    points: Sequence[Point] = ()  # metrics that are written until the run is complete
    results: Sequence[Point] = ()  # those that never change: a run that shows others is superseded by a new one
    tables: Mapping[str, str] = field(default_factory=dict)  # tables read -> DVC's md5
    used: Sequence[str] = ()  # DVC's md5 of the models read
    made: Mapping[str, str] = field(default_factory=dict)  # folders of the models made -> DVC's md5
    below: Sequence["Wanted"] = ()


@dataclass(frozen=True)
class _Facts:
    """What is on disk, read once."""

    root: Path
    params: Mapping[str, Any]
    files: Files
    outs: Mapping[str, str]  # outputs of the current entries of dvc.lock -> DVC's md5
    account: Account


def wanted(root: Path, params: Mapping[str, Any], name: str) -> Wanted:
    """The run of the current evolution; not to be created where nothing of it has happened."""
    files = Files(root)
    found = lock.executions(root, params, files)
    known = records.records(root)  # after dvc.lock, whose newest stage has one then
    outs = {path: md5 for e in found for path, md5 in e.outs.items()}
    facts = _Facts(root, params, files, outs, account.account(root, params, files))
    tokens = {name: lock.tokens(root, name) for name in {e.iteration for e in found} if name}
    stages = [_entry(facts, e, lock.record_of(e, known, files), tokens.get(e.iteration or "", {})) for e in found]
    stages += [_recorded(facts, record) for record in reversed(known)]
    names = sorted({run.tags["iteration"] for run in stages if "iteration" in run.tags}, key=sections.number)
    iterations = [_iteration(facts, n, [run for run in stages if run.tags.get("iteration") == n]) for n in names]
    values = {k: v for k, v in params.items() if k not in ("iterations", "evaluations", *UNREAD)}
    evolution = Wanted(
        name,
        {"level": "evolution", "superseded": "false"},
        params=lock.flatten(values, ""),
        figures={f"total/{name}": value for name, value in _spent(facts, None).items()},
        points=[(name, value, run.step) for run, _, curve in iterations for name, value in curve.items()],
        results=[(name, value, run.step) for run, heldout, _ in iterations for name, value in heldout.items()],
    )
    others = [run for run in stages if "iteration" not in run.tags]
    return _parent(evolution, [*(run for run, _, _ in iterations), *others])


def _iteration(
    facts: _Facts, iteration: str, below: Sequence[Wanted]
) -> tuple[Wanted, dict[str, float], dict[str, float]]:
    """An iteration's run, and what the evolution shows of it: held-out figures, and figures that may change."""
    heldout = _numbers(_artifact(facts, "metrics", iteration))
    probe = _artifact(facts, "probe_metrics", iteration)
    policy = _artifact(facts, "policy", iteration)
    gate: dict[str, Any] = {k: policy[k] for k in ("candidate_score", "previous_score") if k in policy}
    groups = {"probe": probe.get("metrics") or {}, "guard": probe.get("guards") or {}, "gate": gate}
    named = {f"{group}/{name}": value for group, part in groups.items() for name, value in _numbers(part).items()}
    listed = iteration in facts.params["iterations"]  # i00 never is, and a row may have been removed
    spent = _spent(facts, iteration) if listed or iteration == BASE else {}
    curve = {"promoted": float(bool(policy["promoted"]))} if "promoted" in policy else {}
    entries = [run for run in below if "dvc.md5" in run.identity]
    if {run.tags["stage"] for run in entries} >= set(LOOP if listed else ("prepare", "base", "evaluate")):
        curve |= _totals(entries) | spent
    tags = sections.row(facts.params, iteration) if listed else {}
    tags |= {k: str(policy[k]) for k in ("promoted", "reason", "gate_metric", "alarms") if k in policy}
    tags |= {"policy": _policy(policy, "")} if "path" in policy else {}
    figures = {**heldout, **named, **curve, **spent}
    run = Wanted(
        iteration,
        {"level": "iteration", "iteration": iteration},
        tags=tags,
        figures=figures,
        step=sections.number(iteration),
    )
    return _parent(run, below), heldout, curve


def _totals(entries: Sequence[Wanted]) -> dict[str, float]:
    """Seconds and new tokens of a whole iteration, each only if it is known of every stage."""
    seconds = [run.seconds for run in entries if run.seconds is not None]
    tokens = [value for run in entries for name, value, _ in run.points if name == "new_tokens"]
    counting = [run for run in entries if run.tags["stage"] in lock.TOKEN_TABLES]
    return {
        **({"seconds": sum(seconds)} if len(seconds) == len(entries) else {}),
        **({"generated_tokens": sum(tokens, 0.0)} if len(tokens) == len(counting) else {}),
    }


def _parent(run: Wanted, below: Sequence[Wanted]) -> Wanted:
    """The run with those below it. Where nothing below it is current, it is not created, and its figures stay."""
    current = [child for child in below if child.create]
    start = min((child.start for child in current if child.start is not None), default=None)
    return replace(run, create=bool(current), start=start, figures=run.figures if current else {}, below=below)


def _spent(facts: _Facts, iteration: str | None) -> dict[str, float]:
    """What an iteration or, without one, the evolution used (`flows.costs`), and the share of a new row."""
    found = {f"row/{name.removeprefix('row_')}": value for name, value in facts.account.per_row(iteration).items()}
    for which in ("paid", "needed"):
        figures = facts.account.figures(facts.account.sum(which, iteration))
        found |= {f"{which}/{name}": value for name, value in figures.items()}
    return found


def _entry(facts: _Facts, execution: Execution, record: Record | None, tokens: Mapping[str, int]) -> Wanted:
    """The run of an entry of dvc.lock: its record's, if it has one, and the entry's own part."""
    stage, iteration, deps = execution.stage, execution.iteration, execution.deps
    run = _recorded(facts, record) if record else Wanted(execution.name, {}, status="FINISHED")
    models = {}
    for role in ("initial", "reference") if stage == "train" and iteration else ():
        source = sections.row(facts.params, iteration or "")[role]
        models[role] = _policy(state.read_json(facts.root / ARTIFACTS["policy"].at(source)) or {}, source)
    duration = {"duration": "recorded" if record else "unknown"}
    tables = [path for path in deps if path.startswith("data/") and path.endswith((".parquet", "/dataset"))]
    folders = [path for path in deps if path.endswith("/candidate")] + [t.partition(" ")[0] for t in models.values()]
    return replace(
        run,
        identity={"dvc.md5": execution.md5},
        alias=run.identity,
        create=True,
        tags={**run.tags, **_stage_tags(stage, iteration), **models, **duration},
        params=execution.params,
        points=[*run.points, *([("new_tokens", float(tokens[stage]), 0)] if stage in tokens else [])],
        tables={path.removeprefix("data/").removesuffix(".parquet"): deps[path] for path in tables},
        used=[facts.outs[path] for path in folders if path in facts.outs],
        made={path: md5 for path, md5 in execution.outs.items() if path.endswith("/candidate")},
    )


def _recorded(facts: _Facts, record: Record) -> Wanted:
    """The run of a record: figures and durations at step 0, training curves at their own steps, and what it paid."""
    stage, iteration, seconds = str(record["stage"]), record["iteration"], record.get("seconds")
    status = record.get("status")
    tags = {k: str(v) for k, v in (record.get("tags") or {}).items() if k not in ("recipe", "evolution", "level")}
    tags |= {"error": str(record["error"]).splitlines()[0][:500]} if record.get("error") else {}
    figures = _numbers(record.get("figures") or {})
    figures |= _numbers({k: record[k] for k in ("seconds", "work_seconds") if k in record})
    points = [(name, value, 0) for name, value in figures.items()]
    for point in record.get("curves") or []:
        points += [(f"curve/{k}", v, int(point.get("step", 0))) for k, v in _numbers(point).items() if k != "step"]
    paid = facts.account.figures(account.of_record(record)) if status != "running" else {}
    return Wanted(
        f"{stage}@{iteration}" if iteration else stage,
        {"record": str(record["id"])},
        create=status != "finished" and lock.made_with(record, facts.params),
        status=_status(record),
        start=round(records.started(record) * 1000),
        seconds=None if seconds is None else float(seconds),
        tags={**tags, **_stage_tags(stage, iteration)},
        figures={f"paid/{name}": value for name, value in paid.items()},
        points=points,
    )


def _stage_tags(stage: str, iteration: str | None) -> dict[str, str]:
    where = lock.counts_for(stage, iteration)
    return {"level": "stage", "stage": stage, **({"iteration": where} if where else {})}


def _status(record: Record) -> str:
    """MLflow's status of a record; one that says `running` although its process is gone was killed."""
    status = record.get("status")
    if status == "running":
        return "RUNNING" if processes.alive(int(record["pid"]), record.get("process_started")) else "KILLED"
    return "FINISHED" if status == "finished" else "KILLED" if "was killed" in str(record.get("error")) else "FAILED"


def _artifact(facts: _Facts, name: str, iteration: str) -> dict[str, Any]:
    """A JSON artifact; empty unless a current entry of dvc.lock made the very file that is there."""
    path = ARTIFACTS[name].at(iteration)
    place = facts.root / path
    made = path in facts.outs and place.is_file() and facts.files.md5(path) == facts.outs[path]
    return state.read_json(place) or {} if made else {}


def _policy(policy: Mapping[str, Any], otherwise: str) -> str:
    """A policy's folder and digest, as a tag."""
    return f"{policy.get('path', otherwise)} {policy.get('digest', '')}".strip()


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a mapping; nested ones get a dotted name, nulls and texts are left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found

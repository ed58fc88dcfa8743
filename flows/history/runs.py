"""Which runs MLflow should have: the tree of evolution, iterations and stage executions, as `flows.track` shows it.

Compares what `flows.history` read from the files with the runs that are there, and asks a `Tree` (the store,
`flows/track.py`) to create, complete or close runs. Decides; neither imports MLflow nor touches files.

A run that was opened for a record is found by the record's id until dvc.lock has its entry, and by the entry's md5
afterwards. What a cut-short sync left is completed: a stage run is complete when it is closed and carries `dvc.md5`.
Steps are the iterations' numbers. Probe results are named `probe/...` and `guard/...`, the gate's scores `gate/...`,
training curves `curve/...`, what was used `paid/...` and `needed/...`, so that the UI groups its charts; held-out
figures carry their own names.
"""

import math
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.history import account as history_account
from flows.history import lock
from flows.history import records as history_records
from flows.history.lock import Execution, Files
from flows.history.records import Record
from flows.machine import processes, state
from flows.params import schema, sections
from flows.params.schema import UNREAD
from tasks.core import digests
from tasks.core.catalog import BASE

if TYPE_CHECKING:
    from flows.history.mlflow import Run, Tree


PARENT = "mlflow.parentRunId"
HIDDEN = "mlflow.autodidact."  # tags below `mlflow.` are not shown in the UI
DATASET_SUFFIXES = (".parquet", "/dataset")


def project(root: Path, params: Mapping[str, Any], tree: "Tree", name: str) -> str | None:
    """Everything of the current evolution, then runs that an earlier one left open. Returns its run's id."""
    files = Files(root)
    found = lock.executions(root, params, files)
    known = history_records.records(root)  # after dvc.lock, whose newest stage has one then
    backed = {e.name: lock.record_of(e, known, files) for e in found}
    loose = [r for r in reversed(known) if _is_loose(r, params, tree)]
    _close_foreign(tree, known)
    if not (found or loose):
        return None
    evolution = _evolution(tree, params, name, found, files, [r for r in [*backed.values(), *loose] if r])
    keys = sorted({k for k in [e.iteration for e in found] + [_iteration(r) for r in loose] if k}, key=sections.number)
    parents: dict[str | None, Run] = {None: evolution}
    for key in keys:
        mine = [e for e in found if e.iteration == key]
        records = [backed[e.name] for e in mine] + [r for r in loose if _iteration(r) == key]
        parents[key] = _open_iteration(tree, params, key, evolution, [r for r in records if r])
    for execution in found:
        _stage(tree, params, root, execution, backed[execution.name], parents[execution.iteration])
    for record in loose:
        _unfinished(tree, record, parents[_iteration(record)])
    for key in keys:
        mine = [e for e in found if e.iteration == key]
        _iteration_figures(tree, root, key, parents[key], evolution, mine, backed, files)
    whole = {key for key in keys if _is_whole(key, [e for e in found if e.iteration == key])}
    _spending(tree, history_account.account(root, params, files), known, parents, whole)
    for parent in parents.values():
        _settle(tree, parent)
    return evolution.id


def _evolution(
    tree: "Tree", params: Mapping[str, Any], name: str, found: list[Execution], files: Files, records: list[Record]
) -> "Run":
    """The evolution's run; a new one takes the children over when a result that it shows has changed."""
    tags = {"level": "evolution", "superseded": "false"}
    run = tree.find(tags)
    results = {e.key: e.outs[path] for e in found for path in e.outs if path.endswith("/evaluation/metrics.json")}
    shown = {key: run.tags.get(f"{HIDDEN}measured.{key}") for key in results} if run else {}
    if run and any(shown[key] not in (None, md5) for key, md5 in results.items()):
        old, run = run, None
        tree.log(old, tags={"superseded": "true"})
        tree.rename(old, f"{old.name} (superseded)")
    else:
        old = None
    run = run or tree.open(name, tags, None, _start(records))
    if f"{HIDDEN}params" not in run.tags:
        values = {k: v for k, v in params.items() if k not in ("iterations", "evaluations", *UNREAD)}
        tree.log(run, lock.flatten(values, ""), tags={f"{HIDDEN}params": "logged"})
    for child in tree.runs:
        if old and child.tags.get(PARENT) == old.id:
            tree.log(child, tags={PARENT: run.id})
    return run


def _open_iteration(
    tree: "Tree", params: Mapping[str, Any], key: str, evolution: "Run", records: list[Record]
) -> "Run":
    tags = {"level": "iteration", "iteration": key}
    models = {} if key == BASE else sections.row(params, key)
    return tree.find(tags) or tree.open(key, {**tags, **models}, evolution, _start(records))


def _iteration_figures(
    tree: "Tree",
    root: Path,
    key: str,
    run: "Run",
    evolution: "Run",
    mine: list[Execution],
    backed: Mapping[str, Record | None],
    files: Files,
) -> None:
    """Held-out figures on the iteration and on the evolution, probe and promotion on the iteration."""
    step = sections.number(key)
    folder = f"data/{key}"
    heldout = _numbers(_artifact(root, mine, f"{folder}/evaluation/metrics.json", files))
    probe = _artifact(root, mine, f"{folder}/evaluation/probe.json", files)
    groups = {"probe": probe.get("metrics") or {}, "guard": probe.get("guards") or {}}
    policy = _artifact(root, mine, f"{folder}/policy.json", files)
    extra: dict[str, float] = {}
    if _is_whole(key, mine):
        records = [backed[e.name] for e in mine]
        if all(records):
            extra["seconds"] = sum(float(r.get("seconds") or 0.0) for r in records if r)
        if f"{HIDDEN}counted" not in run.tags:
            extra["generated_tokens"] = float(sum(lock.tokens(root, key).values()))
    if "promoted" in policy:
        extra["promoted"] = float(bool(policy["promoted"]))
    groups["gate"] = {k: policy[k] for k in ("candidate_score", "previous_score") if k in policy}
    named = {f"{group}/{k}": v for group, part in groups.items() for k, v in _numbers(part).items()}
    values = {**heldout, **named, **extra}
    tags: dict[str, str] = {k: str(policy[k]) for k in ("promoted", "reason", "gate_metric", "alarms") if k in policy}
    tags |= {"policy": f"{policy['path']} {policy.get('digest', '')}".strip()} if "path" in policy else {}
    tags |= {f"{HIDDEN}counted": "true"} if "generated_tokens" in extra else {}
    changed = [(name, value, step) for name, value in values.items() if run.metrics.get(name) != value]
    tree.log(run, metrics=changed, tags=tags)
    md5 = next((e.outs[p] for e in mine for p in e.outs if p.endswith("/evaluation/metrics.json")), "")
    drawn = set(filter(None, evolution.tags.get(f"{HIDDEN}extra.{key}", "").split(",")))
    points = [(name, value, step) for name, value in extra.items() if name not in drawn]
    marks = {f"{HIDDEN}extra.{key}": ",".join(sorted(drawn | set(extra)))} if points else {}
    if heldout and evolution.tags.get(f"{HIDDEN}measured.{key}") != md5:
        points += [(name, value, step) for name, value in heldout.items()]
        marks[f"{HIDDEN}measured.{key}"] = md5
    tree.log(evolution, metrics=points, tags=marks)


def _is_whole(key: str, mine: Iterable[Execution]) -> bool:
    """Whether every stage of the iteration is in dvc.lock."""
    expected = ("prepare", "base", "evaluate") if key == BASE else schema.LOOP
    return {execution.stage for execution in mine} >= set(expected)


def _spending(
    tree: "Tree",
    account: history_account.Account,
    known: Iterable[Record],
    parents: Mapping[str | None, "Run"],
    whole: Container[str],
) -> None:
    """What executions used (`flows.costs`): `paid/...` on every stage run, `paid/...`, `needed/...` and the share of a
    row on iterations, a point of the same for each iteration that is `whole` and `total/...` on the evolution. Written
    again when prices change or an execution is added."""
    for record in known:
        run = tree.find({"level": "stage", "record": str(record["id"])})
        if run and record.get("status") != "running":
            _renew(tree, run, _named("paid", account.figures(history_account.of_record(record))))
    evolution = parents[None]
    for key, run in parents.items():
        values = {f"row/{name.removeprefix('row_')}": value for name, value in account.per_row(key).items()}
        for which in ("paid", "needed"):
            values |= _named(which, account.figures(account.sum(which, key)))
        if key is None:
            _renew(tree, run, {f"total/{name}": value for name, value in values.items()})
            continue
        step, mark = sections.number(key), digests.of_value(values)
        _renew(tree, run, values, step)
        if key in whole and evolution.tags.get(f"{HIDDEN}spent.{key}") != mark:
            points = [(name, value, step) for name, value in values.items()]
            tree.log(evolution, metrics=points, tags={f"{HIDDEN}spent.{key}": mark})


def _named(group: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in figures.items()}


def _renew(tree: "Tree", run: "Run", values: Mapping[str, float], step: int = 0) -> None:
    """Logs the values that differ from the run's."""
    tree.log(run, metrics=[(name, value, step) for name, value in values.items() if run.metrics.get(name) != value])


def _stage(
    tree: "Tree", params: Mapping[str, Any], root: Path, execution: Execution, record: Record | None, parent: "Run"
) -> None:
    """The run of one entry of dvc.lock: created, or completed where a sync was cut short or a record came later."""
    tags = {"level": "stage", "stage": execution.stage}
    tags |= {"iteration": execution.iteration} if execution.iteration else {}
    run = tree.find({**tags, "dvc.md5": execution.md5})
    if run is None and record:
        opened = tree.find({"level": "stage", "record": str(record["id"])})
        run = opened if opened and "dvc.md5" not in opened.tags else None
    complete = run and run.status != "RUNNING" and "dvc.md5" in run.tags
    own = record and tree.find({"level": "stage", "record": str(record["id"])})  # executed again, to the same bytes
    if complete and (record is None or own or (run and run.tags.get("duration") != "unknown")):
        return
    start = _milliseconds(history_records.started(record)) if record else None
    tags |= {"dvc.md5": execution.md5, "duration": "recorded" if record else "unknown"}
    tags |= _record_tags(record) if record else {}
    if run is None:
        run = tree.open(execution.name, tags, parent, start)
    metrics = _record_metrics(record) if record else []
    if not complete:
        counted = lock.tokens(root, execution.key).get(execution.stage) if execution.key else None
        metrics += [("new_tokens", float(counted), 0)] if counted is not None else []
        tags |= _inputs(tree, params, root, run, execution)
    tree.log(run, {} if complete else execution.params, metrics, tags, start)
    end = None if record is None else run.start + _milliseconds(float(record.get("seconds") or 0.0))
    tree.close(run, "FINISHED", end)


def _unfinished(tree: "Tree", record: Record, parent: "Run") -> None:
    """The run of a record without an entry in dvc.lock: still running, failed, killed, or cut off from DVC."""
    stage, key = str(record["stage"]), record.get("key")
    run = tree.find({"level": "stage", "record": str(record["id"])})
    status, start = _status(record), _milliseconds(history_records.started(record))
    if run and run.status != "RUNNING":
        return
    if run is None:
        tags = {"level": "stage", "stage": stage, **_record_tags(record)}
        tags |= {"iteration": str(_iteration(record))} if _iteration(record) else {}
        run = tree.open(f"{stage}@{key}" if key else stage, tags, parent, start)
    tree.log(run, metrics=_record_metrics(record), at=start)
    if status != "RUNNING":
        seconds = record.get("seconds")
        tree.close(run, status, None if seconds is None else start + _milliseconds(float(seconds)))


def _settle(tree: "Tree", parent: "Run") -> None:
    """A parent runs as long as a stage below it does, and ends with the last one if all their ends are known."""
    children = [r for r in tree.runs if r.tags.get(PARENT) == parent.id]
    ids = {parent.id, *(r.id for r in children)}
    below = [r for r in tree.runs if r.tags.get(PARENT) in ids and r.tags["level"] == "stage"]
    if any(r.status == "RUNNING" for r in below):
        tree.close(parent, "RUNNING", None)
        return
    ends = [r.end for r in below]
    tree.close(parent, "FINISHED", max(e for e in ends if e) if ends and all(ends) else None)


def _close_foreign(tree: "Tree", known: Iterable[Record]) -> None:
    """Ends the runs that an earlier evolution left open: its process is gone, and params.yaml has moved on."""
    foreign = [r for r in tree.running() if r.tags.get("evolution") != tree.tags["evolution"]]
    status = {str(r["id"]): _status(r) for r in known}
    fate = {r.id: status.get(r.tags.get("record", ""), "KILLED") for r in foreign if r.tags.get("level") == "stage"}
    alive = {r.tags.get("evolution") for r in foreign if fate.get(r.id) == "RUNNING"}
    for run in foreign:
        if run.tags.get("evolution") not in alive:
            tree.close(run, fate.get(run.id, "FINISHED"), None)


def _inputs(tree: "Tree", params: Mapping[str, Any], root: Path, run: "Run", execution: Execution) -> dict[str, str]:
    """Logs tables read (digest: DVC's md5), models used and the model made; returns tags that name the models."""
    tables = {
        p.removeprefix("data/").removesuffix(".parquet"): md5 for p, md5 in execution.deps.items() if _is_table(p)
    }
    tags = {}
    for role in ("initial", "reference") if execution.stage == "train" and execution.key else ():
        key = sections.row(params, execution.key or "")[role]
        policy = state.read_json(root / "data" / key / "policy.json") or {}
        tags[role] = f"{policy.get('path', key)} {policy.get('digest', '')}".strip()
    used = [
        *(p for p in execution.deps if p.endswith("/candidate")),
        *(text.partition(" ")[0] for text in tags.values()),
    ]
    tree.log_inputs(run, execution.stage, tables, used)
    for path, md5 in execution.outs.items():
        if path.endswith("/candidate"):
            tree.log_model(run, f"{execution.iteration}-candidate", path, md5)
    return tags


def _is_table(path: str) -> bool:
    return path.startswith("data/") and path.endswith(DATASET_SUFFIXES)


def _artifact(root: Path, mine: Iterable[Execution], path: str, files: Files) -> dict[str, Any]:
    """A JSON artifact; empty unless one of these executions made the very file that is there."""
    made = any(path in e.outs and (root / path).is_file() and files.md5(path) == e.outs[path] for e in mine)
    return state.read_json(root / path) or {} if made else {}


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a mapping; nested ones get a dotted name, nulls and texts are left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def _record_metrics(record: Record) -> list[tuple[str, float, int]]:
    """Figures and durations in seconds at step 0, training curves at their own steps."""
    figures = _numbers(record.get("figures") or {})
    figures |= _numbers({k: record[k] for k in ("seconds", "work_seconds") if k in record})
    points = [(name, value, 0) for name, value in figures.items()]
    for point in record.get("curves") or []:
        points += [(f"curve/{k}", v, int(point.get("step", 0))) for k, v in _numbers(point).items() if k != "step"]
    return points


def _record_tags(record: Record) -> dict[str, str]:
    error = {"error": str(record["error"]).splitlines()[0][:500]} if record.get("error") else {}
    own = {k: str(v) for k, v in (record.get("tags") or {}).items() if k not in ("recipe", "evolution", "level")}
    return {**own, **error, "record": str(record["id"])}


def _iteration(record: Record) -> str | None:
    return lock.iteration_of(str(record["stage"]), record.get("key"))


def _status(record: Record) -> str:
    """MLflow's status of a record; one that says `running` although its process is gone was killed."""
    status = record.get("status")
    if status == "running":
        return "RUNNING" if processes.alive(int(record["pid"]), record.get("process_started")) else "KILLED"
    return "FINISHED" if status == "finished" else "KILLED" if "was killed" in str(record.get("error")) else "FAILED"


def _is_loose(record: Record, params: Mapping[str, Any], tree: "Tree") -> bool:
    """Whether the record needs a run of its own: its run is open, or it did not finish and belongs here."""
    run = tree.find({"level": "stage", "record": str(record["id"])})
    if run:
        return run.status == "RUNNING"
    return record.get("status") != "finished" and lock.made_with(record, params)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _start(records: Iterable[Record]) -> int | None:
    """The earliest start in milliseconds since 1970; None where no record says."""
    return min((_milliseconds(history_records.started(r)) for r in records), default=None)

"""MLflow as a projection of what is on disk: `sync` creates in MLflow what the files say and MLflow lacks.

Nothing is logged while a stage runs; DVC, a crash or a deleted database can therefore never make MLflow
disagree with the artifacts for longer than until the next `sync`. The tree, in the experiment `autodidact`:

    self_evolution-s0-1a2b3c        one evolution: params.yaml without its iterations; every held-out figure
      i00, i01, ...                 one iteration, with the iteration's number as the step on both levels
        sample@i02, ...             one execution of a stage, that is one entry of dvc.lock

Runs are found by their tags (`level`, `evolution`, `iteration`, `stage`, `dvc.md5`), so calling twice
creates nothing. A changed entry of dvc.lock makes a new stage run and the old one stays. When a result that
was already drawn changes (same params.yaml, other code or other overrides in a row), the evolution run keeps
its curve under the name "... (superseded)" and a new one takes over. Figures, seconds and training curves
come from the records; without a record the run says `duration: unknown`. Weights stay in DVC: models are
logged as entities without files. `git.commit` is the record's, else the commit at the time of the projection.

Database: `.autodidact/mlflow/mlflow.db` of the main repository, or `MLFLOW_TRACKING_URI`. This is the only
module that imports mlflow, and it does so late. `python -m flows.track` projects everything.
"""

import fcntl
import json
import logging
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flows import history
from flows.history import Execution, Files, Record
from flows.state import state_dir
from tasks.core import digests
from tasks.core import params as parameters
from tasks.core.errors import AutodidactError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

for _name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "true" if _name.startswith("MLFLOW") else "1")

EXPERIMENT = "autodidact"
LOCK_SECONDS = 20.0  # how long to wait for another sync
PARENT = "mlflow.parentRunId"
HIDDEN = "mlflow.autodidact."  # tags below `mlflow.` are not shown in the UI
DATASET_SUFFIXES = (".parquet", "/dataset")


class TrackingFailed(AutodidactError, RuntimeError):
    """MLflow's database could not be used. Artifacts, records and dvc.lock are untouched; sync again later."""


@dataclass(frozen=True)
class SyncResult:
    """What a sync did. `experiment` and `run` are MLflow's ids, None where there was nothing to look up."""

    uri: str
    name: str
    created: int = 0
    updated: int = 0
    experiment: str | None = None
    run: str | None = None


@dataclass
class _Run:
    """A run as far as the projection needs it."""

    id: str
    name: str
    status: str
    start: int
    end: int | None
    tags: dict[str, str]
    metrics: dict[str, float]


@dataclass
class _Tree:
    """The runs of one evolution, and the one client that writes them."""

    client: "MlflowClient"
    experiment: str
    tags: dict[str, str]  # of every run: evolution, recipe, git.commit
    runs: list[_Run] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)  # DVC md5 -> MLflow's model id
    created: int = 0
    touched: set[str] = field(default_factory=set)
    now: int = 0  # milliseconds; grows by one a run, so that runs of unknown time keep their order

    def find(self, tags: Mapping[str, str]) -> _Run | None:
        """The newest run that has all these tags."""
        matching = (r for r in self.runs if all(r.tags.get(k) == v for k, v in tags.items()))
        return max(matching, key=lambda run: run.start, default=None)

    def open(self, name: str, tags: Mapping[str, str], parent: _Run | None, start: int | None = None) -> _Run:
        """Creates a run. `start`: milliseconds since 1970, None where unknown."""
        self.now += 1
        nested = {PARENT: parent.id} if parent else {}
        everything = {**self.tags, **tags, **nested, "mlflow.source.name": "flows.track", "mlflow.user": "autodidact"}
        made = self.client.create_run(self.experiment, start or self.now, everything, name)
        self.created += 1
        self.runs.append(_read(made))
        self.touched.add(made.info.run_id)
        return self.runs[-1]

    def log(
        self,
        run: _Run,
        params: Mapping[str, str] | None = None,
        metrics: Sequence[tuple[str, float, int]] = (),
        tags: Mapping[str, str] | None = None,
        at: int | None = None,
    ) -> None:
        """Writes parameters, metrics (name, value, step) and those tags that differ."""
        from mlflow.entities import Metric, Param, RunTag

        changed = {k: v for k, v in (tags or {}).items() if run.tags.get(k) != v}
        if not (params or metrics or changed):
            return
        points = [Metric(name, float(value), at or self.now, step) for name, value, step in metrics]
        values = [Param(name, value) for name, value in (params or {}).items()]
        for i in range(0, len(values), 100):
            self.client.log_batch(run.id, params=values[i : i + 100])
        for i in range(0, max(len(points), 1), 900):
            chunk = [RunTag(k, v) for k, v in changed.items()] if i + 900 >= len(points) else []
            self.client.log_batch(run.id, metrics=points[i : i + 900], tags=chunk)
        run.tags.update(changed)
        run.metrics.update({name: float(value) for name, value, _ in metrics})
        self.touched.add(run.id)

    def close(self, run: _Run, status: str, end: int | None) -> None:
        """Sets status and end; `end` None leaves the duration open, because nobody knows it."""
        if run.status == status and (end is None or run.end == end):
            return
        if end is None:
            self.client.update_run(run.id, status=status)
        else:
            self.client.set_terminated(run.id, status, end)
        run.status, run.end = status, end
        self.touched.add(run.id)


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` if set, else the repository's own database as an absolute sqlite URI."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{state_dir(root).resolve() / 'mlflow' / 'mlflow.db'}"


def sync(root: Path, full: bool = False) -> SyncResult:
    """Creates and updates what MLflow lacks. Without `full`, returns at once (and without importing mlflow)
    when params.yaml, dvc.lock and the records are those of the last sync. Raises `BadInput` for an unreadable
    params.yaml or dvc.lock, `TrackingFailed` where the database is locked, damaged or cannot be written."""
    params = parameters.load(root)
    uri = tracking_uri(root)
    evolution = history.evolution_id(params)
    name = f"{params.get('recipe')}-s{params.get('seed')}-{evolution[:6]}"
    marker = state_dir(root) / "mlflow" / "synced.json"
    seen = _fingerprint(root, uri)
    if not full and seen and history.read_json(marker).get("seen") == seen:
        return SyncResult(uri, name)
    try:
        with _alone(marker.with_name("sync.lock")):
            _probe(uri)
            tree = _connect(root, uri, {"evolution": evolution, "recipe": str(params.get("recipe"))})
            run = _project(root, params, tree, name)
            marker.write_text(json.dumps({"seen": _fingerprint(root, uri) if seen is None else seen}))
    except (OSError, sqlite3.Error) as error:
        raise TrackingFailed(_advice(uri, error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy", "alembic"):
            raise
        raise TrackingFailed(_advice(uri, error)) from error
    return SyncResult(uri, name, tree.created, len(tree.touched) - tree.created, tree.experiment, run)


# --- the projection --------------------------------------------------------------------------------------


def _project(root: Path, params: Mapping[str, Any], tree: _Tree, name: str) -> str | None:
    """Everything of the current evolution, then runs that an earlier one left open. Returns its run's id."""
    files = Files(root)
    known = history.records(root)
    found = history.executions(root, params, files)
    backed = {e.name: history.record_of(e, known, files) for e in found}
    loose = [r for r in reversed(known) if _is_loose(r, params, tree)]
    _close_foreign(tree, known)
    if not (found or loose):
        return None
    evolution = _evolution(tree, params, name, found, files, [r for r in [*backed.values(), *loose] if r])
    keys = sorted({k for k in [e.iteration for e in found] + [_iteration(r) for r in loose] if k}, key=parameters.number)
    parents: dict[str | None, _Run] = {None: evolution}
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
    for parent in parents.values():
        _settle(tree, parent)
    return evolution.id


def _evolution(
    tree: _Tree, params: Mapping[str, Any], name: str, found: list[Execution], files: Files, records: list[Record]
) -> _Run:
    """The evolution's run; a new one takes the children over when a result that it shows has changed."""
    tags = {"level": "evolution", "superseded": "false"}
    run = tree.find(tags)
    results = {e.key: e.outs[path] for e in found for path in e.outs if path.endswith("/evaluation/metrics.json")}
    shown = {key: run.tags.get(f"{HIDDEN}measured.{key}") for key in results} if run else {}
    if run and any(shown[key] not in (None, md5) for key, md5 in results.items()):
        old, run = run, None
        tree.log(old, tags={"superseded": "true"})
        tree.client.update_run(old.id, name=f"{old.name} (superseded)")
    else:
        old = None
    if run is None:
        values = {k: v for k, v in params.items() if k not in ("iterations", "evaluations")}
        run = tree.open(name, tags, None, _start(records))
        tree.log(run, params=history.flatten(values, ""))
    for child in tree.runs:
        if old and child.tags.get(PARENT) == old.id:
            tree.log(child, tags={PARENT: run.id})
    return run


def _open_iteration(
    tree: _Tree, params: Mapping[str, Any], key: str, evolution: _Run, records: list[Record]
) -> _Run:
    tags = {"level": "iteration", "iteration": key}
    models = {} if key == parameters.BASE else parameters.row(params, key)
    return tree.find(tags) or tree.open(key, {**tags, **models}, evolution, _start(records))


def _iteration_figures(
    tree: _Tree,
    root: Path,
    key: str,
    run: _Run,
    evolution: _Run,
    mine: list[Execution],
    backed: Mapping[str, Record | None],
    files: Files,
) -> None:
    """Held-out figures on the iteration and on the evolution, probe and promotion on the iteration."""
    step = parameters.number(key)
    folder = f"data/{key}"
    heldout = _numbers(_artifact(root, mine, f"{folder}/evaluation/metrics.json", files))
    probe = _numbers(_artifact(root, mine, f"{folder}/evaluation/probe.json", files))
    policy = _artifact(root, mine, f"{folder}/policy.json", files)
    extra: dict[str, float] = {}
    expected = ("prepare", "base", "evaluate") if key == parameters.BASE else parameters.LOOP
    if {e.stage for e in mine} >= set(expected):
        records = [backed[e.name] for e in mine]
        if all(records):
            extra["seconds"] = sum(float(r.get("seconds") or 0.0) for r in records if r)
        if f"{HIDDEN}counted" not in run.tags:
            extra["generated_tokens"] = float(sum(history.tokens(root, key).values()))
    if "promoted" in policy:
        extra["promoted"] = float(bool(policy["promoted"]))
    gate = {f"gate/{k}": v for k, v in _numbers(policy).items() if k != "promoted"}
    values = {**heldout, **{f"probe/{k}": v for k, v in probe.items()}, **gate, **extra}
    tags = {k: str(policy[k]) for k in ("promoted", "reason", "gate_metric") if k in policy}
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


def _stage(
    tree: _Tree, params: Mapping[str, Any], root: Path, execution: Execution, record: Record | None, parent: _Run
) -> None:
    """The run of one entry of dvc.lock: created, or completed where a sync was cut short or a record came later."""
    tags = {"level": "stage", "stage": execution.stage}
    tags |= {"iteration": execution.iteration} if execution.iteration else {}
    run = tree.find({**tags, "dvc.md5": execution.md5})
    if run is None and record:
        opened = tree.find({"level": "stage", "record": str(record["id"])})
        run = opened if opened and "dvc.md5" not in opened.tags else None
    complete = run and run.status != "RUNNING" and "dvc.md5" in run.tags
    if complete and not (record and run and run.tags.get("duration") == "unknown"):
        return
    start = _milliseconds(history.started(record)) if record else None
    tags |= {"dvc.md5": execution.md5, "duration": "recorded" if record else "unknown"}
    tags |= _record_tags(record) if record else {}
    if run is None:
        run = tree.open(execution.name, tags, parent, start)
    if not complete:
        counted = history.tokens(root, execution.key).get(execution.stage) if execution.key else None
        figures = [("new_tokens", float(counted), 0)] if counted is not None else []
        tree.log(run, execution.params, figures)
        _datasets(tree, run, execution)
        _models(tree, params, root, run, execution)
    tree.log(run, metrics=_record_metrics(record) if record else (), tags=tags, at=start)
    end = None if record is None else run.start + _milliseconds(float(record.get("seconds") or 0.0))
    tree.close(run, "FINISHED", end)


def _unfinished(tree: _Tree, record: Record, parent: _Run) -> None:
    """The run of a record without an entry in dvc.lock: still running, failed, killed, or cut off from DVC."""
    stage, key = str(record["stage"]), record.get("key")
    run = tree.find({"level": "stage", "record": str(record["id"])})
    status, start = _status(record), _milliseconds(history.started(record))
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


def _settle(tree: _Tree, parent: _Run) -> None:
    """A parent runs as long as one of its children does, and ends with the last one whose end is known."""
    children = [r for r in tree.runs if r.tags.get(PARENT) == parent.id]
    if any(r.status == "RUNNING" and r is not parent for r in children if r.tags["level"] == "stage"):
        tree.close(parent, "RUNNING", None)
        return
    iterations = [r for r in children if r.tags["level"] == "iteration"]
    grandchildren = [r for r in tree.runs if r.tags.get(PARENT) in {i.id for i in iterations}]
    below = [r for r in [*children, *grandchildren] if r.tags["level"] == "stage"]
    if any(r.status == "RUNNING" for r in below):
        tree.close(parent, "RUNNING", None)
    else:
        ends = [r.end for r in below]
        tree.close(parent, "FINISHED", max(e for e in ends if e) if ends and all(ends) else None)

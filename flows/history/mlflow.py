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

Database: `.autodidact/mlflow/mlflow.db` of the main repository, or what `MLFLOW_TRACKING_URI` names: a server
(`http://...`, with MLflow's own variables for credentials) or another database. This is the only
module that imports mlflow, and it does so late. `python -m flows.track` projects everything.
"""

import json
import logging
import os
import re
import sqlite3
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from flows.history import lock, records
from flows.history.runs import PARENT, project
from flows.machine import state
from flows.params import file
from tasks.core import digests
from tasks.core.errors import AutodidactError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


EXPERIMENT = "autodidact"
BATCH = 100  # parameters a request; MLflow takes 100, and 1000 values of all kinds
LOCK_SECONDS = 20.0  # how long to wait for another sync
PATIENCE = 10.0  # seconds in which a tracking server has to answer


class TrackingFailed(AutodidactError, RuntimeError):
    """MLflow's database or server could not be used. Artifacts, records and dvc.lock are untouched; sync again."""


@dataclass(frozen=True)
class SyncResult:
    """What a sync did. `experiment`, `run` (the evolution's) and `iterations` are MLflow's ids; None where there is
    nothing yet, no `iterations` where nothing had to be looked up."""

    uri: str
    name: str
    created: int = 0
    updated: int = 0
    experiment: str | None = None
    run: str | None = None
    iterations: tuple[str, ...] = ()


@dataclass
class Run:
    """A run as far as the projection needs it."""

    id: str
    name: str
    status: str
    start: int
    end: int | None
    tags: dict[str, str]
    metrics: dict[str, float]


@dataclass
class Tree:
    """The runs of one evolution, and the one client that writes them."""

    client: "MlflowClient"
    experiment: str
    tags: dict[str, str]  # of every run: evolution, recipe, git.commit
    runs: list[Run] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)  # DVC md5 -> MLflow's model id
    paths: dict[str, str] = field(default_factory=dict)  # model folder -> MLflow's id of what is in it now
    created: int = 0
    touched: set[str] = field(default_factory=set)
    now: int = 0  # milliseconds; grows by one a run, so that runs of unknown time keep their order

    def find(self, tags: Mapping[str, str]) -> Run | None:
        """The newest run that has all these tags."""
        matching = (r for r in self.runs if all(r.tags.get(k) == v for k, v in tags.items()))
        return max(matching, key=lambda run: run.start, default=None)

    def open(self, name: str, tags: Mapping[str, str], parent: Run | None, start: int | None = None) -> Run:
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
        run: Run,
        params: Mapping[str, str] | None = None,
        metrics: Sequence[tuple[str, float, int]] = (),
        tags: Mapping[str, str] | None = None,
        at: int | None = None,
    ) -> None:
        """Writes parameters, metrics (name, value, step) and those tags that differ."""
        from mlflow.entities import Metric, Param, RunTag

        changed = {k: v for k, v in (tags or {}).items() if run.tags.get(k) != v}
        points = [Metric(name, float(value), at or self.now, step) for name, value, step in metrics]
        values = [Param(name, value) for name, value in (params or {}).items()]
        marks = [RunTag(name, value) for name, value in changed.items()]
        if not (points or values or marks):
            return
        while len(values) > BATCH or len(points) > 8 * BATCH:  # tags go last: they say that the rest is there
            self.client.log_batch(run.id, points[: 8 * BATCH], values[:BATCH])
            points, values = points[8 * BATCH :], values[BATCH:]
        self.client.log_batch(run.id, points, values, marks)
        run.tags.update(changed)
        run.metrics.update({name: float(value) for name, value, _ in metrics})
        self.touched.add(run.id)

    def log_inputs(self, run: Run, context: str, tables: Mapping[str, str], models: Iterable[str]) -> None:
        """Tables by name and DVC md5, and models by their folder; a model that is not known here is left out."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

        where = [InputTag("mlflow.data.context", context)]
        datasets = [DatasetInput(Dataset(n, md5, "dvc", json.dumps({"uri": n})), where) for n, md5 in tables.items()]
        known = [LoggedModelInput(self.paths[path]) for path in dict.fromkeys(models) if path in self.paths]
        if datasets or known:
            self.client.log_inputs(run.id, datasets or None, known or None)

    def log_model(self, run: Run, name: str, path: str, md5: str) -> None:
        """An entity for a model folder, without its files; found again by its DVC md5."""
        from mlflow.entities import LoggedModelOutput

        if md5 not in self.models:
            tags = {"evolution": self.tags["evolution"], "dvc.md5": md5, "dvc.path": path}
            made = self.client.create_logged_model(self.experiment, name, run.id, tags, model_type="policy")
            self.client.finalize_logged_model(made.model_id, "READY")
            self.models[md5] = made.model_id
        self.paths[path] = self.models[md5]
        self.client.log_outputs(run.id, [LoggedModelOutput(self.models[md5], 0)])

    def running(self) -> list[Run]:
        """Every open run of the experiment, whatever its evolution."""
        found = self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'", max_results=5000)
        return [_read(run) for run in found]

    def rename(self, run: Run, name: str) -> None:
        """Another name for a run."""
        self.client.update_run(run.id, name=name)
        self.touched.add(run.id)

    def close(self, run: Run, status: str, end: int | None) -> None:
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
    return given or f"sqlite:///{state.state_dir(root).resolve() / 'mlflow' / 'mlflow.db'}"


def sync(root: Path, full: bool = False) -> SyncResult:
    """Creates and updates what MLflow lacks. Without `full`, returns at once (and without importing mlflow)
    when params.yaml, dvc.lock and the records are those of the last sync. Raises `BadInput` for an unreadable
    params.yaml or dvc.lock, `TrackingFailed` where the database is locked, damaged or cannot be written."""
    params = file.load(root)
    evolution = lock.evolution_id(params)
    name = f"{params.get('recipe')}-s{params.get('seed')}-{evolution[:6]}"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or str(root)
    try:
        uri = tracking_uri(root)
        marker = state.state_dir(root) / "mlflow" / "synced.json"
        marker.parent.mkdir(exist_ok=True)
        seen = _fingerprint(root, uri)
        last = state.read_json(marker) or {}
        if not full and last.get("seen") == seen and _has_run(uri, last.get("run")):
            return SyncResult(uri, name, 0, 0, last.get("experiment"), last.get("run"))
        with FileLock(marker.with_name("sync.lock"), timeout=LOCK_SECONDS):
            _probe(uri)
            _knock(uri)
            tree = _connect(root, uri, {"evolution": evolution, "recipe": str(params.get("recipe"))})
            run = project(root, params, tree, name)
            settled = not any(r.status == "RUNNING" for r in tree.runs)
            state.write_json(marker, {"seen": seen if settled else None, "run": run, "experiment": tree.experiment})
    except Exception as error:
        home = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | sqlite3.Error) and home not in ("mlflow", "sqlalchemy", "alembic"):
            raise
        raise TrackingFailed(_advice(uri, error)) from error  # an OSError may be filelock's Timeout
    children = sorted(
        (r for r in tree.runs if r.tags.get(PARENT) == run and "stage" not in r.tags), key=lambda r: r.name
    )
    ids = tuple(child.id for child in children)
    return SyncResult(uri, name, tree.created, len(tree.touched) - tree.created, tree.experiment, run, ids)


def _connect(root: Path, uri: str, tags: dict[str, str]) -> Tree:
    """The client, the experiment and what MLflow has of this evolution."""
    state.quiet(root)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    _relax()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        local = (state.state_dir(root) / "mlflow" / "artifacts").as_uri() if uri.startswith("sqlite:") else None
        number = client.create_experiment(EXPERIMENT, local, {"mlflow.experimentKind": "custom_model_development"})
    else:
        number = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(number)
    query = f"tags.evolution = '{tags['evolution']}'"
    tree = Tree(client, number, {**tags, "git.commit": records.commit(root)}, now=round(time.time() * 1000))
    tree.runs = [_read(run) for run in client.search_runs([number], query, max_results=50_000)]
    models = client.search_logged_models([number], filter_string=query, max_results=500) if tree.runs else []
    for model in models:
        tree.models[model.tags["dvc.md5"]] = tree.paths[model.tags["dvc.path"]] = model.model_id
    return tree


def _read(run: "MlflowRun") -> Run:
    info, data = run.info, run.data
    start = int(info.start_time)
    return Run(info.run_id, info.run_name or "", info.status, start, info.end_time, dict(data.tags), dict(data.metrics))


def _database(uri: str) -> Path | None:
    """The file of a sqlite URI, else None."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _probe(uri: str) -> None:
    """Takes and gives back the write lock of a sqlite database: what is locked or damaged is found at once."""
    path = _database(uri)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")


def _knock(uri: str) -> None:
    """Asks whether a tracking server is there, because MLflow itself keeps trying for minutes. Raises `OSError`."""
    if uri.startswith(("http://", "https://")):
        with suppress(urllib.error.HTTPError):  # somebody answers, and MLflow knows better how to ask
            urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=PATIENCE).close()


def shown(uri: str) -> str:
    """The address without the user's name and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _has_run(uri: str, run: Any) -> bool:
    """Whether a local database still has this run, asked without MLflow; False for any other kind of URI."""
    path = _database(uri)
    if run is None or path is None or not path.is_file():
        return False
    query = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path, timeout=5.0)) as connection:
        return connection.execute(query, (run,)).fetchone() is not None
    return False  # no such table: the database is a new one


def _fingerprint(root: Path, uri: str) -> str:
    """What a sync depends on, without reading the records."""
    texts = [(root / name).read_text() if (root / name).is_file() else None for name in (file.FILE, "dvc.lock")]
    stats = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(records.records_dir(root).glob("*.json"))]
    return digests.of_value([uri, texts, stats])


def _advice(uri: str, error: Exception) -> str:
    reason = shown(first_line(error))
    remedy = "Close what holds the database, or delete it"
    if not uri.startswith("sqlite:") and "MLFLOW_TRACKING_URI" in os.environ:
        remedy = "Start what MLFLOW_TRACKING_URI names, or unset it for a database of this repository"
    return (
        f"MLflow was not updated ({shown(uri)}: {reason}); artifacts and dvc.lock are untouched. {remedy}, then run "
        "`python -m flows.track`"
    )


@cache
def _relax() -> None:
    """SQLite without waiting for the disk at each commit: a projection can always be made again."""
    from sqlalchemy import Engine, event

    def connected(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)

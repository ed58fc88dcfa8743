"""MLflow as a projection of what is on disk: `sync` creates in MLflow what the files say and MLflow lacks.

Nothing is logged while a stage runs. DVC, a crash or a deleted database can therefore never make MLflow disagree with
the artifacts for longer than until the next `sync`. `flows.history.runs` says what is wanted, and `apply` makes MLflow
equal to it. The tree, in the experiment `autodidact`:

    self_evolution-s0-1a2b3c        one evolution: params.yaml without its iterations; every held-out figure
      i00, i01, ...                 one iteration, with the iteration's number as the step on both levels
        sample@i02, ...             one execution of a stage, that is one entry of dvc.lock or one record

Runs are found by their tags (`level`, `evolution`, `iteration`, `dvc.md5`, `record`), so calling twice creates nothing.
A changed entry of dvc.lock makes a new stage run and the old one stays. When a result that was already drawn changes
(same params.yaml, other code or other overrides in a row), the evolution run keeps its curve under the name
"... (superseded)" and a new one takes over. Without a record the run says `duration: unknown`. Weights stay in DVC:
models are logged as entities without files. `git.commit` is the record's, else the commit at the time of the projection.

Database: `.autodidact/mlflow/mlflow.db` of the main repository, or what `MLFLOW_TRACKING_URI` names: a server
(`http://...`, with MLflow's own variables for credentials) or another database. This is the only module that imports
mlflow, and it does so late. `python -m flows.track` projects everything.
"""

import json
import logging
import os
import re
import sqlite3
import time
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from flows.history import lock, records, runs
from flows.history.runs import Point, Wanted
from flows.machine import state
from flows.params import file, sections
from tasks.core import digests
from tasks.core.errors import AutodidactError, first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


EXPERIMENT = "autodidact"
PARENT = "mlflow.parentRunId"
SOURCE = {"mlflow.source.name": "flows.track", "mlflow.user": "autodidact"}
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
    """A run as it is in MLflow."""

    id: str
    status: str
    start: int
    end: int | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each


@dataclass
class Tree:
    """The runs of one evolution that are there, and the one client that writes them."""

    client: "MlflowClient"
    experiment: str
    tags: dict[str, str]  # of every run: evolution, recipe, git.commit
    runs: list[Run]
    models: dict[str, str]  # DVC md5 -> MLflow's model id
    now: int  # milliseconds; grows by one a run, so that runs of unknown time keep their order
    created: int = 0
    touched: set[str] = field(default_factory=set)

    def find(self, tags: Mapping[str, str]) -> Run | None:
        """The newest run that has all these tags; None without tags."""
        matching = (run for run in self.runs if tags and tags.items() <= run.tags.items())
        return max(matching, key=lambda run: run.start, default=None)

    def drawn(self, run: Run, points: Iterable[Point]) -> dict[tuple[str, int], float]:
        """The last values of these metrics, by name and step."""
        names = run.metrics.keys() & {name for name, _, _ in points}
        history = [point for name in names for point in self.client.get_metric_history(run.id, name)]
        return {(point.key, point.step): point.value for point in sorted(history, key=lambda point: point.timestamp)}

    def open(self, wanted: Wanted, parent: Run | None) -> Run:
        """Creates the run, with its tags alone."""
        self.now += 1
        tags = {**self.tags, **wanted.tags, **wanted.identity, **wanted.alias, **_below(parent)}
        run = _read(self.client.create_run(self.experiment, wanted.start or self.now, tags, wanted.name))
        self.created += 1
        self.touched.add(run.id)
        self.runs.append(run)
        return run

    def log(self, run: Run, points: Iterable[Point], tags: Mapping[str, str], at: int | None = None) -> None:
        """Writes the points, at a time or now, and those tags that differ."""
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(name, value, at or self.now, step) for name, value, step in points]
        changed = {k: v for k, v in tags.items() if run.tags.get(k) != v}
        if metrics or changed:
            self.client.log_batch(run.id, metrics)
            self.client.log_batch(run.id, tags=[RunTag(k, v) for k, v in changed.items()])
            run.metrics.update({metric.key: metric.value for metric in metrics})
            run.tags.update(changed)
            self.touched.add(run.id)

    def log_params(self, run: Run, params: Mapping[str, str]) -> None:
        """Writes the parameters that the run lacks; MLflow lets none change."""
        from mlflow.entities import Param

        lacking = {k: v for k, v in params.items() if k not in run.params}
        self.client.log_batch(run.id, params=[Param(k, v) for k, v in lacking.items()])
        run.params.update(lacking)

    def link(self, run: Run, wanted: Wanted) -> None:
        """Tables read, models read, models made. A model is an entity without its files, found again by its DVC md5; one
        that was read and is not known here is left out."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput

        where = [InputTag("mlflow.data.context", wanted.tags.get("stage", ""))]
        tables = [Dataset(name, md5, "dvc", json.dumps({"uri": name})) for name, md5 in wanted.tables.items()]
        known = [LoggedModelInput(self.models[md5]) for md5 in dict.fromkeys(wanted.used) if md5 in self.models]
        if tables or known:
            self.client.log_inputs(run.id, [DatasetInput(table, where) for table in tables] or None, known or None)
        outputs = self.client.get_run(run.id).outputs if wanted.made else None
        linked = {model.model_id for model in outputs.model_outputs} if outputs else set()
        for path, md5 in wanted.made.items():
            if md5 not in self.models:
                name, tags = f"{wanted.tags['iteration']}-candidate", {"dvc.md5": md5, "dvc.path": path}
                tags["evolution"] = self.tags["evolution"]
                made = self.client.create_logged_model(self.experiment, name, run.id, tags, model_type="policy")
                self.models[md5] = made.model_id
            if self.models[md5] not in linked:  # MLflow refuses the same link twice
                self.client.finalize_logged_model(self.models[md5], "READY")
                self.client.log_outputs(run.id, [LoggedModelOutput(self.models[md5], 0)])

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


def apply(wanted: Wanted, there: Tree) -> Run | None:
    """Makes MLflow equal to what is wanted; returns the evolution's run, if there is one. Another call changes nothing,
    and what a call that was cut short left is completed."""
    _close_foreign(wanted, there)
    return _apply(wanted, there, None)


def _apply(wanted: Wanted, there: Tree, parent: Run | None) -> Run | None:
    """One run and those below it. A complete run keeps its record, and a record that has a run is given no other."""
    run, opened = there.find(wanted.identity), there.find(wanted.alias)
    if run is None and opened and not wanted.identity.keys() & opened.tags.keys():
        run = opened
    if run is None and not wanted.create:
        return None
    complete = run and wanted.status and run.status != "RUNNING" and wanted.identity.items() <= run.tags.items()
    late = run and wanted.alias and not opened and not wanted.alias.keys() & run.tags.keys()
    if run is None or late or not complete:
        run = _write(run, wanted, there, parent)
    own = wanted.alias.items() <= run.tags.items()  # otherwise the run's figures are those of another record
    changed = {name: value for name, value in wanted.figures.items() if own and run.metrics.get(name) != value}
    figures = [(name, value, wanted.step) for name, value in changed.items()]
    there.log(run, figures, _below(parent))
    for child in wanted.below:
        _apply(child, there, run)
    if wanted.status is None:
        _settle(run, there)
    return run


def _write(run: Run | None, wanted: Wanted, there: Tree, parent: Run | None) -> Run:
    """Creates the run, or adds what it lacks. Status and the tags that find it go last: they say that the rest is
    there."""
    points = [*wanted.results, *wanted.points]
    drawn = there.drawn(run, points) if run else {}
    if run and any(drawn.get((name, step), value) != value for name, value, step in wanted.results):
        there.client.update_run(run.id, name=f"{wanted.name} (superseded)")
        there.log(run, [], {"superseded": "true"})
        run, drawn = None, {}
    run = run or there.open(wanted, parent)
    there.link(run, wanted)
    there.log_params(run, wanted.params)
    lacking = [(name, value, step) for name, value, step in points if drawn.get((name, step)) != value]
    there.log(run, lacking, wanted.tags, wanted.start if wanted.status else None)
    if wanted.status:
        there.close(run, wanted.status, None if wanted.seconds is None else run.start + round(wanted.seconds * 1000))
    there.log(run, [], {**wanted.identity, **wanted.alias})
    return run


def _below(parent: Run | None) -> dict[str, str]:
    return {PARENT: parent.id} if parent else {}


def _settle(parent: Run, there: Tree) -> None:
    """A parent runs as long as a stage below it does, and ends with the last one if all their ends are known."""
    ids = {parent.id, *(run.id for run in there.runs if run.tags.get(PARENT) == parent.id)}
    below = [run for run in there.runs if run.tags.get(PARENT) in ids and run.tags["level"] == "stage"]
    ends = [run.end for run in below]
    if any(run.status == "RUNNING" for run in below):
        there.close(parent, "RUNNING", None)
    else:
        there.close(parent, "FINISHED", max(end for end in ends if end) if ends and all(ends) else None)


def _close_foreign(wanted: Wanted, there: Tree) -> None:
    """Ends the runs that an earlier evolution left open: its process is gone, and params.yaml has moved on."""
    found = there.client.search_runs([there.experiment], "attributes.status = 'RUNNING'", max_results=5000)
    foreign = [run for run in map(_read, found) if run.tags.get("evolution") != there.tags["evolution"]]
    stages = [stage for run in (wanted, *wanted.below) for stage in run.below]
    status = {stage.identity["record"]: stage.status for stage in stages if "record" in stage.identity}
    fate = {r.id: status.get(r.tags.get("record", "")) or "KILLED" for r in foreign if r.tags.get("level") == "stage"}
    alive = {run.tags.get("evolution") for run in foreign if fate.get(run.id) == "RUNNING"}
    for run in foreign:
        if run.tags.get("evolution") not in alive:
            there.close(run, fate.get(run.id, "FINISHED"), None)


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` if set, else the repository's own database as an absolute sqlite URI."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{state.state_dir(root).resolve() / 'mlflow' / 'mlflow.db'}"


def name_of(params: Mapping[str, Any]) -> str:
    """The name of the run of an evolution: recipe, seed, and the first digits of its id."""
    return f"{params.get('recipe')}-s{params.get('seed')}-{lock.evolution_id(params)[:6]}"


def evolutions(root: Path) -> list[str]:
    """The names of all evolutions that MLflow has, whether or not their artifacts are still there; none where it has no
    database or cannot be reached."""
    uri = tracking_uri(root)
    path = _database(uri)
    if path and not path.is_file():
        return []
    state.quiet(root)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException, sqlite3.Error, OSError):
        _knock(uri)
        client = MlflowClient(tracking_uri=uri)
        if experiment := client.get_experiment_by_name(EXPERIMENT):
            query = "tags.level = 'evolution'"
            found = client.search_runs([experiment.experiment_id], query, max_results=5000)
            return sorted({str(run.info.run_name).removesuffix(" (superseded)") for run in found})
    return []


def sync(root: Path, full: bool = False) -> SyncResult:
    """Creates and updates what MLflow lacks. Without `full`, returns at once (and without importing mlflow)
    when params.yaml, dvc.lock and the records are those of the last sync. Raises `BadInput` for an unreadable
    params.yaml or dvc.lock, `TrackingFailed` where the database is locked, damaged or cannot be written."""
    params = file.load(root)
    evolution = lock.evolution_id(params)
    name = name_of(params)
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
            shows = apply(runs.wanted(root, params, name), tree)
            run = shows.id if shows else None
            settled = not any(r.status == "RUNNING" for r in tree.runs)
            state.write_json(marker, {"seen": seen if settled else None, "run": run, "experiment": tree.experiment})
    except Exception as error:
        home = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | sqlite3.Error) and home not in ("mlflow", "sqlalchemy", "alembic"):
            raise
        raise TrackingFailed(_advice(uri, error)) from error  # an OSError may be filelock's Timeout
    iterations = [r for r in tree.runs if r.tags.get(PARENT) == run and r.tags["level"] == "iteration"]
    ids = tuple(r.id for r in sorted(iterations, key=lambda r: sections.number(r.tags["iteration"])))
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
    there = [_read(run) for run in client.search_runs([number], query, max_results=50_000)]
    made = client.search_logged_models([number], filter_string=query, max_results=500) if there else []
    models = {model.tags["dvc.md5"]: model.model_id for model in made}
    everywhere = {**tags, "git.commit": records.commit(root), **SOURCE}
    return Tree(client, number, everywhere, there, models, now=round(time.time() * 1000))


def _read(run: "MlflowRun") -> Run:
    info, data = run.info, run.data
    tags, params, metrics = dict(data.tags), dict(data.params), dict(data.metrics)
    return Run(info.run_id, info.status, int(info.start_time), info.end_time, tags, params, metrics)


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

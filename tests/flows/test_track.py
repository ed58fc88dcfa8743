"""MLflow as a projection: a repository made by hand (every stage's outputs, dvc.lock, records), then the tree in
MLflow is compared with it, before and after it changes."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from flows import declared, state, track
from tasks.core import digests, params

SOURCE = Path(__file__).parents[2]
ACCURACY = {"i00": 0.25, "i01": 0.5, "i02": 0.625, "i03": 0.75}
SECONDS = 2.0


def md5(path: Path) -> str:
    """As DVC writes it; for folders only something of the same form."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    texts = [f"{p.relative_to(path)} {md5(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.md5("\n".join(texts).encode()).hexdigest() + ".dir"


def split(name: str) -> tuple[str, str | None]:
    stage, _, key = name.partition("@")
    return stage, key or None


def write_outputs(root: Path, key: str, values: dict[str, Any]) -> None:
    """The artifacts of one iteration that are read here; tables have 3 rows of 4 tokens each."""
    folder = root / "data" / key
    for name in ("samples", "critiques", "refinements", "refinement_critiques"):
        pl.DataFrame({"tokens": pl.Series([4, 4, 4], dtype=pl.Int32)}).write_parquet(folder / f"{name}.parquet")
    metrics = {"accuracy": ACCURACY[key], "accuracy_low": 0.1, "accuracy_high": 0.9, "pass_at_8": 0.9, "maj_at_8": None}
    texts = {"evaluation/metrics.json": metrics, "evaluation/probe.json": {"accuracy": 0.375}, "policy.json": values}
    for name, value in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))


def write_lock(root: Path) -> None:
    """dvc.lock as DVC would leave it for the files that are there."""
    given = params.load(root)
    stages = {}
    for name in declared.names(root, given):
        what = declared.declared(root, given, *split(name))
        stages[name] = {
            "cmd": f"python -m flows.stage {name}",
            "deps": [{"path": p, "hash": "md5", "md5": md5(root / p)} for p in what.deps],
            "params": {"params.yaml": dict(what.params)},
            "outs": [{"path": p, "hash": "md5", "md5": md5(root / p)} for p in what.outs],
        }
    with (root / "dvc.lock").open("w") as file:
        YAML(typ="safe").dump({"schema": "2.0", "stages": stages}, file)


def record(root: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A record of a finished execution, stored."""
    stage, key = split(name)
    what = declared.declared(root, params.load(root), stage, key)
    made = {
        "id": f"{name}-{len(list(state.records_dir(root).iterdir()))}",
        "stage": stage,
        "key": key,
        "status": "finished",
        "pid": 2**22 + 1,
        "started": 1_700_000_000.0 + len(list(state.records_dir(root).iterdir())),
        "seconds": SECONDS,
        "imports_seconds": 0.5,
        "params": dict(what.params),
        "figures": {"tokens_per_second": 1000.0},
        "curves": [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)] if stage == "train" else [],
        "tags": {"engine": "transformers"},
        "inputs": {},
        "outputs": {p: digests.of_path(root / p) for p in what.outs},
        "error": None,
        **changes,
    }
    state.write_record(root, made)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evolution of three iterations: 31 stages, every file small."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(SOURCE / name, root / name)
    given = params.load(root)
    everything = [declared.declared(root, given, *split(name)) for name in declared.names(root, given)]
    outs = {p for what in everything for p in what.outs}
    paths = {p for what in everything for p in (*what.outs, *what.deps)}
    for path in sorted(p for p in paths if p not in ("data/evaluations",)):
        target = root / path if "." in Path(path).name else root / path / "content.bin"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path)
    assert "data/i03/policy.json" in outs
    for key in ACCURACY:
        write_outputs(root, key, {"path": f"data/{key}/candidate", "digest": "d" * 8, "promoted": True, "reason": "up"})
    for name in ("samples", "critiques"):
        (root / "data" / "i00" / f"{name}.parquet").unlink()
    write_lock(root)
    return root


@pytest.fixture
def repository(finished: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished evolution, with an empty MLflow database."""
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "repository"
    shutil.copytree(finished, root)
    (state.state_dir(root) / "mlflow").mkdir()
    shutil.copy(template, state.state_dir(root) / "mlflow" / "mlflow.db")
    return root


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty MLflow database: making its tables takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    yield path


def runs(root: Path, **tags: str) -> list[Any]:
    """Runs with these tags, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=track.tracking_uri(root))
    found = client.search_experiments(filter_string=f"name = '{track.EXPERIMENT}'")
    query = " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items())
    return sorted(client.search_runs([e.experiment_id for e in found], query), key=lambda run: str(run.info.run_name))


def history_of(root: Path, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=track.tracking_uri(root)).get_metric_history(run.info.run_id, name)
    return sorted((m.step, m.value) for m in found)


def inputs(root: Path, run: Any) -> list[str]:
    """Ids of the models that a run used; a search for runs does not return them."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=track.tracking_uri(root)).get_run(run.info.run_id)
    return [m.model_id for m in found.inputs.model_inputs]


def stage_count(root: Path) -> int:
    return len(declared.names(root, params.load(root)))


def test_the_tree_is_that_of_the_artifacts(repository: Path) -> None:
    for name in declared.names(repository, params.load(repository)):
        record(repository, name)
    began = time.monotonic()
    result = track.sync(repository)
    assert time.monotonic() - began < 10
    assert result.created == 1 + 4 + stage_count(repository)
    (evolution,) = runs(repository, level="evolution")
    assert evolution.info.run_name == result.name == f"self_evolution-s0-{evolution.data.tags['evolution'][:6]}"
    assert history_of(repository, evolution, "accuracy") == [(0, 0.25), (1, 0.5), (2, 0.625), (3, 0.75)]
    assert evolution.data.params["sample.iid.n"] == str(params.load(repository)["sample"]["iid"]["n"])
    iterations = runs(repository, level="iteration")
    assert [run.info.run_name for run in iterations] == ["i00", "i01", "i02", "i03"]
    assert {run.data.tags["mlflow.parentRunId"] for run in iterations} == {evolution.info.run_id}
    third = iterations[3]
    assert third.data.metrics["accuracy"] == 0.75 and third.data.metrics["probe/accuracy"] == 0.375
    assert third.data.metrics["promoted"] == 1 and third.data.tags["reason"] == "up"
    assert third.data.metrics["generated_tokens"] == 4 * 3 * 4
    assert third.data.metrics["seconds"] == len(params.LOOP) * SECONDS
    assert (third.data.tags["initial"], third.data.tags["judge"]) == ("i02", "i02")
    assert "maj_at_8" not in third.data.metrics
    assert {run.info.status for run in runs(repository)} == {"FINISHED"}


def test_a_stage_run_has_values_figures_curves_tables_and_models(repository: Path) -> None:
    for name in declared.names(repository, params.load(repository)):
        record(repository, name)
    track.sync(repository)
    (sample,) = runs(repository, stage="sample", iteration="i02")
    (parent,) = runs(repository, level="iteration", iteration="i02")
    assert sample.info.run_name == "sample@i02"
    assert sample.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {"evolution", "recipe", "git.commit", "dvc.md5"} <= set(sample.data.tags)
    assert sample.data.metrics["new_tokens"] == 12 and sample.data.metrics["tokens_per_second"] == 1000
    assert sample.info.end_time - sample.info.start_time == SECONDS * 1000
    assert sample.data.params["sample.iid.block"] == "iid_k"
    tables = {i.dataset.name: i.dataset.digest for i in sample.inputs.dataset_inputs}
    assert tables == {"i02/prompts": md5(repository / "data/i02/prompts.parquet")}
    (train,) = runs(repository, stage="train", iteration="i02")
    assert history_of(repository, train, "curve/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert train.data.tags["initial"] == "data/i01/candidate dddddddd"
    assert "i02/dataset" in {i.dataset.name for i in train.inputs.dataset_inputs}
    (earlier,) = runs(repository, stage="train", iteration="i01")
    assert inputs(repository, train) == [m.model_id for m in earlier.outputs.model_outputs]


def test_calling_twice_creates_nothing_and_appending_an_iteration_stays_in_the_evolution(repository: Path) -> None:
    first = track.sync(repository)
    for full in (True, False):
        assert (again := track.sync(repository, full=full)).run == first.run
        assert (again.created, again.updated) == (0, 0)
    text = (repository / "params.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("  i03:"))
    more = line.replace("i02", "i03").replace("  i03: {", "  i04: {")
    (repository / "params.yaml").write_text(text.replace(line, f"{line}\n{more}"))
    assert "i04" in params.load(repository)["iterations"]
    assert track.sync(repository).created == 0
    assert len(runs(repository, level="evolution")) == 1


def test_without_records_durations_are_unknown_until_a_record_that_fits_appears(repository: Path) -> None:
    track.sync(repository)
    (sample,) = runs(repository, stage="sample", iteration="i01")
    assert sample.data.tags["duration"] == "unknown" and "seconds" not in sample.data.metrics
    assert sample.info.end_time is None
    assert "seconds" not in runs(repository, level="iteration", iteration="i01")[0].data.metrics
    record(repository, "sample@i01", outputs={"data/i01/samples.parquet": "of another execution"})
    track.sync(repository)
    assert runs(repository, stage="sample", iteration="i01")[0].data.tags["duration"] == "unknown"
    record(repository, "sample@i01")
    assert track.sync(repository).created == 0
    (sample,) = runs(repository, stage="sample", iteration="i01")
    assert sample.data.tags["duration"] == "recorded" and sample.data.metrics["seconds"] == SECONDS


def test_a_changed_entry_makes_a_new_run_and_the_old_one_stays(repository: Path) -> None:
    track.sync(repository)
    (repository / "tasks" / "sample.py").write_text("# other code")
    write_lock(repository)
    assert track.sync(repository).created == 3  # sample@i01, i02, i03
    assert len(runs(repository, stage="sample", iteration="i01")) == 2
    assert len(runs(repository, stage="critique", iteration="i01")) == 1


def test_a_changed_result_leaves_the_old_curve_and_draws_a_new_one(repository: Path) -> None:
    track.sync(repository)
    path = repository / "data/i03/evaluation/metrics.json"
    path.write_text(path.read_text().replace("0.75", "0.875"))
    write_lock(repository)
    result = track.sync(repository)
    assert result.created == 2  # the evolution and evaluate@i03
    (old,) = runs(repository, level="evolution", superseded="true")
    (new,) = runs(repository, level="evolution", superseded="false")
    assert old.info.run_name == f"{result.name} (superseded)"
    assert history_of(repository, old, "accuracy")[-1] == (3, 0.75)
    assert history_of(repository, new, "accuracy") == [(0, 0.25), (1, 0.5), (2, 0.625), (3, 0.875)]
    iterations = runs(repository, level="iteration")
    assert len(iterations) == 4 and iterations[3].data.metrics["accuracy"] == 0.875
    assert {run.data.tags["mlflow.parentRunId"] for run in iterations} == {new.info.run_id}
    assert track.sync(repository, full=True).created == 0


def test_other_values_are_another_evolution_that_shares_what_is_still_current(repository: Path) -> None:
    track.sync(repository)
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("per_prompt: 3, rounds", "per_prompt: 2, rounds"))
    track.sync(repository)
    evolutions = runs(repository, level="evolution")
    assert len(evolutions) == 2 and evolutions[0].data.tags["evolution"] != evolutions[1].data.tags["evolution"]
    second = max(evolutions, key=lambda run: run.info.start_time)
    assert history_of(repository, second, "accuracy") == [(0, 0.25)]
    kept = {run.info.run_name for run in runs(repository, level="stage", evolution=second.data.tags["evolution"])}
    assert kept == {"prepare", "base", "evaluate@i00", "synthesize@i01", "sample@i01", "critique@i01"}


def test_unfinished_records_open_runs_that_are_closed_as_what_became_of_them(repository: Path) -> None:
    record(repository, "train@i01", id="alive", status="running", pid=os.getpid(), seconds=None)
    record(repository, "train@i02", id="dead", status="running", seconds=None)
    record(repository, "train@i03", id="failed", status="failed", error="no rows\nmore")
    track.sync(repository)
    found = {run.data.tags["record"]: run for run in runs(repository, stage="train") if "record" in run.data.tags}
    assert {name: run.info.status for name, run in found.items()} == {
        "alive": "RUNNING",
        "dead": "KILLED",
        "failed": "FAILED",
    }
    assert found["failed"].data.tags["error"] == "no rows"
    assert history_of(repository, found["alive"], "curve/loss")[0] == (1, 1.0)
    assert {run.info.run_name for run in runs(repository) if run.info.status == "RUNNING"} > {"i01", "train@i01"}
    record(repository, "train@i01", id="alive", curves=[{"step": s, "loss": 1 / s} for s in (1, 2, 3, 4)])
    track.sync(repository)
    (run,) = [run for run in runs(repository, stage="train") if run.data.tags.get("record") == "alive"]
    assert run.info.status == "FINISHED" and len(history_of(repository, run, "curve/loss")) == 4
    assert all(run.info.status != "RUNNING" for run in runs(repository))


def test_a_run_left_open_by_an_earlier_evolution_is_closed(repository: Path) -> None:
    record(repository, "train@i01", id="first", status="running", pid=os.getpid(), seconds=None)
    track.sync(repository)
    record(repository, "train@i01", id="first", status="running", seconds=None)
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    track.sync(repository)
    (run,) = [run for run in runs(repository) if run.data.tags.get("record") == "first"]
    assert run.info.status == "KILLED"
    assert all(run.info.status != "RUNNING" for run in runs(repository))


def test_the_tree_comes_back_after_the_database_was_deleted(repository: Path) -> None:
    created = track.sync(repository).created
    (state.state_dir(repository) / "mlflow" / "mlflow.db").unlink()
    result = track.sync(repository)
    assert result.created == created
    assert history_of(repository, runs(repository, level="evolution")[0], "accuracy")[-1] == (3, 0.75)


def test_the_main_repository_holds_the_database(repository: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert track.tracking_uri(repository) == f"sqlite:///{tmp_path}/main/.autodidact/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert track.tracking_uri(repository) == "http://127.0.0.1:1"


def test_the_command_prints_one_line_and_refuses_a_locked_database(repository: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")}
    environment["PYTHONPATH"] = str(SOURCE)
    command = [sys.executable, "-m", "flows.track"]
    before = {p: p.read_bytes() for p in repository.glob("d*/**/*.json")}
    connection = sqlite3.connect(state.state_dir(repository) / "mlflow" / "mlflow.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "database is locked" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    connection.execute("ROLLBACK")
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and not done.stderr
    assert {p: p.read_bytes() for p in repository.glob("d*/**/*.json")} == before


def test_a_damaged_database_is_named(repository: Path) -> None:
    (state.state_dir(repository) / "mlflow" / "mlflow.db").write_text("this is no database, " * 1000)
    with pytest.raises(track.TrackingFailed, match="not a database"):
        track.sync(repository)

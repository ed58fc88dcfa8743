"""MLflow as a projection: a repository made by hand (every stage's outputs, dvc.lock, records), then the tree in
MLflow is compared with it, before and after it changes."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from flows.history import mlflow, records
from flows.history import runs as history_runs
from flows.history.lock import evolution_id
from flows.machine import processes, state
from flows.params import file, schema, sections
from flows.run import declared
from flows.run.background import server
from tasks.core import digests
from tests.support.paths import ROOT
from tests.support.work import write_yaml

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
    texts = {
        "evaluation/metrics.json": metrics,
        "evaluation/probe.json": {"metrics": {"accuracy": 0.375}, "guards": {}},
        "policy.json": values,
    }
    for name, value in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))


def write_lock(root: Path) -> None:
    """dvc.lock as DVC would leave it for the files that are there."""
    given = file.load(root)
    stages = {}
    for name in declared.names(declared.graph(root), given):
        what = declared.declared(declared.graph(root), given, *split(name))
        stages[name] = {
            "cmd": f"python -m flows.stage {name}",
            "deps": [{"path": p, "hash": "md5", "md5": md5(root / p)} for p in what.deps],
            "params": {"params.yaml": dict(what.params)},
            "outs": [{"path": p, "hash": "md5", "md5": md5(root / p)} for p in what.outs],
        }
    write_yaml(root / "dvc.lock", {"schema": "2.0", "stages": stages})


def edit(root: Path, **changes: Any) -> None:
    """Changes values in params.yaml by their dotted names, dots written as two underscores."""
    given = file.load(root)
    for name, value in changes.items():
        *path, last = name.split("__")
        place = given
        for part in path:
            place = place[part]
        place[last] = value
    write_yaml(root / "params.yaml", given)


def record(root: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A record of a finished execution, stored."""
    stage, key = split(name)
    given = file.load(root)
    what = declared.declared(declared.graph(root), given, stage, key)
    made = {
        "id": f"{name}-{len(list(records.records_dir(root).iterdir()))}",
        "stage": stage,
        "iteration": key,
        "status": "finished",
        "pid": 2**22 + 1,
        "started": 1_700_000_000.0 + len(list(records.records_dir(root).iterdir())),
        "seconds": SECONDS,
        "params": sections.section(given, stage, key),
        "figures": {"tokens_per_second": 1000.0},
        "curves": [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)] if stage == "train" else [],
        "tags": {"recipe": given["recipe"], "evolution": evolution_id(given)},
        "inputs": {},
        "outputs": {p: digests.of_path(root / p) for p in what.outs},
        "error": None,
        **changes,
    }
    records.write_record(root, made)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evolution of three iterations: 31 stages, every file small."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    given = file.load(root)
    everything = [
        declared.declared(declared.graph(root), given, *split(name))
        for name in declared.names(declared.graph(root), given)
    ]
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


def connectless(patch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        patch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tracked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished evolution, in MLflow, without any record of how it was made."""
    root = tmp_path_factory.mktemp("tracked") / "repository"
    shutil.copytree(finished, root)
    with pytest.MonkeyPatch.context() as patch:
        connectless(patch)
        assert mlflow.sync(root).created == 1 + 4 + stage_count(root)
    return root


@pytest.fixture(scope="module")
def recorded(finished: Path, tracked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished evolution with a record of every stage, in MLflow; for tests that change nothing."""
    root = tmp_path_factory.mktemp("recorded") / "repository"
    shutil.copytree(finished, root)
    with pytest.MonkeyPatch.context() as patch:
        connectless(patch)
        empty_database(tracked, root)
        for name in declared.names(declared.graph(root), file.load(root)):
            record(root, name)
        began = time.process_time()
        assert mlflow.sync(root).created == 1 + 4 + stage_count(root)
        assert time.process_time() - began < 10
    return root


@pytest.fixture
def repository(tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `tracked`, to be changed."""
    connectless(monkeypatch)
    root = tmp_path / "repository"
    shutil.copytree(tracked, root)
    return root


def empty_database(source: Path, root: Path) -> None:
    """Copies MLflow's database without its runs: making the tables takes seconds."""
    target = state.state_dir(root) / "mlflow"
    target.mkdir()
    shutil.copy(state.state_dir(source) / "mlflow" / "mlflow.db", target)
    with sqlite3.connect(target / "mlflow.db") as connection:
        tables = ("runs", "tags", "params", "metrics", "latest_metrics", "logged_models", "inputs", "datasets")
        for table in tables:
            connection.execute(f"DELETE FROM {table}")


def runs(root: Path, **tags: str) -> list[Any]:
    """Runs with these tags, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow.tracking_uri(root))
    found = client.search_experiments(filter_string=f"name = '{mlflow.EXPERIMENT}'")
    query = " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items())
    return sorted(client.search_runs([e.experiment_id for e in found], query), key=lambda run: str(run.info.run_name))


def history_of(root: Path, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=mlflow.tracking_uri(root)).get_metric_history(run.info.run_id, name)
    return sorted((m.step, m.value) for m in found)


def inputs(root: Path, run: Any) -> list[str]:
    """Ids of the models that a run used; a search for runs does not return them."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=mlflow.tracking_uri(root)).get_run(run.info.run_id).inputs
    assert found is not None
    return [m.model_id for m in found.model_inputs]


def everything(root: Path) -> list[tuple[Any, ...]]:
    """What MLflow has of every run, but for ids and moments."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow.tracking_uri(root))
    found = {run.info.run_id: client.get_run(run.info.run_id) for run in runs(root)}
    names = {run_id: run.info.run_name for run_id, run in found.items()}
    described = []
    for run in found.values():
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        parent = names.get(run.data.tags.get("mlflow.parentRunId", ""))
        seconds = run.info.end_time and run.info.end_time - run.info.start_time
        points = {name: history_of(root, run, name) for name in run.data.metrics}
        tables = sorted((i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs)
        models = [client.get_logged_model(m.model_id) for m in (*run.inputs.model_inputs, *run.outputs.model_outputs)]
        linked = sorted((model.name, model.tags["dvc.md5"], str(model.status)) for model in models)
        times = (run.info.status, seconds if "record" in tags else seconds is None)
        described.append((run.info.run_name, parent, times, tags, run.data.params, points, tables, linked))
    return sorted(described, key=str)


def stage_count(root: Path) -> int:
    return len(declared.names(declared.graph(root), file.load(root)))


def test_evolutions_are_listed_by_name_whatever_params_yaml_says_now(repository: Path) -> None:
    first = mlflow.name_of(file.load(repository))
    edit(repository, seed=5)
    assert mlflow.evolutions(repository) == [first]
    shutil.rmtree(state.state_dir(repository) / "mlflow")
    assert mlflow.evolutions(repository) == []
    assert not (state.state_dir(repository) / "mlflow").exists()


def test_the_tree_is_that_of_the_artifacts(recorded: Path) -> None:
    (evolution,) = runs(recorded, level="evolution")
    given = file.load(recorded)
    digest = evolution.data.tags["evolution"][:6]
    assert evolution.info.run_name == f"{given['recipe']}-s{given['seed']}-{digest}"
    assert history_of(recorded, evolution, "accuracy") == [(0, 0.25), (1, 0.5), (2, 0.625), (3, 0.75)]
    assert evolution.data.params["sample.iid.n"] == str(given["sample"]["iid"]["n"])
    iterations = runs(recorded, level="iteration")
    assert [run.info.run_name for run in iterations] == ["i00", "i01", "i02", "i03"]
    assert {run.data.tags["mlflow.parentRunId"] for run in iterations} == {evolution.info.run_id}
    third = iterations[3].data
    figures = ("accuracy", "probe/accuracy", "promoted", "generated_tokens", "seconds")
    assert [third.metrics[name] for name in figures] == [0.75, 0.375, 1, 4 * 3 * 4, len(schema.LOOP) * SECONDS]
    assert [third.tags[name] for name in ("reason", "initial", "judge")] == ["up", "i02", "i02"]
    assert "maj_at_8" not in third.metrics
    assert {run.info.status for run in runs(recorded)} == {"FINISHED"}


def test_a_stage_run_has_values_figures_curves_tables_and_models(recorded: Path) -> None:
    (sample,) = runs(recorded, stage="sample", iteration="i02")
    (parent,) = runs(recorded, level="iteration", iteration="i02")
    assert sample.info.run_name == "sample@i02"
    assert sample.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {"evolution", "recipe", "git.commit", "dvc.md5"} <= set(sample.data.tags)
    assert sample.data.metrics["new_tokens"] == 12
    assert sample.data.metrics["tokens_per_second"] == 1000
    assert sample.info.end_time - sample.info.start_time == SECONDS * 1000
    assert sample.data.params["sample.iid.block"] == "iid_k"
    tables = {i.dataset.name: i.dataset.digest for i in sample.inputs.dataset_inputs}
    assert tables == {"i02/prompts": md5(recorded / "data/i02/prompts.parquet")}
    (train,) = runs(recorded, stage="train", iteration="i02")
    assert history_of(recorded, train, "curve/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert train.data.tags["initial"] == "data/i01/candidate dddddddd"
    assert "i02/dataset" in {i.dataset.name for i in train.inputs.dataset_inputs}
    (earlier,) = runs(recorded, stage="train", iteration="i01")
    assert inputs(recorded, train) == [m.model_id for m in earlier.outputs.model_outputs]


def test_calling_twice_creates_nothing_and_appending_an_iteration_stays_in_the_evolution(repository: Path) -> None:
    for full in (False, True, False):
        result = mlflow.sync(repository, full=full)
        assert (result.created, result.updated) == (0, 0)
    last = file.load(repository)["iterations"]["i03"]
    edit(repository, iterations__i04=last, evaluations__i04=last)
    assert "i04" in file.load(repository)["iterations"]
    assert mlflow.sync(repository).created == 0
    assert len(runs(repository, level="evolution")) == 1


def test_what_is_wanted_follows_from_the_files_alone(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    shutil.copytree(finished, root)
    given = file.load(root)
    fits = record(root, "sample@i01")
    other = record(root, "sample@i02", outputs={"data/i02/samples.parquet": "of another execution"})
    fails = record(root, "train@i03", status="failed", error="no rows\nmore", seconds=None)
    evolution = history_runs.wanted(root, given, "name")
    assert (evolution.name, evolution.create, evolution.start) == ("name", True, round(fits["started"] * 1000))
    assert [point for point in evolution.results if point[0] == "accuracy"] == [
        ("accuracy", value, step) for step, value in enumerate(ACCURACY.values())
    ]
    assert sorted(step for name, _, step in evolution.points if name == "needed/made") == [0, 1, 2, 3]
    assert [run.name for run in evolution.below] == [*ACCURACY, "report"]
    entries = {run.name: run for part in evolution.below for run in part.below if "dvc.md5" in run.identity}
    assert len(entries) + 1 == stage_count(root)
    assert {run.status for run in entries.values()} == {"FINISHED"}
    assert entries["sample@i01"].alias == {"record": fits["id"]}
    assert (entries["sample@i01"].seconds, entries["sample@i02"].seconds) == (SECONDS, None)
    assert entries["sample@i01"].figures["paid/executions"] == 1
    found = {run.identity["record"]: run for part in evolution.below for run in part.below if "record" in run.identity}
    assert {name: (run.create, run.status) for name, run in found.items()} == {
        fits["id"]: (False, "FINISHED"),
        other["id"]: (False, "FINISHED"),
        fails["id"]: (True, "FAILED"),
    }
    (root / "dvc.lock").unlink()
    assert [run.name for run in history_runs.wanted(root, given, "name").below if run.create] == ["i03"]
    for path in records.records_dir(root).iterdir():
        path.unlink()
    assert not history_runs.wanted(root, given, "name").create


def test_syncs_that_are_cut_short_end_in_the_same_tree(
    recorded: Path, tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sync writes 11 times and is killed then, until one has no more to write."""
    from mlflow import MlflowClient

    connectless(monkeypatch)
    root = tmp_path / "repository"
    shutil.copytree(recorded, root, ignore=shutil.ignore_patterns("mlflow"))
    empty_database(tracked, root)
    left = 0

    def limited(name: str) -> None:
        write = getattr(MlflowClient, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= any((*args[2:], *kwargs.values()))  # without anything to write, nothing is asked
            if left < 0:
                raise KeyboardInterrupt
            return write(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, call)

    for name in ("create_run", "log_batch", "log_inputs", "log_outputs", "create_logged_model", "update_run"):
        limited(name)
    for name in ("finalize_logged_model", "set_terminated"):
        limited(name)
    syncs = 0
    while syncs == 0 or left < 0:
        left, syncs = 11, syncs + 1
        with contextlib.suppress(KeyboardInterrupt):
            mlflow.sync(root)
    assert syncs > 10
    assert everything(root) == everything(recorded)


def test_without_a_change_nothing_is_imported_and_nothing_asked(repository: Path, monkeypatch: Any) -> None:
    first = mlflow.sync(repository)

    def refuse(*_: Any) -> None:
        raise AssertionError("MLflow was asked")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "_connect", refuse)
        assert mlflow.sync(repository).run == first.run
    with sqlite3.connect(state.state_dir(repository) / "mlflow" / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", (first.run,))
    assert mlflow.sync(repository).created == 1


def test_without_records_durations_are_unknown_until_a_record_that_fits_appears(repository: Path) -> None:
    (sample,) = runs(repository, stage="sample", iteration="i01")
    assert sample.data.tags["duration"] == "unknown"
    assert "seconds" not in sample.data.metrics
    assert sample.info.end_time is None
    assert "seconds" not in runs(repository, level="iteration", iteration="i01")[0].data.metrics
    record(repository, "sample@i01", outputs={"data/i01/samples.parquet": "of another execution"})
    mlflow.sync(repository)
    assert runs(repository, stage="sample", iteration="i01")[0].data.tags["duration"] == "unknown"
    record(repository, "sample@i01")
    assert mlflow.sync(repository).created == 0
    (sample,) = runs(repository, stage="sample", iteration="i01")
    assert (sample.data.tags["duration"], sample.data.metrics["seconds"]) == ("recorded", SECONDS)


def test_what_was_used_is_on_every_level_adds_up_and_follows_the_prices(repository: Path) -> None:
    used = {"requests": 9, "requests_made": 7, "requests_distinct": 7, "engine_tokens": 70, "engine_seconds": 1.5}
    record(repository, "sample@i01", figures=used)
    record(repository, "sample@i02", figures=used)
    record(repository, "sample@i02", figures=used, status="failed", outputs={})
    mlflow.sync(repository)
    (evolution,) = runs(repository, level="evolution")
    stages = runs(repository, stage="sample", iteration="i02")
    assert [run.data.metrics["paid/made"] for run in stages if "record" in run.data.tags] == [7, 7]
    assert runs(repository, level="iteration", iteration="i02")[0].data.metrics["paid/made"] == 14
    assert runs(repository, level="iteration", iteration="i02")[0].data.metrics["needed/made"] == 7
    assert dict(history_of(repository, evolution, "paid/made")) == {0: 0, 1: 7, 2: 14, 3: 0}
    assert evolution.data.metrics["total/paid/made"] == 21
    assert "total/paid/cost" not in evolution.data.metrics
    edit(repository, prices__engine_hours=3600.0)
    result = mlflow.sync(repository)
    assert result.created == 0
    (evolution,) = runs(repository, level="evolution")
    assert evolution.data.metrics["total/paid/cost"] == 4.5
    assert runs(repository, level="iteration", iteration="i01")[0].data.metrics["paid/cost"] == 1.5
    assert mlflow.sync(repository, full=True).updated == 0
    edit(repository, prices__engine_hours=1800.0)
    mlflow.sync(repository)
    assert runs(repository, level="evolution")[0].data.metrics["total/paid/cost"] == 2.25
    assert runs(repository, record="sample@i01-0")[0].data.metrics["paid/cost"] == 0.75


def test_the_curve_of_what_was_used_has_one_point_for_each_iteration_that_is_whole(repository: Path) -> None:
    edit(repository, seed=5)  # another evolution
    write_lock(repository)
    whole = (repository / "dvc.lock").read_text()
    lock = yaml.safe_load(whole)
    del lock["stages"]["promote@i02"]
    write_yaml(repository / "dvc.lock", lock)
    used = {"requests": 9, "requests_made": 7, "requests_distinct": 7, "engine_tokens": 70, "engine_seconds": 1.5}
    record(repository, "sample@i02", figures=used)
    mlflow.sync(repository)
    (evolution,) = (run for run in runs(repository, level="evolution") if run.data.params["seed"] == "5")
    assert 1 in dict(history_of(repository, evolution, "needed/made"))
    assert 2 not in dict(history_of(repository, evolution, "needed/made"))
    (repository / "dvc.lock").write_text(whole)
    mlflow.sync(repository)
    assert [value for step, value in history_of(repository, evolution, "needed/made") if step == 2] == [7]


def test_a_changed_entry_makes_a_new_run_and_the_old_one_stays(repository: Path) -> None:
    (repository / "tasks" / "sample.py").write_text("# other code")
    write_lock(repository)
    assert mlflow.sync(repository).created == 3  # sample@i01, i02, i03
    assert len(runs(repository, stage="sample", iteration="i01")) == 2
    assert len(runs(repository, stage="critique", iteration="i01")) == 1


def test_a_changed_entry_with_the_same_outputs_shares_its_record(repository: Path) -> None:
    record(repository, "sample@i01")
    mlflow.sync(repository)
    (repository / "tasks" / "sample.py").write_text("# other code")
    write_lock(repository)
    mlflow.sync(repository)
    both = runs(repository, stage="sample", iteration="i01")
    assert len({run.data.tags["dvc.md5"] for run in both}) == 2
    assert {run.data.tags["record"] for run in both} == {"sample@i01-0"}
    assert [run.data.metrics["paid/executions"] for run in both] == [1, 1]


def test_a_stage_that_runs_again_to_the_same_bytes_leaves_the_run_of_its_entry_alone(repository: Path) -> None:
    record(repository, "sample@i01")
    mlflow.sync(repository)
    record(repository, "sample@i01", id="again", status="running", pid=os.getpid(), seconds=None, outputs={})
    assert mlflow.sync(repository).created == 1
    record(repository, "sample@i01", id="again", seconds=9.0)
    assert mlflow.sync(repository).created == 0
    found = {run.data.tags["record"]: run for run in runs(repository, stage="sample", iteration="i01")}
    assert {name: run.data.metrics["seconds"] for name, run in found.items()} == {"sample@i01-0": SECONDS, "again": 9}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert "dvc.md5" not in found["again"].data.tags


def test_a_failure_of_an_iteration_whose_row_is_gone_stops_nothing(repository: Path) -> None:
    record(repository, "sample@i03", iteration="i04", id="lone", status="failed", error="no rows")
    mlflow.sync(repository)
    (run,) = runs(repository, record="lone")
    assert (run.info.run_name, run.info.status) == ("sample@i04", "FAILED")


def test_a_changed_result_leaves_the_old_curve_and_draws_a_new_one(repository: Path) -> None:
    path = repository / "data/i03/evaluation/metrics.json"
    path.write_text(path.read_text().replace("0.75", "0.875"))
    write_lock(repository)
    result = mlflow.sync(repository)
    assert result.created == 2  # the evolution and evaluate@i03
    (old,) = runs(repository, level="evolution", superseded="true")
    (new,) = runs(repository, level="evolution", superseded="false")
    assert old.info.run_name == f"{result.name} (superseded)"
    assert history_of(repository, old, "accuracy")[-1] == (3, 0.75)
    assert history_of(repository, new, "accuracy") == [(0, 0.25), (1, 0.5), (2, 0.625), (3, 0.875)]
    tokens = [(step, value) for step, value in history_of(repository, new, "generated_tokens") if step]
    assert tokens == [(1, 48), (2, 48), (3, 48)]
    iterations = runs(repository, level="iteration")
    assert [run.data.metrics["accuracy"] for run in iterations] == [0.25, 0.5, 0.625, 0.875]
    assert {run.data.tags["mlflow.parentRunId"] for run in iterations} == {new.info.run_id}
    assert mlflow.sync(repository, full=True).created == 0


def test_other_values_are_another_evolution_that_shares_what_is_still_current(repository: Path) -> None:
    edit(repository, refine__revise__temperature=0.123)
    mlflow.sync(repository)
    evolutions = runs(repository, level="evolution")
    assert len({run.data.tags["evolution"] for run in evolutions}) == 2
    second = max(evolutions, key=lambda run: run.info.start_time)
    assert history_of(repository, second, "accuracy") == [(0, 0.25)]
    kept = {run.info.run_name for run in runs(repository, level="stage", evolution=second.data.tags["evolution"])}
    assert kept == {"prepare", "base", "evaluate@i00", "synthesize@i01", "sample@i01", "critique@i01"}


def test_unfinished_records_open_runs_that_are_closed_as_what_became_of_them(repository: Path) -> None:
    record(repository, "train@i01", id="alive", started=1.7e9, status="running", pid=os.getpid(), seconds=None)
    record(repository, "train@i02", id="dead", status="running", seconds=None)
    record(repository, "train@i03", id="failed", status="failed", error="no rows\nmore")
    mlflow.sync(repository)
    found = {run.data.tags["record"]: run for run in runs(repository, stage="train") if "record" in run.data.tags}
    assert {name: run.info.status for name, run in found.items()} == {
        "alive": "RUNNING",
        "dead": "KILLED",
        "failed": "FAILED",
    }
    assert found["failed"].data.tags["error"] == "no rows"
    assert history_of(repository, found["alive"], "curve/loss")[0] == (1, 1.0)
    assert {run.info.run_name for run in runs(repository) if run.info.status == "RUNNING"} > {"i01", "train@i01"}
    record(
        repository, "train@i01", id="alive", started=1.7e9, curves=[{"step": s, "loss": 1 / s} for s in (1, 2, 3, 4)]
    )
    mlflow.sync(repository)
    (run,) = [run for run in runs(repository, stage="train") if run.data.tags.get("record") == "alive"]
    assert (run.info.status, len(history_of(repository, run, "curve/loss"))) == ("FINISHED", 4)
    assert all(run.info.status != "RUNNING" for run in runs(repository))


def test_a_run_left_open_by_an_earlier_evolution_is_closed(repository: Path) -> None:
    record(repository, "train@i01", id="first", status="running", pid=os.getpid(), seconds=None)
    mlflow.sync(repository)
    record(repository, "train@i01", id="first", status="running", seconds=None)
    edit(repository, seed=12345)
    mlflow.sync(repository)
    (run,) = [run for run in runs(repository) if run.data.tags.get("record") == "first"]
    assert run.info.status == "KILLED"
    assert all(run.info.status != "RUNNING" for run in runs(repository))


def test_the_main_repository_holds_the_database(repository: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert mlflow.tracking_uri(repository) == f"sqlite:///{tmp_path}/main/.autodidact/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert mlflow.tracking_uri(repository) == "http://127.0.0.1:1"


def test_a_server_that_exists_has_the_same_tree(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = processes.free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--default-artifact-root", str(tmp_path)]
    environment = {**os.environ, **state.QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(mlflow.TrackingFailed, match="Start what MLFLOW_TRACKING_URI names"):
        mlflow.sync(repository)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not server.healthy(f"http://127.0.0.1:{port}") and time.monotonic() < deadline:
            time.sleep(0.2)
        result = mlflow.sync(repository)
        assert (result.created, mlflow.sync(repository).created) == (1 + 4 + stage_count(repository), 0)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for path in (tmp_path / "server.db", state.state_dir(repository) / "mlflow" / "mlflow.db"):
        with sqlite3.connect(path) as database:  # the repository's own has the runs that it had before
            assert database.execute("SELECT count(*) FROM runs").fetchone() == (result.created,)


def test_a_password_in_an_address_is_not_shown(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{processes.free_port()}")
    with pytest.raises(mlflow.TrackingFailed, match=r"http://127.0.0.1:") as caught:
        mlflow.sync(repository)
    assert "secret" not in str(caught.value)


def test_the_command_refuses_a_locked_database_and_rebuilds_a_deleted_one(repository: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "flows.track"]
    before = {p: p.read_bytes() for p in repository.glob("d*/**/*.json")}
    database = state.state_dir(repository) / "mlflow" / "mlflow.db"
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "database is locked" in done.stderr
    connection.close()
    database.unlink()
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")
    assert f"{1 + 4 + stage_count(repository)} runs created" in done.stdout
    assert {p: p.read_bytes() for p in repository.glob("d*/**/*.json")} == before
    assert history_of(repository, runs(repository, level="evolution")[0], "accuracy")[-1] == (3, 0.75)


def test_a_damaged_database_is_named(repository: Path) -> None:
    (state.state_dir(repository) / "mlflow" / "mlflow.db").write_text("this is no database, " * 1000)
    with pytest.raises(mlflow.TrackingFailed, match="not a database"):
        mlflow.sync(repository)

"""Killed in the middle, the next `dvc repro` goes on, and ends with the bytes of a run that nobody disturbed.

The real graph, in the two kinds of stages that keep what they have done so far: shards (sample, evaluate) and
checkpoints (train). Every moment of a stage's life is met on the toy graph, in tests/flows/run/test_kills.py."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.machine import state
from flows.machine.processes import alive
from tests.support.workspace import digests, environment, kept_server, lock, run, workspace

# In the order of the graph. The first kill takes the server, its watchdog and the process that keeps the libraries too.
TARGETS = {"sample@i01": signal.SIGKILL, "train@i01": signal.SIGTERM, "evaluate@i02": signal.SIGINT}

pytestmark = pytest.mark.slow


def processes(folder: Path) -> list[psutil.Process]:
    """Everything that works in this folder: DVC, stages, the server, its watchdog, whatever they started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def running(folder: Path) -> dict[str, Any] | None:
    """The record of the stage that runs now."""
    for path in (folder / ".autodidact/records").glob("*.json"):
        record = state.read_json(path)
        if record and record["status"] == "running" and alive(record["pid"], record["process_started"]):
            return record
    return None


def ran_since(folder: Path, target: str, moment: float) -> bool:
    """Whether the target has begun and ended since then."""
    records = [
        state.read_json(path) for path in (folder / ".autodidact/records").glob(f"{target.partition('@')[0]}*.json")
    ]
    return any(r and name(r) == target and r["started"] >= moment and r["status"] == "finished" for r in records)


def name(record: dict[str, Any]) -> str:
    return f"{record['stage']}@{record['iteration']}" if record["iteration"] else str(record["stage"])


def kill_in(folder: Path, target: str, number: int, after: float, everything: bool, *forced: str) -> str | None:
    """Starts `dvc repro` and ends its process tree some seconds after the target began; the stage that was hit. Where
    the target was so quick that nobody saw it run, the tree ends in what came after it."""
    began = time.time()
    process = subprocess.Popen(
        ["dvc", "repro", *forced], cwd=folder, env=environment(folder), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while (record := running(folder)) is None or name(record) != target:
        if process.poll() is not None or ran_since(folder, target, began):
            after = 0.0
            break
        time.sleep(0.005)
    time.sleep(after)
    hit = running(folder)
    victims = processes(folder) if everything else [process, *psutil.Process(process.pid).children(recursive=True)]
    for victim in victims:
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    process.wait(60)
    return name(hit) if hit else None


def test_a_run_that_was_killed_many_times_ends_with_the_same_bytes(tmp_path: Path, finished: Path) -> None:
    folder = workspace(tmp_path / "here", tmp_path / "cache")
    chance, hits = random.Random(0), []
    records = [json.loads(path.read_text()) for path in (finished / ".autodidact/records").glob("*.json")]
    seconds = {name(record): record["work_seconds"] for record in records}
    for turn, (target, number) in enumerate(TARGETS.items()):
        after = chance.uniform(0, 0.2 + 0.8 * seconds[target])  # what follows the work takes half a second
        if turn == 0:
            hit = kill_in(folder, target, number, after, True)
        else:
            with kept_server(folder):
                hit = kill_in(folder, target, number, after, False)
        hits.append(hit)
        for _ in range(5):
            if hit == target:
                break
            hits.append(hit := kill_in(folder, target, signal.SIGKILL, 0.0, True, "-f", "-s", target))
        locks = folder / ".dvc/tmp/rwlock"
        if locks.exists() and state.read_json(locks) is None:  # DVC's own, half written, and nobody was left to mend it
            run(folder, "python", "-m", "flows.check")
        assert not list((folder / "data").rglob("*.part"))
        assert not list((folder / "data").rglob("*.tmp"))
    run(folder, "dvc", "repro")
    assert digests(folder) == digests(finished)
    assert lock(folder) == lock(finished)
    assert "up to date" in run(folder, "dvc", "status")
    assert {hit.partition("@")[0] for hit in hits if hit} >= {target.partition("@")[0] for target in TARGETS}
    nothing_left(folder)


def nothing_left(folder: Path) -> None:
    """No process, no half file, no open record, no open run in MLflow."""
    deadline = time.monotonic() + 60
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [" ".join(process.cmdline()) for process in processes(folder)] == []
    assert not list((folder / ".autodidact/staging").iterdir())
    records = [json.loads(path.read_text()) for path in (folder / ".autodidact/records").glob("*.json")]
    assert {record["status"] for record in records} == {"finished", "failed"}
    run(folder, "python", "-m", "flows.track")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / '.autodidact/mlflow/mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=5000)
    assert {r.info.status for r in runs} <= {"FINISHED", "FAILED", "KILLED"}
    finished = [r.data.tags for r in runs if r.info.status == "FINISHED" and r.data.tags.get("stage") == "sample"]
    assert len(finished) == 3

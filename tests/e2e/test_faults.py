"""What breaks around a run, broken on purpose: the disk, files, databases, and a second run beside the first."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.workspace import digests, edit, environment, kept_server, ran, run

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(copy: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A finished run to break."""
    return copy(tmp_path)


def test_a_disk_that_is_full(repository: Path) -> None:
    """No file may grow beyond 4 KiB: the error is the system's own, met wherever the stage writes."""
    before = digests(repository)
    edit(repository, "iterations.i02.sample", {"iid": {"temperature": 0.9}})
    with kept_server(repository):
        limited = f"ulimit -f 4; exec {sys.executable} -m flows.stage sample i02"
        said = run(repository, "bash", "-c", limited, code=1)
        assert "sample@i02 failed: " in said
        assert "cannot be written" in said
        assert "make room" in said
        assert "Traceback" not in said
        assert not list((repository / ".autodidact/staging").iterdir())
        edit(repository, "iterations.i02.sample", {})
        assert ran(run(repository, "dvc", "repro")) == []  # what was there is there
        assert digests(repository) == before
        edit(repository, "iterations.i02.sample", {"iid": {"temperature": 0.9}})
        run(repository, "dvc", "repro", "-s", "sample@i02")
    assert digests(repository) != before


def test_a_corrupted_object_in_dvcs_cache(repository: Path) -> None:
    """DVC finds it, and the stage that made it runs again and gives the same bytes."""
    before = digests(repository)
    digest = before["data/i02/samples.parquet"]
    stored = repository.parent / "cache/files/md5" / digest[:2] / digest[2:]
    stored.chmod(0o644)
    damaged = bytearray(stored.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    stored.write_bytes(damaged)
    (repository / "data/i02/samples.parquet").unlink()
    assert ran(run(repository, "dvc", "repro")) == ["sample@i02"]
    assert digests(repository) == before
    assert "up to date" in run(repository, "dvc", "status")


@pytest.mark.parametrize(
    ("database", "fault"),
    [("prefect/prefect.db", "deleted"), ("prefect/prefect.db", "garbage"), ("mlflow/mlflow.db", "garbage"),
     ("mlflow/mlflow.db", "a folder")],
)  # fmt: skip
def test_a_database_that_is_lost(repository: Path, database: str, fault: str) -> None:
    """Prefect's and MLflow's databases hold nothing that a run needs."""
    before = digests(repository)
    file = repository / ".autodidact" / database
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    if fault == "garbage":
        file.write_text("this is no database" * 1000)
    elif fault == "a folder":
        file.mkdir()
    command = ("dvc", "repro", "-f", "-s", "promote@i02")
    if database.startswith("prefect") and fault != "deleted":
        said = run(repository, *command, code=255)
        assert "Prefect" in said
        assert "prefect-server.log" in said
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert ran(run(repository, *command)) == ["promote@i02"]
    assert digests(repository) == before
    assert "up to date" in run(repository, "dvc", "status")


def test_prefects_database_goes_away_in_the_middle_of_a_run(repository: Path) -> None:
    """The server goes on with the file it has open, or the run says so; either way the next one is as good as new."""
    before = digests(repository)
    with kept_server(repository):
        for path in (repository / ".autodidact/prefect").glob("prefect.db*"):
            path.unlink()
        command = ["dvc", "repro", "-f", "-s", "filter@i02", "promote@i02"]
        subprocess.run(command, cwd=repository, env=environment(repository), capture_output=True, check=False)
    run(repository, "dvc", "repro", "-f", "-s", "filter@i02", "promote@i02")
    assert digests(repository) == before
    assert "up to date" in run(repository, "dvc", "status")


@contextmanager
def locked(database: Path, seconds: float | None = None) -> Iterator[None]:
    """An open exclusive transaction of another process, for some seconds or until the end."""
    code = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30); "
    code += "c.execute('BEGIN EXCLUSIVE'); print(flush=True); "
    code += "sys.stdin.read()" if seconds is None else f"time.sleep({seconds})"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(database)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.communicate()


def test_mlflows_database_is_locked(repository: Path) -> None:
    """The run goes on and says what MLflow lacks, once; `flows.track` makes up for it."""
    edit(repository, "promote.tolerance", 0.031)
    before = {path: digest for path, digest in digests(repository).items() if not path.endswith("policy.json")}
    with locked(repository / ".autodidact/mlflow/mlflow.db"):
        assert set(ran(run(repository, "dvc", "repro"))) == {f"promote@{key}" for key in ("i01", "i02", "i03")}
        said = run(repository, "python", "-m", "flows.evolve")
        assert said.count("MLflow was not updated") == 1
        assert "database is locked" in said
        assert "Traceback" not in said
        refused = run(repository, "python", "-m", "flows.track", code=1)
        assert refused.startswith("MLflow was not updated")
        assert len(refused.splitlines()) == 1
    assert before.items() <= digests(repository).items()
    records = list((repository / ".autodidact/records").glob("promote@i03*.json"))
    assert all(json.loads(path.read_text())["status"] == "finished" for path in records)
    newest = max(records, key=lambda path: path.stat().st_mtime).stem
    assert "MLflow: " in run(repository, "python", "-m", "flows.track")
    with sqlite3.connect(repository / ".autodidact/mlflow/mlflow.db") as database:
        query = "SELECT count(*) FROM tags WHERE key = 'record' AND value = ?"
        assert database.execute(query, (newest,)).fetchone() == (1,)


def test_prefects_database_is_locked_for_some_seconds(repository: Path) -> None:
    """The server waits, the stage waits for the server, and nobody notices."""
    before = digests(repository)
    with kept_server(repository), locked(repository / ".autodidact/prefect/prefect.db", 6):
        assert ran(run(repository, "dvc", "repro", "-f", "-s", "promote@i03")) == ["promote@i03"]
    assert digests(repository) == before
    assert "up to date" in run(repository, "dvc", "status")


@pytest.mark.parametrize("fault", ["a file", "nothing may be written"])
def test_a_state_folder_that_cannot_be_written(repository: Path, fault: str) -> None:
    """One message, no server left behind, and every artifact where it was."""
    before, folder, aside = digests(repository), repository / ".autodidact", repository.parent / "aside"
    commands = ["python -m flows.stage promote i03", "python -m flows.evolve promote@i03"]
    if fault == "a file":
        folder.rename(aside)
        folder.touch()
        refused = run(repository, "python", "-m", "flows.check", code=2)
        assert ".autodidact: no folder, or cannot be written to" in refused
    else:
        commands = [f"ulimit -f 0; {commands[0]}"]
    for command in commands:
        said = run(repository, "bash", "-c", command, code=2)
        (line,) = [line for line in said.splitlines() if "cannot be written" in line]
        assert ".autodidact" in line
        assert "Traceback" not in said
        assert "Prefect: " not in said
    if fault == "a file":
        run(repository, "dvc", "repro", "-f", "-s", "promote@i03", code=255)
        folder.unlink()
        aside.rename(folder)
    assert ran(run(repository, "dvc", "repro")) == []
    assert digests(repository) == before


def test_two_runs_at_once(repository: Path) -> None:
    """One waits for the other or is told that it cannot; nothing is run twice and nothing is damaged."""
    before = digests(repository)
    edit(repository, "iterations.i03.train", {"sft": {"learning_rate": 0.0005}})
    commands = [["dvc", "repro"], [sys.executable, "-m", "flows.evolve"], ["dvc", "repro"]]
    running = []
    for command in commands:
        running.append(
            subprocess.Popen(
                command, cwd=repository, env=environment(repository), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
        time.sleep(0.3)
    said = [process.communicate(timeout=300)[0] for process in running]
    for process, output in zip(running, said, strict=True):
        assert process.returncode == 0 or "lock" in output, output
        assert "Traceback" not in output
    assert any(process.returncode == 0 for process in running)
    run(repository, "dvc", "repro")
    records = [json.loads(path.read_text()) for path in (repository / ".autodidact/records").glob("train@i03*.json")]
    assert sum(record["status"] == "finished" for record in records) == 2  # the run before, and one of these
    edit(repository, "iterations.i03.train", {})
    assert ran(run(repository, "dvc", "repro")) == []
    assert digests(repository) == before

"""Real `dvc repro` and `flows.evolve` on a toy repository: either may follow the other, and nothing runs twice."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.history.records import records_dir
from flows.run import graph

ALL = ["start", "grow@i01", "grow@i02"]


def gone(path: Path) -> bool:
    """Whether the run's server file goes away, and with it the server, within some seconds."""
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return not path.exists()


def test_both_ways_of_running_leave_the_same(toy: Any, tmp_path: Path) -> None:
    other = type(toy)(tmp_path / "other")
    shutil.copytree(toy.root, other.root, symlinks=True)

    repro = toy.dvc("repro")
    assert repro.returncode == 0, repro.stderr
    assert repro.stdout.count("Prefect: http://127.0.0.1:") == 1
    assert toy.lines("ran.log") == ALL
    assert gone(toy.root / ".autodidact/prefect/server.json")

    evolve = other.python("-m", "flows.evolve")
    assert evolve.returncode == 0, evolve.stderr
    assert evolve.stderr == ""
    assert evolve.stdout.count("Prefect: http://127.0.0.1:") == 1
    assert evolve.stdout.endswith("the table\n")
    assert other.lines("ran.log") == ALL
    assert other.lines("asked.log").count("load m1") == 1
    assert (other.root / "synced").exists()

    assert toy.artifacts() == other.artifacts()

    again = toy.python("-m", "flows.evolve")
    assert "3 of 3 stages unchanged" in again.stdout
    assert "Prefect" not in again.stdout
    assert "up to date" in other.dvc("status").stdout
    assert "up to date" in other.dvc("repro").stdout
    assert toy.lines("ran.log") == other.lines("ran.log") == []

    # What evolve stored, DVC's run cache gives back, and the other way round.
    for repository, command in ((other, ("-m", "dvc", "repro")), (toy, ("-m", "flows.evolve"))):
        shutil.rmtree(repository.root / "data")
        (repository.root / "dvc.lock").unlink()
        assert repository.python(*command).returncode == 0
        assert repository.lines("ran.log") == []
    assert toy.artifacts() == other.artifacts()


def test_only_what_an_edit_touches_runs(toy: Any, prefect_server: str) -> None:
    toy = replace(toy, server=prefect_server)
    assert toy.python("-m", "flows.evolve", "grow@i01").returncode == 0
    assert toy.lines("ran.log") == ["start", "grow@i01"]
    toy.edit("grow: {by: 2}", "grow: {by: 3}")
    assert toy.python("-m", "flows.evolve").returncode == 0
    assert toy.lines("ran.log") == ["grow@i02"]

    forced = toy.python("-m", "flows.evolve", "--force")
    assert forced.returncode == 0
    assert toy.lines("ran.log") == ALL
    assert "up to date" in toy.dvc("status").stdout

    toy.edit("grow: {by: 3}", "grow: {by: 13}")
    failed = toy.python("-m", "flows.evolve")
    assert failed.returncode == 1
    assert "grow@i02 failed: ValueError: thirteen is unlucky" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (toy.root / "data/i02/number.txt").exists()
    assert toy.dvc("checkout", "data/i01/number.txt").returncode == 0
    records = [json.loads(path.read_text()) for path in records_dir(toy.root).iterdir()]
    assert sorted(r["status"] for r in records).count("failed") == 1


@pytest.mark.parametrize("module", ["flows.stage", "flows.evolve"])
def test_bad_input_has_its_exit_code(toy_files: Any, module: str) -> None:
    unknown = toy_files.python("-m", module, "stert")
    assert unknown.returncode == 2
    assert "unknown stage 'stert'; did you mean 'start'?" in unknown.stderr
    toy_files.edit("by: 1", "by: -1")
    bad = toy_files.python("-m", module, "start")
    assert (bad.returncode, bad.stderr) == (2, "grow.by: given -1; at least 0\n")
    assert not (toy_files.root / "data").exists()


def test_outside_a_dvc_repository(toy_files: Any) -> None:
    assert toy_files.call("git", "init", "-q").returncode == 0
    result = toy_files.python("-m", "flows.evolve")
    assert result.returncode == 2
    assert "dvc init" in result.stderr


def test_the_locks_of_a_dvc_that_was_killed_while_writing_them(toy: Any) -> None:
    """DVC refuses the file; whoever looks at the repository with us mends it."""
    locks = toy.root / ".dvc/tmp/rwlock"
    locks.parent.mkdir(parents=True, exist_ok=True)
    for text in ("", '{"read": {'):
        locks.write_text(text)
        assert "RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted" in toy.dvc("repro").stderr
        graph.mend_dvc(toy.root)
        assert not locks.exists()
    locks.write_text("")
    assert toy.python("-m", "flows.evolve").returncode == 0
    assert "up to date" in toy.dvc("repro").stdout
    kept = locks.read_text()
    graph.mend_dvc(toy.root)
    assert locks.read_text() == kept

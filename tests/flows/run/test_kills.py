"""Killed at the moments that matter, the toy repository goes on and ends in the bytes of a run that nobody disturbed.

The moments are known by what happens there, so each is met for certain. tests/e2e/test_kills.py kills the real graph."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import Toy, make

VICTIM = "grow@i02"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Toy:
    """The toy repository with all but its last stage done."""
    toy = replace(make(tmp_path_factory.mktemp("half") / "toy"), server=prefect_server)
    assert toy.call("git", "init", "-q").returncode == 0
    assert toy.dvc("init", "-q").returncode == 0
    assert toy.dvc("repro", "grow@i01").returncode == 0
    return toy


@pytest.fixture(scope="module")
def undisturbed(half: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The artifacts of the whole run."""
    toy = copied(half, tmp_path_factory.mktemp("undisturbed") / "toy")
    assert toy.dvc("repro").returncode == 0
    return toy.artifacts()


def copied(half: Toy, root: Path) -> Toy:
    ignored = shutil.ignore_patterns("*.sock", "server.json")
    shutil.copytree(half.root, root, symlinks=True, ignore=ignored)
    return replace(half, root=root)


def kill_at(toy: Toy, moment: str, number: int) -> None:
    """Starts `dvc repro` and sends the signal to all of its processes when the last stage has come to the moment."""
    environment = {**toy.environment, "TOY_PAUSE": f"{VICTIM}:{moment}"}
    command = [sys.executable, "-m", "dvc", "repro"]
    process = subprocess.Popen(command, cwd=toy.root, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (toy.root / "paused").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for victim in [process, *those_in(toy.root)]:
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    process.wait(60)
    (toy.root / "paused").unlink()  # what a signal cannot end goes on to its own end, a shard's
    while [p for p in those_in(toy.root) if command_of(p)[-2:] == ["grow", "i02"]]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command_of(process: psutil.Process) -> list[str]:
    """Its command; [] of one that has ended by now."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def those_in(folder: Path) -> list[psutil.Process]:
    """Every process that works in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.parametrize("moment", ["work", "shard-1", "publish", "end"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_stage_that_was_killed(
    half: Toy, undisturbed: dict[str, bytes], tmp_path: Path, moment: str, number: Any
) -> None:
    toy = copied(half, tmp_path / "toy")
    before = toy.artifacts()
    asked = toy.lines("asked.log")
    assert asked.count("shard") == 3
    kill_at(toy, moment, number)
    assert {path: toy.artifacts().get(path) for path in before} == before  # nothing that was there is touched
    assert not [path for path in (toy.root / "data").rglob("*") if path.suffix in (".part", ".tmp")]
    done = toy.dvc("repro")
    assert done.returncode == 0, done.stderr
    assert toy.artifacts() == undisturbed
    assert "up to date" in toy.dvc("status").stdout
    assert toy.lines("asked.log").count("shard") == 3  # what was answered before the end is not asked again
    assert not list((toy.root / ".autodidact/staging").iterdir())
    records = [json.loads(path.read_text()) for path in (toy.root / ".autodidact/records").glob("grow@i02*.json")]
    assert {record["status"] for record in records} <= {"finished", "failed"}
    finished = [record["status"] for record in records].count("finished")
    assert finished == (2 if moment == "end" else 1)  # what DVC has not noted runs again

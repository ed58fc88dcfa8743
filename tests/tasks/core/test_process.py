"""Training in a process of its own: what is handed over, what comes back, and how such a process ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks.core import batches, process
from tasks.core.errors import BadInput, StageFailed

ROOT = Path(__file__).parents[3]
ROWS = batches.Rows(np.arange(7), np.array([0, 3]), np.array([3, 4]), np.array([1, 2]))


def test_batches_arrive_as_they_were():
    pairs = batches.PairBatches(ROWS, np.array([0.1]), np.array([0.2]), np.array([-1.0, -2.0]), np.array([[0], [0]]), 9)
    for source in (pairs, batches.SftBatches(ROWS, np.array([0.3, 1.0]), np.array([[0, 1]]), 0.5, 11, True)):
        arrays: process.Arrays = {}
        process._flatten(source, "0", arrays)
        again = process._built(type(source).__name__, "0", arrays)
        assert type(again) is type(source)
        assert again.digest() == source.digest()
        assert again.limit == source.limit
        assert getattr(again, "packed", None) == getattr(source, "packed", None)


def run(monkeypatch, folder, code):
    """What `_run` does with a process that runs `code`, and the progress that it was told."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(process, "command", lambda *given: [sys.executable, "-c", code])
    told = []
    process._run(folder, None, 1, lambda done, total: told.append((done, total)))
    return told


def test_progress_and_failures_come_back(monkeypatch, tmp_path):
    says = "print('chatter'); print('@progress 3 9', flush=True)"
    assert run(monkeypatch, tmp_path, says) == [(3, 9)]
    with pytest.raises(StageFailed, match=r"ended with exit code 4\nchatter"):
        run(monkeypatch, tmp_path, f"{says}; raise SystemExit(4)")
    with pytest.raises(StageFailed, match="ended with signal 9"):
        run(monkeypatch, tmp_path, "import os; os.kill(os.getpid(), 9)")
    for kind in (BadInput, StageFailed):
        (tmp_path / "error.json").write_text(json.dumps({"type": kind.__name__, "message": "no such layer"}))
        with pytest.raises(kind, match="no such layer"):
            run(monkeypatch, tmp_path, "raise SystemExit(1)")


def test_an_interrupted_caller_ends_it(monkeypatch, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    code = "import os, time; print('@progress', os.getpid(), 1, flush=True); time.sleep(60)"
    monkeypatch.setattr(process, "command", lambda *given: [sys.executable, "-c", code])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        process._run(tmp_path, None, 1, interrupt)
    assert time.monotonic() - began < 30


WATCHED = "import os, time; from tasks.core import process; process._watch(os.environ[process.PARENT]); print(os.getpid(), flush=True); time.sleep(60)"


def test_it_ends_with_the_process_that_it_works_for():
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    told = {**os.environ, process.PARENT: f"{socket.gethostname()}:{parent.pid}"}
    child = subprocess.Popen([sys.executable, "-c", WATCHED], cwd=ROOT, env=told, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    assert psutil.pid_exists(child.pid)
    parent.send_signal(signal.SIGKILL)  # and nobody waits for it yet
    assert child.wait(timeout=30) == 1
    parent.wait()


def test_the_command(tmp_path):
    assert process.command(tmp_path, None)[1:] == ["-m", "tasks.core.process", str(tmp_path)]
    launched = process.command(tmp_path, "two.yaml")[1:]
    assert launched[:4] == ["-m", "accelerate.commands.launch", "--config_file", "two.yaml"]
    assert launched[4:] == ["-m", "tasks.core.process", str(tmp_path)]


def test_what_is_refused_is_written_down(tmp_path, monkeypatch):
    def refuse(folder):
        raise BadInput("the model cannot be loaded")

    monkeypatch.setattr(process, "work", refuse)
    monkeypatch.delenv(process.PARENT, raising=False)
    assert process.main(tmp_path) == 1
    assert json.loads((tmp_path / "error.json").read_text()) == {
        "type": "BadInput",
        "message": "the model cannot be loaded",
    }

"""Training in a process of its own: what is handed over, what comes back, and how such a process ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from tasks.core.errors import BadInput, OutOfMemory, StageFailed
from tasks.core.training import apart, batches, encoding
from tests.support.paths import ROOT

ROWS = encoding.Rows(np.arange(7), np.array([0, 3]), np.array([3, 4]), np.array([1, 2]))


def test_batches_arrive_as_they_were():
    one, two, plan = np.array([0.1]), np.array([-1.0, -2.0]), np.array([[0], [0]])
    weighed = replace(ROWS, weights=np.linspace(0, 1, 7))
    pairs = batches.PairBatches(ROWS, one, np.array([0.2]), one, two, plan, 9)
    rated = batches.RatedBatches(weighed, np.array([True, False]), two, two, plan, ROWS, two, 9)
    for source in (pairs, rated, batches.SftBatches(ROWS, np.array([0.3, 1.0]), np.array([[0, 1]]), 0.5, 11, True)):
        arrays: apart.Arrays = {}
        apart._flatten(source, "0", arrays)
        again = apart._built(type(source).__name__, "0", arrays)
        assert type(again) is type(source)
        assert again.digest() == source.digest()
        assert again.limit == source.limit
        assert getattr(again, "packed", None) == getattr(source, "packed", None)


def run(monkeypatch, folder, code):
    """What `_run` does with a process that runs `code`, and the progress that it was told."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(apart, "command", lambda *given: [sys.executable, "-c", code])
    told = []
    apart._run(folder, None, 1, lambda done, total: told.append((done, total)))
    return told


def test_progress_and_failures_come_back(monkeypatch, tmp_path):
    says = "print('chatter'); print('@progress 3 9', flush=True)"
    assert run(monkeypatch, tmp_path, says) == [(3, 9)]
    for kind in (BadInput, StageFailed, MemoryError):
        (tmp_path / "error.json").write_text(json.dumps({"type": kind.__name__, "message": "no such layer"}))
        with pytest.raises(kind, match=r"^no such layer$"):
            run(monkeypatch, tmp_path, f"{says}; raise SystemExit(1)")
    assert not log(tmp_path).exists()


def log(folder):
    return folder.with_name(f"{folder.name}.log")


def test_an_end_without_a_word_is_one_line_and_a_log(monkeypatch, tmp_path):
    says = "print('chatter'); print('the last')"
    for end, how in (
        ("raise SystemExit(4)", "exit code 4"),
        ("import os, sys; sys.stdout.flush(); os.abort()", "signal 6"),
    ):
        with pytest.raises(StageFailed) as caught:
            run(monkeypatch, tmp_path, f"{says}; {end}")
        place = os.path.relpath(log(tmp_path))
        assert str(caught.value) == f"the training process ended with {how} (the last); what it printed is in {place}"
        assert log(tmp_path).read_text() == "chatter\nthe last\n"
    (tmp_path / "unexpected.json").write_text(json.dumps({"type": "KeyError", "message": "KeyError: 'x'"}))
    with pytest.raises(StageFailed, match=r"exit code 1 \(KeyError: 'x'\); what"):
        run(monkeypatch, tmp_path, f"{says}; raise SystemExit(1)")
    (tmp_path / "error.json").write_text(json.dumps({"type": "BadInput", "message": "no such layer"}))
    with pytest.raises(BadInput, match=r"^no such layer$"):  # what another of its processes said
        run(monkeypatch, tmp_path, f"{says}; raise SystemExit(1)")
    assert not log(tmp_path).exists()


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.kill(os.getpid(), 9)",
        "print('  exitcode  : -9 (pid: 7)'); raise SystemExit(1)",  # of accelerate launch, several processes
        "print('died with <Signals.SIGKILL: 9>.'); raise SystemExit(1)",  # and one
    ],
)
def test_a_killed_process_is_said_to_be(monkeypatch, tmp_path, code):
    with pytest.raises(OutOfMemory) as caught:
        run(monkeypatch, tmp_path, code)
    assert str(caught.value) == "the training process was killed (signal 9), most often because memory ran out"
    assert not log(tmp_path).exists()
    run(monkeypatch, tmp_path, "print('via Signals.SIGKILL, exitcode: -15'); raise SystemExit(0)")


def test_an_interrupted_caller_ends_it(monkeypatch, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    code = "import os, time; print('@progress', os.getpid(), 1, flush=True); time.sleep(60)"
    monkeypatch.setattr(apart, "command", lambda *given: [sys.executable, "-c", code])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        apart._run(tmp_path, None, 1, interrupt)
    assert time.monotonic() - began < 30


WATCHED = "import os, time; from tasks.core.training import apart as process; process._watch(os.environ[process.PARENT]); print(os.getpid(), flush=True); time.sleep(60)"


def test_it_ends_with_the_process_that_it_works_for():
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    told = {**os.environ, apart.PARENT: f"{socket.gethostname()}:{parent.pid}"}
    child = subprocess.Popen([sys.executable, "-c", WATCHED], cwd=ROOT, env=told, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    assert psutil.pid_exists(child.pid)
    parent.send_signal(signal.SIGKILL)  # and nobody waits for it yet
    assert child.wait(timeout=30) == 1
    parent.wait()


def test_the_command(tmp_path):
    assert apart.command(tmp_path, None)[1:] == ["-m", "tasks.core.training.apart", str(tmp_path)]
    launched = apart.command(tmp_path, "two.yaml")[1:]
    assert launched[:4] == ["-m", "accelerate.commands.launch", "--config_file", "two.yaml"]
    assert launched[4:] == ["-m", "tasks.core.training.apart", str(tmp_path)]


@pytest.mark.parametrize(
    ("error", "name", "written"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "error", ["MemoryError", "CUDA out of memory."]),
        (ValueError("no such\nlayer"), "unexpected", ["ValueError", "ValueError: no such"]),
    ],
)
def test_other_errors_are_written_down_too(tmp_path, monkeypatch, error, name, written):
    def fail(folder):
        raise error

    monkeypatch.setattr(apart, "work", fail)
    monkeypatch.delenv(apart.PARENT, raising=False)
    with pytest.raises(type(error)):
        apart.main(tmp_path)
    (found,) = tmp_path.iterdir()
    assert found.name == f"{name}.json"
    assert list(json.loads(found.read_text()).values()) == written


def test_what_is_refused_is_written_down(tmp_path, monkeypatch):
    def refuse(folder):
        raise BadInput("the model cannot be loaded")

    monkeypatch.setattr(apart, "work", refuse)
    monkeypatch.delenv(apart.PARENT, raising=False)
    assert apart.main(tmp_path) == 1
    assert json.loads((tmp_path / "error.json").read_text()) == {
        "type": "BadInput",
        "message": "the model cannot be loaded",
    }

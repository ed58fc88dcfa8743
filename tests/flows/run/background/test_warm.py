"""Stages forked from a process that has the libraries loaded: they are as good as processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.machine import processes, state
from flows.run.background import warm
from flows.run.background.fork import ask, wanted
from tests.support.paths import ROOT
from tests.support.workspace import run, workspace

API = "http://127.0.0.1:9/api"
SERVE = """
import os, sys, time
from pathlib import Path
from flows.run.background import warm
def command(arguments, pid):
    if arguments[0] == "sleep":
        print(os.getpid(), flush=True)
        time.sleep(60)
    if arguments[1:] == ["loaded"]:
        print([name in sys.modules for name in ("json", "colorsys")])
        return 0
    print(arguments, pid, os.environ.get("DVC_STAGE"), Path.cwd())
    print("complaint", file=sys.stderr)
    return 7
warm.LIBRARIES, warm.MODELS = ("json",), ("colorsys",)
warm.serve(Path(sys.argv[1]), command)
"""
ASK = """
import sys
from pathlib import Path
from flows.machine import state
from flows.run.background import fork
state.quiet(Path(sys.argv[1]))
code = fork.ask(Path(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))
print("code", code)
"""


def environment(root: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PREFECT_HOME": str(state.prefect_dir(root)), "PYTHONPATH": str(ROOT), **more}


def started(root: Path, *command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, *command, str(root)], env=environment(root, PREFECT_API_URL=API), cwd=root
    )
    info = {"url": API, "pid": None, "owners": [], "warm": {"pid": process.pid, "url": API}}
    state.write_json(state.prefect_dir(root) / "server.json", info)
    return process


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = started(tmp_path, "-c", SERVE)
    yield process
    process.kill()
    process.wait()


def asking(root: Path, pid: int, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ASK, str(root), str(pid), *arguments],
        env=environment(root, **more), cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while processes.alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes.alive(pid)


def test_a_fork_takes_over_streams_folder_and_environment_and_returns_the_exit_code(
    serving: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    asker = asking(tmp_path, serving.pid, "sample", "i01", DVC_STAGE="sample@i01")
    out, error = asker.communicate(timeout=30)
    assert out.splitlines() == [f"['sample', 'i01'] {asker.pid} sample@i01 {tmp_path}", "code 7"]
    assert error == "complaint\n"


def test_what_models_need_is_loaded_before_the_first_stage_that_uses_one(
    serving: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    for stage, loaded in (("promote", [True, False]), ("sample", [True, True]), ("promote", [True, True])):
        out, _ = asking(tmp_path, serving.pid, stage, "loaded").communicate(timeout=30)
        assert out.splitlines() == [str(loaded), "code 0"]


@pytest.mark.parametrize("other", [{"OMP_NUM_THREADS": "1"}, {"PREFECT_API_URL": "http://elsewhere/api"}])
def test_a_process_with_another_environment_runs_the_stage_itself(
    serving: subprocess.Popen[bytes], tmp_path: Path, other: dict[str, str]
) -> None:
    out, _ = asking(tmp_path, serving.pid, "sample", **other).communicate(timeout=30)
    assert out == "code None\n"


def test_where_nobody_serves_the_stage_runs_in_its_own_process(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert ask(tmp_path, ["sample"], ended.pid) is None
    assert ask(tmp_path, ["sample"], None) is None


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTODIDACT_WARM", raising=False)
    assert wanted() == (sys.platform == "linux")
    monkeypatch.setenv("AUTODIDACT_WARM", "0")
    assert not wanted()


def test_a_fork_ends_with_the_process_it_works_for(serving: subprocess.Popen[bytes], tmp_path: Path) -> None:
    asker = asking(tmp_path, serving.pid, "sleep")
    assert asker.stdout is not None
    fork = int(asker.stdout.readline())
    asker.kill()
    assert gone(fork)
    assert processes.alive(serving.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_fork(serving: subprocess.Popen[bytes], tmp_path: Path, number: int) -> None:
    asker = asking(tmp_path, serving.pid, "sleep")
    assert asker.stdout is not None
    fork = int(asker.stdout.readline())
    asker.send_signal(number)
    asker.communicate(timeout=30)
    assert gone(fork)


def test_a_killed_fork_is_reported_as_killed(serving: subprocess.Popen[bytes], tmp_path: Path) -> None:
    asker = asking(tmp_path, serving.pid, "sleep")
    assert asker.stdout is not None
    os.kill(int(asker.stdout.readline()), signal.SIGKILL)
    out, error = asker.communicate(timeout=30)
    assert out == "code 137\n"
    assert error == "sleep: the process was killed, by a user or for want of memory\n"


def test_it_ends_when_the_run_has_another_server(serving: subprocess.Popen[bytes], tmp_path: Path) -> None:
    asking(tmp_path, serving.pid, "sample").communicate(timeout=30)
    (state.prefect_dir(tmp_path) / "server.json").unlink()
    assert serving.wait(30) == 0
    assert not list(state.prefect_dir(tmp_path).glob("*.sock"))


def test_it_ends_when_nobody_is_left_to_end_it(serving: subprocess.Popen[bytes], tmp_path: Path) -> None:
    asking(tmp_path, serving.pid, "sample").communicate(timeout=30)
    path = state.prefect_dir(tmp_path) / "server.json"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    state.write_json(path, {**(state.read_json(path) or {}), "watchdog": gone.pid})
    assert serving.wait(30) == 0


def test_real_stages_are_forked_with_the_code_as_it_is_now(tmp_path: Path) -> None:
    root = workspace(tmp_path / "here", tmp_path / "cache")
    process = started(root, "-m", "flows.stage", "--keep")
    try:
        asker = asking(root, process.pid, "smaple")
        out, error = asker.communicate(timeout=60)
        assert out == "code 2\n"
        assert "smaple" in error
        assert "sample" in error
        errors = root / "tasks/core/errors.py"
        errors.write_text(errors.read_text() + "\nprint('edited')\n")
        assert "edited" in asking(root, process.pid, "smaple").communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()


def test_polars_whose_threads_a_fork_would_lack_is_left_to_the_forks() -> None:
    loads = f"import json, sys, threading\nfor name in {warm.LIBRARIES + warm.MODELS!r}: __import__(name)\n"
    says = "print(json.dumps([threading.active_count(), 'torch' in sys.modules, 'polars' in sys.modules]))"
    assert json.loads(run(ROOT, sys.executable, "-c", loads + says)) == [1, True, False]

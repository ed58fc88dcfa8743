"""Who starts the server, who shares it, and when it goes; a small web server stands in for Prefect's."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.history import records
from flows.machine import processes as machine_processes
from flows.machine import state
from flows.run.background import server
from tasks.core.errors import BadInput, StageFailed, Unwritable
from tests.support.paths import ROOT

STAND_IN = """
import http.server, sys
class Reply(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
    def log_message(self, *arguments): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Reply)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes that stand in for Prefect's server, in the order in which they were started."""
    processes: list[subprocess.Popen[str]] = []

    def start(root: Path) -> dict[str, Any]:
        process = subprocess.Popen([sys.executable, "-c", STAND_IN], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        processes.append(process)
        return {
            "url": f"http://127.0.0.1:{port}/api",
            "pid": process.pid,
            "started": psutil.Process(process.pid).create_time(),
        }

    monkeypatch.setattr(server, "_start_server", start)
    monkeypatch.setattr(machine_processes, "detached", lambda *arguments: psutil.Process().pid)  # no watchdog
    for name in ("PREFECT_API_URL", "DVC_ROOT"):
        monkeypatch.setenv(name, "")  # so that it is put back even where it was not set
        monkeypatch.delenv(name)
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def sleeper() -> tuple[subprocess.Popen[bytes], psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    return process, psutil.Process(process.pid)


def test_stages_of_a_run_share_one_server(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.ensure(tmp_path)
    server.wait(tmp_path, url)
    monkeypatch.delenv("PREFECT_API_URL")
    assert server.ensure(tmp_path) == url
    assert server.ensure(tmp_path) == url  # its own address in the environment is not a foreign server
    assert len(started) == 1
    info = state.read_json(state.prefect_dir(tmp_path) / "server.json")
    assert info is not None
    assert [owner["pid"] for owner in info["owners"]] == [psutil.Process().pid]


def test_a_dead_server_is_replaced(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = server.ensure(tmp_path)
    started[0].kill()
    started[0].wait()
    monkeypatch.delenv("PREFECT_API_URL")
    second = server.ensure(tmp_path)
    assert first != second
    server.wait(tmp_path, second)


def test_a_server_that_ends_while_starting_is_reported(started: Any, tmp_path: Path) -> None:
    url = server.ensure(tmp_path)
    started[0].kill()
    started[0].wait()
    with pytest.raises(StageFailed, match=r"ended while it started; its log"):
        server.wait(tmp_path, url)


def test_a_foreign_server_is_used_and_left_alone(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://example.invalid/api")
    for _ in range(2):
        assert server.ensure(tmp_path) == "http://example.invalid/api"
    assert started == []


def test_a_foreign_server_that_does_not_answer_is_named(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = f"http://127.0.0.1:{machine_processes.free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", silent)
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    with pytest.raises(BadInput, match=f"PREFECT_API_URL: no Prefect API answers at {silent}"):
        server.wait(tmp_path, server.ensure(tmp_path))
    assert started == []


def test_what_is_kept_for_a_run_is_started_once_and_goes_with_it(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = sleeper()
    monkeypatch.setattr(server, "_owner", lambda caller: owner[1])
    server.ensure(tmp_path)
    folder = tmp_path / "kept"
    folder.mkdir()
    begun = []

    def start() -> dict[str, Any]:
        begun.append(sleeper())
        process = begun[-1][1]
        return {"pid": process.pid, "started": process.create_time(), "folder": str(folder)}

    assert server.keep(tmp_path, "it", start) == server.keep(tmp_path, "it", start)
    begun[0][0].kill()
    begun[0][0].wait()
    assert server.keep(tmp_path, "it", start)["pid"] == begun[1][0].pid
    owner[0].kill()
    owner[0].wait()
    path = state.prefect_dir(tmp_path) / "server.json"
    state.write_json(path, {**(state.read_json(path) or {}), "watchdog": None})
    command = [sys.executable, "-m", "flows.run.background.watchdog", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert begun[1][0].wait(1) is not None
    assert not folder.exists()


def test_nothing_is_started_that_could_not_be_noted(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state.prefect_dir(tmp_path) / f".server.json.{psutil.Process().pid}").mkdir()  # where it is written first
    with pytest.raises(Unwritable, match=r"server.json: cannot be written \(Is a directory\)"):
        server.ensure(tmp_path)
    assert started == []


def test_the_server_goes_with_its_last_owner(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = [sleeper(), sleeper()]
    for _, owner in owners:
        monkeypatch.setattr(server, "_owner", lambda caller, owner=owner: owner)
        server.ensure(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL")
    path = state.prefect_dir(tmp_path) / "server.json"
    info = state.read_json(path) or {}
    state.write_json(path, {**info, "watchdog": None})  # the one started below is this run's
    command = [sys.executable, "-m", "flows.run.background.watchdog", str(tmp_path)]
    watchdog = subprocess.Popen(command, cwd=ROOT)
    time.sleep(3)  # it is watching
    locks = tmp_path / ".dvc/tmp/rwlock"
    locks.parent.mkdir(parents=True)
    locks.write_text('{"read": {')  # as a dvc leaves it that is killed while it writes
    owners[0][0].kill()
    owners[0][0].wait()
    seconds = 0.0
    while locks.exists() and seconds < 5:
        time.sleep(0.01)
        seconds += 0.01
    assert seconds < 0.4  # 0.1 on a machine that does nothing else; looking every half second took longer
    assert started[0].poll() is None
    owners[1][0].kill()
    owners[1][0].wait()
    watchdog.wait(20)
    assert started[0].wait(1) is not None
    assert not path.exists()


def test_dvc_is_recognised_by_its_command_line() -> None:
    class Process:
        def __init__(self, *words: str) -> None:
            self.words = list(words)

        def cmdline(self) -> list[str]:
            return self.words

    assert server._is_dvc(Process("/venv/bin/python", "/venv/bin/dvc", "repro"))
    assert server._is_dvc(Process("/venv/bin/python", "-m", "dvc", "repro"))
    assert server._is_dvc(Process("dvc", "repro"))
    assert not server._is_dvc(Process("make", "repro"))
    assert not server._is_dvc(Process("python", "-m", "flows.stage", "sample"))


def test_records_of_killed_processes_are_closed(tmp_path: Path) -> None:
    records.write_record(tmp_path, {"id": "a", "status": "running", "pid": 99999999, "process_started": 1.0})
    records.write_record(tmp_path, {"id": "b", "status": "running", "pid": psutil.Process().pid})
    records.close_dead_records(tmp_path)
    found = {path.stem: state.read_json(path) or {} for path in records.records_dir(tmp_path).iterdir()}
    assert found["a"]["status"] == "failed"
    assert found["b"]["status"] == "running"

"""Waiting for the end of processes."""

import subprocess
import sys
import threading
import time

import pytest

from flows.machine import processes


@pytest.fixture
def sleepers() -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]


def test_the_end_of_one_of_several_processes_is_seen_at_once(sleepers: list[subprocess.Popen[bytes]]) -> None:
    pids = [process.pid for process in sleepers]
    assert not processes.wait_for_end(pids, 0.05)
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        sleepers[1].kill()

    threading.Timer(0.3, kill).start()
    assert processes.wait_for_end(pids, 30)
    assert time.monotonic() - killed[0] < 1  # a few milliseconds, on a machine that does nothing else
    for process in sleepers:
        process.kill()
        process.wait()
    assert processes.wait_for_end(pids, 30)  # they are gone
    assert not processes.wait_for_end([], 0.01)

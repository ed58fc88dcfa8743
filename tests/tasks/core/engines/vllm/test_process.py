"""What vLLM's processes need around them; vLLM itself is in tests/extras."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tasks.core.engines.vllm import process

PARENT = """
import sys, time
from tasks.core.engines.vllm.engine import process as vllm_process
child = __import__("subprocess").Popen(["sleep", "600"])
vllm_process.watch([child.pid])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_what_is_watched_ends_with_a_process_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_what_is_no_longer_watched_lives_on() -> None:
    child = subprocess.Popen(["sleep", "600"])
    process.unwatch(process.watch([child.pid]))
    time.sleep(0.2)
    assert child.poll() is None
    child.kill()
    child.wait()


@pytest.mark.parametrize("eager", [True, False])
def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    before = dict(os.environ)
    with process.environment(3, 5, eager):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["VLLM_CPU_KVCACHE_SPACE"]) == ("3", "5")
        assert ("TORCHDYNAMO_DISABLE" in os.environ) == eager
        os.environ["LD_PRELOAD"] = "libtcmalloc.so"  # as vLLM does
    assert dict(os.environ) == before

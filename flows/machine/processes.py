"""Processes that outlive the one that started them."""

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def detached(command: list[str], log: IO[bytes], folder: Path, environment: Mapping[str, str] | None = None) -> int:
    """Starts a process that outlives this one and holds none of its streams; its number."""
    with log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        ).pid  # fmt: skip


def stop(pid: int, started: float) -> None:
    """Ends a process that `detached` started, by force if it takes longer than three seconds."""
    import psutil

    try:
        process = psutil.Process(pid)
        if not alive(pid, started):
            return
        process.terminate()
        try:
            process.wait(3)
        except psutil.TimeoutExpired:
            process.kill()
    except psutil.NoSuchProcess:
        return


def alive(pid: int, started: float | None = None) -> bool:
    """Whether the process runs; `started` (its start, seconds since 1970) tells it from a later one with its number."""
    import psutil

    try:
        process = psutil.Process(pid)
        same = started is None or abs(process.create_time() - started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(pids: Iterable[int], seconds: float) -> bool:
    """Waits until one of the processes has ended, which is seen at once, for so many seconds at most; whether one has."""
    ended = select.poll()
    with ExitStack() as opened:
        try:
            for pid in pids:
                descriptor = os.pidfd_open(pid)
                opened.callback(os.close, descriptor)
                ended.register(descriptor, select.POLLIN)
        except ProcessLookupError:
            return True
        except (AttributeError, OSError):  # a system that has no such descriptors, or none left
            time.sleep(seconds)
            return False
        return bool(ended.poll(seconds * 1000))

"""Asks the process that has the libraries loaded to run a stage."""

import contextlib
import json
import os
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.machine import processes, state

STARTUP = 20.0  # seconds a stage waits for the socket
KILLED = 128 + signal.SIGKILL
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def wanted() -> bool:
    """Whether stages may be forked here at all."""
    return sys.platform == "linux" and os.environ.get("AUTODIDACT_WARM", "1") != "0"


def ask(root: Path, arguments: list[str], pid: int | None, environment: Mapping[str, str] = os.environ) -> int | None:
    """The exit code of the stage, run by a fork of the process `pid`; None where it has to be run here.

    `environment`: what this process was given, where libraries have added to it since."""
    if not wanted() or pid is None or (connection := _connect(root, pid)) is None:
        return None
    request = {
        "arguments": arguments, "pid": os.getpid(), "folder": str(Path.cwd()),
        "environment": dict(environment), "like": like(),
    }  # fmt: skip
    with connection, connection.makefile("r") as replies:
        try:
            socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
            fork = replies.readline()
        except OSError:
            return None
        if not fork:
            return None
        with _passing_on(int(fork)):
            code = replies.readline().strip()
    if not code:
        print(f"{' '.join(arguments)}: the process was killed, by a user or for want of memory", file=sys.stderr)
        return KILLED
    return int(code)


@contextlib.contextmanager
def _passing_on(pid: int) -> Iterator[None]:
    """Signals that reach this process go to `pid`, which then decides how it ends."""
    before = {number: signal.signal(number, lambda number, _: os.kill(pid, number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _connect(root: Path, pid: int) -> socket.socket | None:
    deadline = time.monotonic() + STARTUP
    while processes.alive(pid) and time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.chdir(state.prefect_dir(root)):  # the path of a socket may have no more than 107 bytes
                connection.connect(f"warm-{pid}.sock")
            return connection
        except OSError:
            connection.close()
            time.sleep(0.05)
    return None


def like() -> list[Any]:
    """What a process must share with this one to do its work: the interpreter and the installed packages."""
    packages = sysconfig.get_path("purelib")
    return [sys.executable, sys.version, packages, Path(packages).stat().st_mtime_ns]

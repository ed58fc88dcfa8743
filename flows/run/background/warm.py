"""A process that has the libraries loaded: stages of one `dvc repro` are forked from it instead of loading them again.

DVC runs each stage as a process of its own, and loading Prefect, torch and transformers takes longer than many stages.
The first stage under a `dvc` starts this one (`flows.run.background.server`); that stage and later ones hand over their arguments,
working folder, environment and standard streams through a Unix socket, and a fork of it, which finds the libraries
loaded and imports this project's code anew, runs the stage. What models need is loaded before the first stage that uses
one. The stage's own process waits, passes signals on and ends with its exit code; if it is killed, the fork kills itself.

Only a like process may take over: same interpreter, same installed packages, same environment. Anything else, and
every failure to reach the socket, means that the stage runs in its own process, as it does without `dvc`, on other
systems than Linux, or with `AUTODIDACT_WARM=0`.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from flows.machine import processes, state
from flows.run.background.fork import like

# What takes seconds to load. Polars is left to the forks: it starts threads when it is loaded, which a fork would lack.
LIBRARIES = ("prefect.flow_engine", "prefect.task_engine", "prefect.task_runners")
MODELS = (
    "torch", "transformers.modeling_utils", "transformers.generation.utils", "transformers.models.auto.modeling_auto",
)  # fmt: skip
WITHOUT_MODELS = {"prepare", "synthesize", "filter", "promote", "report"}  # as a rule: such a stage may still load them
PASSING = {"DVC_STAGE", "DVC_ROOT", "PWD", "OLDPWD", "SHLVL", "_", "PREFECT_API_URL"}  # may differ between stages

LOOK = 2.0  # seconds between two looks at whether the server that this belongs to is still the run's

Command = Callable[[list[str], int], int]  # runs a stage on behalf of a process


def serve(root: Path, command: Command) -> None:
    """Forks one process per request, with the libraries loaded, until the run's server is another or gone."""
    state.quiet(root)
    environment = dict(os.environ)  # before libraries add to it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes the ended forks away
    with _listening(root) as listener:
        while _needed(root):
            with contextlib.suppress(OSError, ValueError):  # whatever is wrong with a request is its sender's affair
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(LOOK)
                    _fork(listener, connection, environment, command)


def _fork(listener: socket.socket, connection: socket.socket, environment: Mapping[str, str], command: Command) -> None:
    """Runs one stage in a fork, which tells its exit code and ends; returns in the process that keeps the libraries."""
    message, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    while message and not message.endswith(b"\n"):
        message += connection.recv(1 << 20)
    request = json.loads(message)
    if alike := _alike(request, environment):
        _load(request["arguments"][0])
    if not alike or os.fork():
        for stream in streams:
            os.close(stream)
        return
    code = 1
    try:
        listener.close()
        connection.settimeout(None)
        connection.sendall(b"%d\n" % os.getpid())
        _become(request, streams)
        threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
        code = command(request["arguments"], request["pid"])
    except BaseException:  # noqa: BLE001 - also what ends a process is only told to the one that asked
        traceback.print_exc()
    finally:
        _end(lambda: connection.sendall(b"%d\n" % code))


def _load(stage: str) -> None:
    """Imports what this stage needs and is not there yet; forks share it and need not look through it for garbage."""
    for library in (*LIBRARIES, *(() if stage in WITHOUT_MODELS else MODELS)):
        importlib.import_module(library)
    gc.freeze()


def _alike(request: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether a fork can stand for the process that asks."""
    theirs, ours = ({n: v for n, v in e.items() if n not in PASSING} for e in (request["environment"], environment))
    api = request["environment"].get("PREFECT_API_URL", _api())
    return bool(request["like"] == like() and theirs == ours and api == _api())


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Takes over what makes a process that of its caller; forgets this project's code, which may have changed."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in PASSING - {"PREFECT_API_URL"}:
        os.environ.pop(name, None)
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    for name in [name for name in sys.modules if name.split(".")[0] in ("flows", "tasks")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _end(last: Callable[[], None]) -> NoReturn:
    """What the interpreter does at its end, but for taking every module apart, which takes seconds with torch."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        last()
    finally:
        os._exit(0)


def _die_with(connection: socket.socket) -> None:
    """Ends this process when the one it works for is gone."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _listening(root: Path) -> Iterator[socket.socket]:
    name = f"warm-{os.getpid()}.sock"
    for old in state.prefect_dir(root).glob("warm-*.sock"):
        old.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(0o177)  # nobody else may have stages run
        with contextlib.chdir(state.prefect_dir(root)):
            listener.bind(name)
        os.umask(mask)
        listener.listen()
        listener.settimeout(LOOK)
        try:
            yield listener
        finally:
            (state.prefect_dir(root) / name).unlink(missing_ok=True)


def _needed(root: Path) -> bool:
    """Whether this process still belongs to the run, and somebody is there who would end it."""
    info = state.read_json(state.prefect_dir(root) / "server.json")
    mine = info is not None and info.get("warm", {}).get("pid") == os.getpid() and info["url"] == _api()
    return bool(mine and info and (not info.get("watchdog") or processes.alive(info["watchdog"])))


def _api() -> str:
    """The address that Prefect took over when it was loaded."""
    return os.environ["PREFECT_API_URL"]

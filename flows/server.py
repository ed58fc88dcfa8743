"""One Prefect server for a whole run: started when the first stage needs it, gone when the run is gone.

The first stage of a run starts the server, detached, on 127.0.0.1 and a free port, and prints its address; later stages
find it in `.autodidact/prefect/server.json` (guarded by a file lock). Each stage enters the process that it belongs
to, the run's owner: the nearest `dvc` above it, else itself. A watchdog, detached too, stops the server a few seconds
after the last owner has ended, and whatever else was started for the run (`keep`). Meanwhile it projects finished
stages into MLflow (`flows.track`), so that MLflow is imported once per run and not once per stage.

Where `PREFECT_API_URL` is set, that server is used and left alone.

    python -m flows.server watch ROOT    # the watchdog; started from here, never by hand
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import IO, Any

import typer

from flows import state, warm
from tasks.core.errors import BadInput, StageFailed

STARTUP = 120.0  # seconds the server may take to answer for the first time
PATIENCE = 15.0  # seconds in which a server that was there before has to answer
OWNERS = 0.5  # seconds between two looks at the run's owners
PROJECTION = 3.0  # seconds between two looks at what MLflow might lack
IDLE_SERVICES = (  # what nothing here uses: no deployments, no schedules, no automations
    "SCHEDULER", "LATE_RUNS", "FOREMAN", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "CLEANUP_RECONCILER", "TRIGGERS", "EVENT_LOGGER", "EVENT_PERSISTER",
)  # fmt: skip

app = typer.Typer(add_completion=False, help=__doc__)


def ensure(root: Path, pid: int | None = None) -> str:
    """The API address of this run's server, which may still be starting (see `wait`); sets `PREFECT_API_URL`.

    Call it before Prefect is imported. Starts server and watchdog where there are none, and under a `dvc` the process
    that keeps the libraries loaded. `pid`: the process on whose behalf this one works, if not its own."""
    import psutil

    given = os.environ.get("PREFECT_API_URL")
    with _lock(root):
        info = state.read_json(_file(root)) or {}
        state.write_json(_file(root), info)  # what could not be noted would outlive the run, so it is not started
        if given and not (info.get("pid") and info["url"] == given):
            info |= {"url": given, "pid": None, "started": None}
        elif not info.get("pid") or not state.alive(info["pid"], info["started"]):
            info |= _start_server(root)
        caller = psutil.Process(pid)
        owner = _owner(caller)
        owners = [o for o in info.get("owners", []) if o["pid"] != owner.pid and state.alive(o["pid"], o["started"])]
        owners.append({"pid": owner.pid, "started": owner.create_time(), "root": str(root.resolve())})
        info["owners"] = owners
        state.write_json(_file(root), info)
        if not info.get("watchdog") or not state.alive(info["watchdog"]):
            state.close_dead_records(root)
            log = (state.logs_dir(root) / "watchdog.log").open("ab")
            info["watchdog"] = detached([sys.executable, "-m", "flows.server", "watch", str(root.resolve())], log, root)
            state.write_json(_file(root), info)
        os.environ["PREFECT_API_URL"] = info["url"]
        if warm.wanted() and owner.pid != caller.pid and not _is_warm(info):
            log = (state.logs_dir(root) / "warm.log").open("ab")
            command = [sys.executable, "-m", "flows.warm", str(root.resolve())]
            environment = {**caller.environ(), "PREFECT_API_URL": info["url"]}  # nothing that libraries added to ours
            info["warm"] = {"pid": detached(command, log, root, environment), "url": info["url"]}
            state.write_json(_file(root), info)
    return str(info["url"])


def warm_process(root: Path) -> int | None:
    """The process of this run that has the libraries loaded, or is loading them; None where there is none."""
    info = state.read_json(_file(root)) or {}
    if info.get("pid") and not state.alive(info["pid"], info["started"]):
        return None
    return int(info["warm"]["pid"]) if _is_warm(info) else None


def _is_warm(info: Mapping[str, Any]) -> bool:
    return "warm" in info and info["warm"]["url"] == info["url"] and state.alive(info["warm"]["pid"])


def keep(root: Path, name: str, start: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The process of a run, with its `pid`, `started` and `folder`, that goes by this name; `start` starts it where
    there is none. The watchdog of `ensure`, which comes first, stops it and removes the folder when the run is gone."""
    with _lock(root):
        info = state.read_json(_file(root)) or {}
        kept: dict[str, Any] = info.setdefault("kept", {}).get(name) or {}
        if not kept or not state.alive(kept["pid"], kept["started"]):
            state.write_json(_file(root), info)  # as in `ensure`
            kept = info["kept"][name] = start()
            state.write_json(_file(root), info)
    return kept


def wait(root: Path, url: str) -> None:
    """Returns when the server answers. Raises `StageFailed` if it ended or does not answer in two minutes, `BadInput`
    if it is the user's own and does not answer."""
    began = time.monotonic()
    deadline = began + STARTUP
    while not healthy(url):
        info = state.read_json(_file(root)) or {}
        if not info.get("pid") and time.monotonic() > began + PATIENCE:
            raise BadInput(
                f"PREFECT_API_URL: no Prefect API answers at {url} (it ends in /api); start the server, or unset "
                "the variable, and each run starts one of its own"
            )
        ended = info.get("pid") and not state.alive(info["pid"])
        if ended or time.monotonic() > deadline:
            what = "ended while it started" if ended else f"did not answer within {STARTUP:.0f} s"
            raise StageFailed(
                f"the Prefect server at {url} {what}; its log: {state.logs_dir(root) / 'prefect-server.log'}"
            )
        time.sleep(0.1)


def healthy(url: str) -> bool:
    """Whether a Prefect API answers at this address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@app.command()
def watch(root: Path) -> None:
    """Stops the server when the run's last owner has ended; keeps MLflow up to date until then."""
    os.nice(5)
    info: dict[str, Any] = {}
    with ThreadPoolExecutor(1) as pool:
        projection = Projection(root, pool)
        while (found := _owned(root)) is not None:
            info = found
            if not info["owners"]:
                break
            projection.look({owner["root"] for owner in info["owners"]})
            time.sleep(OWNERS)
        if info.get("pid"):
            stop(info["pid"], info["started"])
        for kept in info.get("kept", {}).values():
            stop(kept["pid"], kept["started"])
            shutil.rmtree(kept["folder"], ignore_errors=True)
        state.mend_dvc(root)
        state.close_dead_records(root)
        projection.finish()


class Projection:
    """Brings MLflow up to date in a thread of its own, so that a slow database delays nobody."""

    def __init__(self, root: Path, pool: Executor) -> None:
        self._log = state.logs_dir(root) / "track.log"
        self._pool = pool
        self._roots = {str(root)}
        self._seen: object = None
        self._running: Future[None] | None = None
        self._due = time.monotonic() + PROJECTION

    def look(self, roots: set[str]) -> None:
        """Begins a projection if something was finished and none is under way."""
        self._roots |= roots
        if time.monotonic() < self._due or (self._running and not self._running.done()):
            return
        self.note()
        self._due = time.monotonic() + PROJECTION
        now = [_traces(Path(root)) for root in sorted(self._roots)]
        if now != self._seen:
            self._seen = now
            self._running = self._pool.submit(_project, sorted(self._roots))

    def finish(self) -> None:
        """One last projection, awaited."""
        wait_for([self._running] if self._running else [])
        self.note()
        self._running = self._pool.submit(_project, sorted(self._roots))
        wait_for([self._running])
        self.note()

    def note(self) -> None:
        """Logs what went wrong: MLflow is a projection, and whatever is wrong with it must not end a run."""
        error = self._running.exception() if self._running else None
        if error is not None:
            with self._log.open("a") as log:
                log.write(f"{time.strftime('%F %T')}\n{''.join(traceback.format_exception(error))}\n")
        self._running = None


@app.callback()
def _commands() -> None:
    """Keeps `watch` a command of its own."""


def _owned(root: Path) -> dict[str, Any] | None:
    """What `server.json` says, with those owners that live, and the file removed where none does; None where there is
    no such file, or another watchdog took over."""
    with _lock(root):
        info = state.read_json(_file(root))
        if info is None or info.get("watchdog") not in (None, os.getpid()):
            return None
        info["owners"] = [owner for owner in info.get("owners", []) if state.alive(owner["pid"], owner["started"])]
        if not info["owners"]:
            _file(root).unlink(missing_ok=True)
        return info


def _project(roots: list[str]) -> None:
    from flows import track

    for root in roots:
        if (Path(root) / "params.yaml").exists():  # the working copy of an experiment may be gone by now
            track.sync(Path(root))


def _traces(root: Path) -> list[tuple[str, int]]:
    """What changes when a stage begins or ends."""
    files = [root / "dvc.lock", *sorted(state.records_dir(root).glob("*.json"))]
    return [(str(file), file.stat().st_mtime_ns) for file in files if file.exists()]


def _start_server(root: Path) -> dict[str, Any]:
    import psutil

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    home = state.prefect_dir(root)
    environment = {
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in IDLE_SERVICES},
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_UI_API_URL": f"{address}/api",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    log = (state.logs_dir(root) / "prefect-server.log").open("ab")
    pid = detached(command, log, home, {**os.environ, **environment})
    print(f"Prefect: {address} (follow the run there; the server goes when the run goes)", flush=True)
    return {"url": f"{address}/api", "pid": pid, "started": psutil.Process(pid).create_time()}


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
        if not state.alive(pid, started):
            return
        process.terminate()
        try:
            process.wait(3)
        except psutil.TimeoutExpired:
            process.kill()
    except psutil.NoSuchProcess:
        return


def _owner(caller: Any) -> Any:
    """The process whose end is the run's end: the nearest `dvc` above the caller, else the caller."""
    return next((process for process in caller.parents() if _is_dvc(process)), caller)


def _is_dvc(process: Any) -> bool:
    import psutil

    try:
        words = process.cmdline()[:3]
    except psutil.Error:
        return False
    return any(Path(word).name == "dvc" for word in words[:2]) or words[1:] == ["-m", "dvc"]


def _file(root: Path) -> Path:
    return state.prefect_dir(root) / "server.json"


def _lock(root: Path) -> Any:
    from filelock import FileLock

    return FileLock(state.prefect_dir(root) / "server.lock", timeout=STARTUP)


if __name__ == "__main__":
    app()

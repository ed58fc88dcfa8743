"""One Prefect server for a whole run: started when the first stage needs it, gone when the run is gone.

The first stage of a run starts the server, detached, on 127.0.0.1 and a free port, and prints its address; later stages
find it in `.autodidact/prefect/server.json` (guarded by a file lock). Each stage enters the process that it belongs
to, the run's owner: the nearest `dvc` above it, else itself. A watchdog, detached too, stops the server a few seconds
after the last owner has ended, and whatever else was started for the run (`keep`). Meanwhile it projects finished
stages into MLflow (`flows.run.background.watchdog`), so that MLflow is imported once per run and not once per stage.

Where `PREFECT_API_URL` is set, that server is used and left alone.
"""

import os
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.history import records
from flows.machine import processes, state
from flows.machine.processes import detached, free_port
from flows.run.background import fork
from flows.run.background.note import STARTUP, file, lock
from tasks.core.errors import BadInput, StageFailed

WATCHDOG = (sys.executable, "-m", "flows.run.background.watchdog")
PATIENCE = 15.0  # seconds in which a server that was there before has to answer


IDLE_SERVICES = (  # what nothing here uses: no deployments, no schedules, no automations
    "SCHEDULER", "LATE_RUNS", "FOREMAN", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "CLEANUP_RECONCILER", "TRIGGERS", "EVENT_LOGGER", "EVENT_PERSISTER",
)  # fmt: skip


def ensure(root: Path, pid: int | None = None, keeper: Sequence[str] | None = None) -> str:
    """The API address of this run's server, which may still be starting (see `wait`); sets `PREFECT_API_URL`.

    Call it before Prefect is imported. Starts server and watchdog where there are none, and under a `dvc`, with the
    command `keeper`, the process that keeps the libraries loaded. `pid`: the process on whose behalf this one works, if
    not its own."""
    import psutil

    given = os.environ.get("PREFECT_API_URL")
    with lock(root):
        info = state.read_json(file(root)) or {}
        state.write_json(file(root), info)  # what could not be noted would outlive the run, so it is not started
        if given and not (info.get("pid") and info["url"] == given):
            info |= {"url": given, "pid": None, "started": None}
        elif not info.get("pid") or not processes.alive(info["pid"], info["started"]):
            info |= _start_server(root)
        caller = psutil.Process(pid)
        owner = _owner(caller)
        owners = [
            o for o in info.get("owners", []) if o["pid"] != owner.pid and processes.alive(o["pid"], o["started"])
        ]
        owners.append({"pid": owner.pid, "started": owner.create_time(), "root": str(root.resolve())})
        info["owners"] = owners
        state.write_json(file(root), info)
        if not info.get("watchdog") or not processes.alive(info["watchdog"]):
            records.close_dead_records(root)
            log = (state.logs_dir(root) / "watchdog.log").open("ab")
            info["watchdog"] = detached([*WATCHDOG, str(root.resolve())], log, root)
            state.write_json(file(root), info)
        os.environ["PREFECT_API_URL"] = info["url"]
        if keeper and fork.wanted() and owner.pid != caller.pid and not _is_warm(info):
            log = (state.logs_dir(root) / "warm.log").open("ab")
            command = [*keeper, str(root.resolve())]
            environment = {**caller.environ(), "PREFECT_API_URL": info["url"]}  # nothing that libraries added to ours
            info["warm"] = {"pid": detached(command, log, root, environment), "url": info["url"]}
            state.write_json(file(root), info)
    return str(info["url"])


def warm_process(root: Path) -> int | None:
    """The process of this run that has the libraries loaded, or is loading them; None where there is none."""
    info = state.read_json(file(root)) or {}
    if info.get("pid") and not processes.alive(info["pid"], info["started"]):
        return None
    return int(info["warm"]["pid"]) if _is_warm(info) else None


def _is_warm(info: Mapping[str, Any]) -> bool:
    return "warm" in info and info["warm"]["url"] == info["url"] and processes.alive(info["warm"]["pid"])


def keep(root: Path, name: str, start: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The process of a run, with its `pid`, `started` and `folder`, that goes by this name; `start` starts it where
    there is none. The watchdog of `ensure`, which comes first, stops it and removes the folder when the run is gone."""
    with lock(root):
        info = state.read_json(file(root)) or {}
        kept: dict[str, Any] = info.setdefault("kept", {}).get(name) or {}
        if not kept or not processes.alive(kept["pid"], kept["started"]):
            state.write_json(file(root), info)  # as in `ensure`
            kept = info["kept"][name] = start()
            state.write_json(file(root), info)
    return kept


def wait(root: Path, url: str) -> None:
    """Returns when the server answers. Raises `StageFailed` if it ended or does not answer in two minutes, `BadInput`
    if it is the user's own and does not answer."""
    began = time.monotonic()
    deadline = began + STARTUP
    while not healthy(url):
        info = state.read_json(file(root)) or {}
        if not info.get("pid") and time.monotonic() > began + PATIENCE:
            raise BadInput(
                f"PREFECT_API_URL: no Prefect API answers at {url} (it ends in /api); start the server, or unset "
                "the variable, and each run starts one of its own"
            )
        ended = info.get("pid") and not processes.alive(info["pid"])
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

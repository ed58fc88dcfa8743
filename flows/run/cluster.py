"""The Ray cluster that computes shards: an existing one, or one started on this machine for a whole run.

Section `runner` of params.yaml: `address` names a cluster (`ray://host:10001` through its Ray Client server from
anywhere, `host:6379` from one of its own machines). With null, the first stage of a run that has shards to compute
starts one, on free ports and closed by a token, with one CPU for each of the engine's threads of each worker; later
stages find it, and the watchdog of the run's Prefect server (`flows.run.background.server`) stops it when the run is gone. A process
connects once: in `flows.evolve` workers, and the models they hold, last over all stages.

Needs the extra `ray` (Ray and prefect-ray), imported only here and in `flows.run.workers`.
"""

import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.machine import processes, state
from flows.run.background import server
from tasks.core.errors import BadInput, StageFailed, one_line

PATIENCE = 5.0  # seconds in which an address has to answer
# Seconds for the process that the cluster starts for each Ray Client: Ray's own 30 are too few on busy cores.
PATIENT = {"RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120"}
STARTUP = 120.0  # seconds a cluster may take to start
OBJECTS = 100_000_000  # bytes of Ray's object store: shards go through the file system
ADDRESS = re.compile(r"(ray://)?([^\s/:]+):(\d+)")


def check(runner: Mapping[str, Any]) -> None:
    """Raises `BadInput` where Ray is asked for and is not installed, or its address cannot be one or is silent."""
    if runner["name"] != "ray":
        return
    if missing := [module for module in ("ray", "prefect_ray") if find_spec(module) is None]:
        raise BadInput(
            f"runner.name: given ray, but {' and '.join(missing)} cannot be imported; install the extra `ray` "
            "(`pip install --constraint constraints.txt '.[ray]'`), or set runner.name: local"
        )
    if (address := runner["address"]) is None:
        return
    if (parts := ADDRESS.fullmatch(address)) is None:
        raise BadInput(f"runner.address: given {address!r}; allowed are null, ray://HOST:PORT and HOST:PORT")
    try:
        socket.create_connection((parts[2], int(parts[3])), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise BadInput(
            f"runner.address: no Ray cluster answers at {address} ({error}); start it (`ray start --head`), give "
            "another address, or null to have one started on this machine"
        ) from error


def connect(root: Path, runner: Mapping[str, Any], threads: int) -> None:
    """Connects this process, if it is not yet. Raises `StageFailed` where the cluster cannot be used."""
    if (loaded := sys.modules.get("ray")) is not None and loaded.is_initialized():
        return
    address = runner["address"] or _own(root, runner["workers"] * threads)
    import ray

    quiet = {name: value for name, value in os.environ.items() if name in (*state.QUIET, "PREFECT_HOME")}
    try:
        ray.init(
            address, namespace="autodidact", log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": quiet}
        )
    except Exception as error:
        raise StageFailed(
            f"the Ray cluster at {address} cannot be used: {one_line(error)}\n  It needs the Ray and Python versions that "
            "are here, and its token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH) if it has one; HOST:PORT works from one of the "
            "cluster's own machines, ray://HOST:10001 from any"
        ) from error
    _room(runner, threads)


def _room(runner: Mapping[str, Any], threads: int) -> None:
    """Says so where no machine can take a worker. Raises `StageFailed` where none will: another's cluster may grow."""
    import ray

    wanted = {"CPU": threads, "GPU": runner["gpus"]}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(has.get(what, 0) >= amount for what, amount in wanted.items()) for has in machines):
        lack = f"no machine of the Ray cluster has {threads} CPUs and {runner['gpus']:g} GPUs, as a worker needs"
        if runner["address"] is None:
            raise StageFailed(f"{lack}; lower engine.threads or runner.gpus")
        print(f"{lack}; waiting for one", flush=True)


def _own(root: Path, cpus: int) -> str:
    """The address of the cluster that belongs to this run; its token is put where Ray looks when it is imported."""
    kept = server.keep(root, f"ray, {cpus} CPUs", lambda: _start(root, cpus))
    os.environ.update(_token(Path(kept["folder"])))
    deadline = time.monotonic() + STARTUP
    while "Ray runtime started" not in Path(kept["log"]).read_text(errors="replace"):
        if not processes.alive(kept["pid"], kept["started"]) or time.monotonic() > deadline:
            raise StageFailed(f"the Ray cluster of this run did not start; its log: {kept['log']}")
        time.sleep(0.1)
    return str(kept["address"])


def _start(root: Path, cpus: int) -> dict[str, Any]:
    """Starts a cluster of this machine alone, which obeys only those who can read its token: this user."""
    import psutil

    folder = Path(tempfile.mkdtemp(prefix="ad-ray-"))  # short: it holds sockets, whose paths have 107 bytes
    Path(_token(folder)["RAY_AUTH_TOKEN_PATH"]).write_text(secrets.token_hex(32))
    port, client = processes.free_port(), processes.free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    command += [f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0"]
    command += ["--include-dashboard=false", "--include-log-monitor=false", f"--object-store-memory={OBJECTS}"]
    log = state.logs_dir(root) / "ray.log"
    environment = {**os.environ, **_token(folder), "RAY_enable_worker_prestart": "0", **PATIENT}
    pid = processes.detached(command, log.open("wb"), root, environment)
    print(f"Ray: 127.0.0.1:{port} (a cluster of {cpus} CPUs on this machine; it goes when the run goes)", flush=True)
    started = psutil.Process(pid).create_time()
    return {
        "address": f"127.0.0.1:{port}", "client": f"ray://127.0.0.1:{client}",
        "pid": pid, "started": started, "folder": str(folder), "log": str(log),
    }  # fmt: skip


def _token(folder: Path) -> dict[str, str]:
    """Where Ray reads the token of a cluster: it listens on all of the machine's addresses, whatever it is told."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}

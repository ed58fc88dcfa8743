"""Serves MLflow: `python -m flows.ui`, which `make ui` calls, on 127.0.0.1 until Ctrl-C, up to date with the artifacts.

Prints the addresses of the views that answer most questions: all runs as a tree, the evolutions drawn over
their iterations, and the iterations of the present evolution side by side. With `MLFLOW_TRACKING_URI` set to
a server, that server has the pages, and only its address is printed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from flows import track
from flows.history import mlflow
from flows.machine import state, terminal
from tasks.core.errors import AutodidactError

HOST = "127.0.0.1"
VIEW = "workflowType=machine_learning"  # without it the UI shows the pages for chat applications
PATIENCE = 120.0  # seconds until the pages must answer


def addresses(base: str, result: mlflow.SyncResult) -> dict[str, str]:
    """What can be looked at -> its page; only the first page while there is no evolution."""
    found = {"MLflow": f"{base}/#/experiments"}
    if result.experiment is not None and result.run is not None:
        runs = f"{base}/#/experiments/{result.experiment}/runs?{VIEW}"
        evolutions = quote("tags.level = 'evolution' and tags.superseded = 'false'")
        ids, experiments = quote(json.dumps(result.iterations)), quote(json.dumps([result.experiment]))
        found["evolutions, iterations, stages"] = runs
        found["evolutions over their iterations"] = f"{runs}&searchFilter={evolutions}&compareRunsMode=CHART"
        found["this evolution's iterations"] = f"{base}/#/compare-runs?runs={ids}&experiments={experiments}&{VIEW}"
    return found


def free_port(wanted: int) -> int:
    """The wanted port if nothing listens there, else a free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AutodidactError(f"no free port on {HOST}")


def serve(root: Path, port: int) -> int:
    """Syncs, starts `mlflow ui`, prints its addresses, waits for its end; the server's exit code."""
    result = mlflow.sync(root, full=True)
    print(track.report(result))
    if result.uri.startswith(("http://", "https://")):
        print(f"MLflow runs at {mlflow.shown(result.uri)}")
        return 0
    chosen = free_port(port)
    artifacts = (state.state_dir(root) / "mlflow" / "artifacts").as_uri()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", result.uri, "--host", HOST]
    command += ["--port", str(chosen), "--workers", "1", "--default-artifact-root", artifacts]
    log = state.logs_dir(root) / "mlflow.log"
    environment = {**os.environ, **state.QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends this process ends the server too
    try:
        if not _answers(chosen, server):
            print(f"MLflow's pages did not start; see {log}", file=sys.stderr)
            return 1
        for what, page in addresses(f"http://{HOST}:{chosen}", result).items():
            print(f"{what}:\n  {page}")
        print("Ctrl-C ends it", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    """Waits until the port accepts connections; False if the server ends before, or patience does."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return True
        time.sleep(0.2)
    return False


def command(port: Annotated[int, typer.Option(help="another one is taken if it is in use")] = 5000) -> None:
    """Brings MLflow up to date and serves its pages on 127.0.0.1."""
    raise typer.Exit(serve(Path.cwd(), port))


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

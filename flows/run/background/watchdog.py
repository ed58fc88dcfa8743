"""Ends what a run leaves behind, and keeps MLflow up to date meanwhile.

python -m flows.run.background.watchdog ROOT    # started by `server`, never by hand
"""

import os
import shutil
import time
import traceback
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import typer

from flows.history import records
from flows.machine import processes, state
from flows.machine.processes import stop
from flows.run import graph
from flows.run.background.note import file, lock

OWNERS = 0.5  # seconds between two looks at the run's owners
PROJECTION = 3.0  # seconds between two looks at what MLflow might lack


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
            if processes.wait_for_end([owner["pid"] for owner in info["owners"]], OWNERS):
                graph.mend_dvc(root)  # first of all: the next `dvc` may be about to start
        if info.get("pid"):
            stop(info["pid"], info["started"])
        for kept in info.get("kept", {}).values():
            stop(kept["pid"], kept["started"])
            shutil.rmtree(kept["folder"], ignore_errors=True)
        graph.mend_dvc(root)
        records.close_dead_records(root)
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


def _owned(root: Path) -> dict[str, Any] | None:
    """What `server.json` says, with those owners that live, and the file removed where none does; None where there is
    no such file, or another watchdog took over."""
    with lock(root):
        info = state.read_json(file(root))
        if info is None or info.get("watchdog") not in (None, os.getpid()):
            return None
        info["owners"] = [owner for owner in info.get("owners", []) if processes.alive(owner["pid"], owner["started"])]
        if not info["owners"]:
            file(root).unlink(missing_ok=True)
        return info


def _project(roots: list[str]) -> None:
    from flows.history import mlflow

    for root in roots:
        if (Path(root) / "params.yaml").exists():  # the working copy of an experiment may be gone by now
            mlflow.sync(Path(root))


def _traces(root: Path) -> list[tuple[str, int]]:
    """What changes when a stage begins or ends."""
    files = [root / "dvc.lock", *sorted(records.records_dir(root).glob("*.json"))]
    return [(str(file), file.stat().st_mtime_ns) for file in files if file.exists()]


if __name__ == "__main__":
    typer.run(watch)

"""What is noted of a run's processes: `server.json`, and the lock beside it."""

from pathlib import Path
from typing import Any

from flows.machine import state

STARTUP = 120.0  # seconds the server may take to answer for the first time


def file(root: Path) -> Path:
    return state.prefect_dir(root) / "server.json"


def lock(root: Path) -> Any:
    from filelock import FileLock

    return FileLock(state.prefect_dir(root) / "server.lock", timeout=STARTUP)

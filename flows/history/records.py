"""Records: one JSON file for one execution of one stage, in the state folder; they may be deleted, and say no more then.

A record says what ran, on which inputs, for how long, with which figures; `flows.history.mlflow` fills MLflow from
records. Fields: id, stage, iteration, status (running, finished, failed), pid, started (seconds since 1970), seconds (whole
execution), work_seconds (the stage itself), params, figures, curves, tags, inputs and outputs (path -> digest), error
(message, or null).
"""

import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.machine import state
from flows.machine.processes import alive
from flows.machine.state import folder, read_json, state_dir, write_json

Record = Mapping[str, Any]


def records(root: Path) -> list[Record]:
    """All records, newest first."""
    found = [state.read_json(path) or {} for path in records_dir(root).glob("*.json")]
    found = [{"iteration": record.get("key"), **record} for record in found]  # as earlier versions called it
    return sorted((r for r in found if r.get("id") and r.get("stage")), key=started, reverse=True)


def started(record: Record) -> float:
    """When the execution began, in seconds since 1970."""
    value = record.get("started") or 0
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)


def commit(root: Path) -> str:
    """The commit that is checked out, "unknown" outside git."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def records_dir(root: Path) -> Path:
    """One JSON file per stage execution."""
    return folder(state_dir(root) / "records")


def write_record(root: Path, record: Mapping[str, Any]) -> None:
    """Stores a record under its id."""
    write_json(records_dir(root) / f"{record['id']}.json", record)


def drop_record(root: Path, record: Mapping[str, Any]) -> None:
    """Forgets a record: nothing was executed after all."""
    (records_dir(root) / f"{record['id']}.json").unlink(missing_ok=True)


def close_dead_records(root: Path) -> None:
    """Marks as failed what was running in a process that is gone, for instance killed."""
    for path in records_dir(root).glob("*.json"):
        record = read_json(path)
        if record and record.get("status") == "running" and not alive(record["pid"], record.get("process_started")):
            write_json(path, {**record, "status": "failed", "error": "the process was killed"})

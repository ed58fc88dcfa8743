"""Brings MLflow up to date with the files: `python -m flows.track`."""

import sys
from pathlib import Path

import typer

from flows.history.mlflow import SyncResult, shown, sync
from flows.machine import terminal


def report(result: SyncResult) -> str:
    """A sync in one line."""
    return f"MLflow: {result.name}: {result.created} runs created, {result.updated} updated ({shown(result.uri)})"


def command() -> None:
    """Rebuilds in MLflow whatever the artifacts, dvc.lock and the records say."""
    print(report(sync(Path.cwd(), full=True)))


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

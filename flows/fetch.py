"""A dataset of the hub as Parquet files: `python -m flows.fetch`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.machine import terminal
from flows.sharing.incoming import fetch


def command(
    name: Annotated[str, typer.Argument(help="a dataset of the hub (org/name), or a folder")],
    config: Annotated[str | None, typer.Option(help="the dataset's configuration (subset)")] = None,
    split: Annotated[list[str] | None, typer.Option(help="a split, may be given several times; default: all")] = None,
    revision: Annotated[str | None, typer.Option(help="a commit, tag or branch; default: the newest")] = None,
    into: Annotated[str | None, typer.Option(help="the folder to write")] = None,
) -> None:
    """Write a Hugging Face dataset as Parquet, for prepare.source."""
    folder, origin = fetch(Path.cwd(), name, config, split or [], revision, into)
    shown = os.path.relpath(folder)
    for made, rows in origin["rows"].items():
        print(f"{shown}/{made}.parquet  {rows:,} rows")
    print(f"revision {origin['revision']}; now: prepare.source: {shown}, prepare.options.split.file: SPLIT.parquet")


if __name__ == "__main__":
    sys.exit(terminal.code(lambda: typer.run(command)))

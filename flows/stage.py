"""Runs one stage: what every command in dvc.yaml calls.

    python -m flows.stage STAGE [ITERATION]      # python -m flows.stage sample i02

The work is that of `flows.run.runner`. Under a `dvc` it is done by a fork of a process that has the libraries loaded
(`flows.run.background.warm`), which the first stage starts with `python -m flows.stage --keep ROOT`.

Exit codes: 0 done, 1 the stage failed, 2 bad input.
"""

import contextlib
import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.machine import state, terminal
from flows.run.background import fork, server
from tasks.core.errors import Unwritable

KEEP = "--keep"
KEEPER = [sys.executable, "-m", "flows.stage", KEEP]  # the repository's folder goes behind it


def main(
    stage: Annotated[str, typer.Argument(help="prepare, base, synthesize, sample, ... as in dvc.yaml")],
    iteration: Annotated[str | None, typer.Argument(help="the iteration, for stages that have one: i01")] = None,
) -> None:
    """Run one stage of the graph. `dvc repro STAGE@ITERATION` does this when it is needed, and what it depends on."""
    root, code, keeper = Path.cwd(), None, None
    words = [stage, *([iteration] if iteration else [])]
    with contextlib.suppress(Unwritable):  # `command` says so
        state.quiet(root)
        keeper = server.warm_process(root)
        code = fork.ask(root, words, keeper)
    if code is None:
        from flows.run import runner

        code = runner.command(root, stage, iteration, keeper=KEEPER if keeper is None else None)
        terminal.quickly()
    raise typer.Exit(code)


def keep(root: Path) -> None:
    """Serves forks of this process, which has the libraries loaded, to the stages of the repository."""
    from flows.run.background import warm

    def run(words: list[str], pid: int) -> int:
        runner = importlib.import_module("flows.run.runner")  # a fork has forgotten this project's code
        return int(runner.command(Path.cwd(), *words, pid=pid))

    warm.serve(root, run)


if __name__ == "__main__":
    if sys.argv[1:2] == [KEEP]:
        keep(Path(sys.argv[2]))
    else:
        typer.run(main)

"""The whole graph in one process: what `dvc repro` does, with each model loaded once.

    python -m flows.evolve [STAGE@ITERATION ...] [--force]

Plans with DVC, skips what is current, takes what DVC's run cache has, and leaves dvc.lock, outputs and cache as `dvc
repro` would: either may follow the other, and nothing runs twice. Each stage is a Prefect flow, as it is there; where
all is current no server is started. Ends with the table of iterations. Exit codes: 0 done, 1 a stage failed, 2 bad
input.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.machine import state, terminal
from flows.run import graph
from flows.run.background import server
from flows.run.declared import names
from flows.run.runner import Runner, silence
from tasks.core.errors import AutodidactError, unknown_name


def evolve(root: Path, targets: Sequence[str], force: bool, begin: Callable[[], None] = lambda: None) -> list[str]:
    """Brings the targets up to date; the names of the stages that were not. `begin` is called before the first stage
    that has to run. Raises `BadInput` before any work, `StageFailed` when a stage failed."""
    runner = Runner(root)
    known = names(runner.graph, runner.params)
    groups = {name.partition("@")[0] for name in known}
    for target in targets:
        if target not in groups and target not in known:
            raise unknown_name("stage", target, {*groups, *known}, "dvc.yaml")
    silence()
    skipped: dict[str, int] = {}
    ran: list[str] = []

    def say(name: str, what: str) -> None:
        skipped[what] = skipped.get(what, 0) + 1
        if what != graph.UNCHANGED:
            print(f"{name}  {what}", flush=True)

    def run(stage: str, iteration: str | None) -> None:
        if not ran:
            begin()
        ran.append(stage)
        runner.execute(stage, iteration)

    with contextlib.closing(runner):
        done = graph.reproduce(root, targets, force, run, say)
    if graph.UNCHANGED in skipped:
        print(f"{skipped[graph.UNCHANGED]} of {len(ran) + sum(skipped.values())} stages unchanged", flush=True)
    return done


def command(root: Path, targets: Sequence[str], force: bool) -> int:
    """Runs the graph, with a server if a stage has to run, then tells MLflow and prints the table; the exit code."""
    began = time.monotonic()
    terminal.listen()
    try:
        state.quiet(root)
        graph.mend_dvc(root)
        done = evolve(root, targets, force, lambda: server.wait(root, server.ensure(root)))
        print(f"{len(done)} stages brought up to date in {time.monotonic() - began:.1f} s", flush=True)
        from flows import summary
        from flows.history import mlflow

        try:
            mlflow.sync(root)
        except mlflow.TrackingFailed as error:  # what was computed is there all the same
            print(error, file=sys.stderr)
        summary.show(root)
    except AutodidactError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the stage that ran left nothing, those before it are kept", file=sys.stderr)
        return 1
    return 0


def main(
    targets: Annotated[list[str] | None, typer.Argument(help="stages to bring up to date, with what they need")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="run them even if nothing changed")] = False,
) -> None:
    """Run the graph in one process, each model loaded once."""
    code = command(Path.cwd(), targets or [], force)
    terminal.quickly()
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

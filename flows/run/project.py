"""What the runner asks of this project: checked parameters, a stage's own part of them, the stages, and models.

The runner itself knows no stage and no section. A test gives it another `Project` and a graph of its own.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.run import cluster, outputs, workers
from tasks.core.asking.model import Progress
from tasks.core.errors import BadInput

if TYPE_CHECKING:
    from tasks.core.asking.opener import Opener
    from tasks.core.context import Context

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A stage's own part of params.yaml: its section as it stands there with the row's overrides, the same validated,
    which models the row names, and a seed of its own."""

    section: Mapping[str, Any]
    options: Any
    row: Mapping[str, str]
    seed: int


class Project:
    """The project as it is: params.yaml, the modules of tasks/, the models that they ask."""

    def params(self, root: Path, files: bool) -> dict[str, Any]:
        """params.yaml, checked as a whole, with `files` also the files it names. Raises `BadInput`."""
        from flows.params import compose, file, problems

        params = file.load(root)
        problems.check(params, root if files else None, compose.names())
        cluster.check(params["runner"])
        if linked := list(outputs.links(root)):
            raise BadInput("\n".join(linked))
        return params

    def part(self, params: Params, stage: str, iteration: str | None) -> Part:
        """The stage's part. Raises `BadInput`."""
        from flows.params import sections

        return Part(
            sections.section(params, stage, iteration),
            sections.options(params, stage, iteration),
            sections.row(params, iteration) if iteration else {},
            sections.seed(params, stage, iteration),
        )

    def run(self, stage: str) -> "Callable[[Context], None]":
        """The function that does the stage's work."""
        work: Callable[[Context], None] = importlib.import_module(f"tasks.{stage}").run
        return work

    def opener(self, root: Path, scratch: Path, params: Params, progress: Progress) -> "Opener":
        """What opens models for the stages, with shards computed as the section `runner` says."""
        from tasks.core.asking.opener import Opener

        engine, runner = params["engine"], params["runner"]
        run: Any = workers.run_here
        if runner["name"] == "ray":
            from tasks.core.engines import ENDPOINTS

            if engine["name"] not in ENDPOINTS:  # behind those a server does the work
                run = partial(workers.run_on_ray, root=root, runner=runner, threads=engine["threads"])
        return Opener(root, engine, scratch, run, progress, serving=params["serving"])

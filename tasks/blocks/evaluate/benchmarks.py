"""Standard benchmarks: which tasks of EleutherAI's lm-evaluation-harness (lm-eval) are measured, and under which names.

Params: `evaluate.benchmarks`, null or a mapping of sets of tasks (`Benchmark`), and `evaluate.benchmark_files`, a
folder with task files of the user's own in lm-eval's format. Everything that such a task reads, data and code, lies in
that folder: stage evaluate depends on it, so that an edit of any of it measures again, and a task that reads elsewhere
is refused.

The requests go through the engine like all others (`tasks.blocks.evaluate.harness`): sharded, stored, counted. Figures are flat:
    benchmark_<task>_<metric>            as lm-eval computes it; `_<filter>` follows where the task has filters
    benchmark_<task>_<metric>_stderr     its standard error, null where lm-eval has none
    benchmark_<task>_samples             questions that were asked
Groups have the same names. No figure is read by the loop. Without benchmarks lm-eval is not imported.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.blocks.evaluate.options import MISSING_LM_EVAL, Benchmark
from tasks.core.asking.model import Model
from tasks.core.errors import BadInput

if TYPE_CHECKING:
    from tasks.blocks.evaluate.harness import TaskSet


PREFIX = "benchmark_"
DECIMALS = 6


def load(chosen: Mapping[str, Benchmark], root: Path, files: str, scores: bool = True) -> "list[TaskSet]":
    """The tasks with their data. `files`: the folder with the user's tasks, relative to `root`; `scores`: whether the
    engine tells log-probabilities of given text. Raises `BadInput` for whatever cannot be measured, before anything is asked."""
    try:
        from tasks.blocks.evaluate import harness
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise BadInput(MISSING_LM_EVAL) from error
    return harness.load(chosen, root, root / files, scores)


def measure(sets: "list[TaskSet]", model: Model, seed: int) -> dict[str, float | None]:
    """All figures of all sets. Raises `BadInput` where a task is in two sets, or two figures would share a name."""
    figures: dict[str, float | None] = {}
    for tasks in sets:
        found = flat(tasks.results(model, seed))
        if twice := sorted(found.keys() & figures.keys()):
            raise BadInput(f"evaluate.benchmarks.{tasks.name}: {twice[0]} is measured by another set too")
        figures |= found
    return figures


def scores(names: Iterable[str]) -> list[str]:
    """The figures of benchmarks among `names`, without standard errors and numbers of questions, by name."""
    return sorted({name for name in names if name.startswith(PREFIX) and not name.endswith(("_stderr", "_samples"))})


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """lm-eval's results, task -> {"metric,filter": value}, under the names above."""
    figures: dict[str, float | None] = {}
    for task, values in results.items():
        for key, value in values.items():
            if key in ("name", "alias"):
                continue
            metric, _, kind = key.partition(",")
            stem = metric.removesuffix("_stderr")
            parts = [task, "samples" if key == "sample_len" else stem, kind if kind != "none" else ""]
            parts += ["stderr"] if stem != metric else []
            name = PREFIX + re.sub(r"\W+", "_", "_".join(filter(None, parts)))
            if name in figures:
                raise BadInput(f"evaluate.benchmarks: {task} has two figures that would be called {name}")
            number = isinstance(value, int | float) and math.isfinite(value)
            figures[name] = round(float(value), DECIMALS) if number else None
    return figures

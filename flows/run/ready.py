"""Whether a run can begin: everything that can be refused before any work."""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.params import compose, file, schema, sections
from flows.params import problems as params_problems
from flows.run import cluster, declared, graph, outputs
from tasks.core.errors import BadInput

NEEDED = 500_000_000  # bytes: a full run of the default leaves about half of that


def check(root: Path) -> str:
    """What is in place, in one line. Raises `BadInput` with one problem a line. Mends what a killed `dvc` left."""
    graph.mend_dvc(root)
    params = file.load(root)
    problems: list[str] = []
    stages = 0
    try:
        params_problems.check(params, root, compose.names())
        cluster.check(params["runner"])
    except BadInput as error:
        problems.append(str(error))
    try:
        stages = count_stages(root, params)
    except BadInput as error:
        problems.append(str(error))
    problems.extend(outputs.links(root))
    problems.extend(_disk(root))
    if problems:
        raise BadInput("\n".join(problems))
    iterations = sections.iterations(params)
    loop = iterations[0] if len(iterations) == 1 else f"{iterations[0]} to {iterations[-1]}"
    labels = "labels in the loop" if params["labels"] else "no labels in the loop"
    return f"ok: {stages} stages, {params['recipe']} on {params['prepare']['family']}, {loop}, {labels}"


def count_stages(root: Path, params: Mapping[str, Any]) -> int:
    """How many stages dvc.yaml makes of these params. Raises `BadInput` where it is missing, or a stage of
    the project is not there once per iteration (an empty `foreach` passes DVC unseen)."""
    made = Counter(name.partition("@")[0] for name in declared.names(declared.graph(root), params))
    rows = params.get("iterations")
    problems = []
    for stage in schema.STAGES:
        expected = 1
        if stage in schema.LOOP:
            expected = (len(rows) if isinstance(rows, Mapping) else 0) + (stage == "evaluate")
        if made[stage] != expected:
            problems.append(
                f"dvc.yaml: stage {stage} is there {made[stage]} times, the iterations want {expected}; restore it with git"
            )
    if problems:
        raise BadInput("\n".join(problems))
    return made.total()


def _disk(root: Path) -> list[str]:
    problems = []
    for folder in (root, root / "data", root / ".autodidact"):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            problems.append(f"{folder}: no folder, or cannot be written to; give it write permission or work in a copy")
    if (free := shutil.disk_usage(root).free) < NEEDED:
        problems.append(f"{root}: {free / 1e6:.0f} MB free on its disk; a run wants {NEEDED / 1e6:.0f} MB")
    return problems

"""The import graph: flows -> tasks.<stage> -> tasks.blocks -> tasks.core, and heavy libraries where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from flows.params.file import load
from flows.run.declared import declared, graph

ROOT = Path(__file__).resolve().parents[1]
STAGES = [
    "prepare",
    "base",
    "synthesize",
    "sample",
    "critique",
    "refine",
    "filter",
    "train",
    "evaluate",
    "promote",
    "report",
]
SINGLE = ("prepare", "base", "report")
HEAVY = ("torch", "vllm", "transformers", "trl", "peft", "datasets", "accelerate", "prefect", "mlflow", "dvc", "ray")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("flows", "tasks")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def imports(path: Path, module: str, top_level: bool) -> set[str]:
    """Full names of what a file imports: at import time only, or anywhere in it. `if TYPE_CHECKING` does not count."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
        todo += ast.iter_child_nodes(node)
    return found


def layer(module: str) -> str:
    """flows, stage, blocks, families or core."""
    parts = module.split(".")
    if parts[0] == "flows":
        return "flows"
    return parts[1] if len(parts) > 1 and parts[1] in ("core", "blocks", "families") else "stage"


MAY_IMPORT = {
    "flows": {"flows", "stage", "blocks", "families", "core"},
    "stage": {"blocks", "families", "core"},
    "blocks": {"blocks", "core"},
    "core": {"core"},
    "families": {"families", "core"},
}
# Loaded by name, from params or family.json: a loader may reach up, everything else may not.
LOADERS: set[tuple[str, str]] = set()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    own = layer(module)
    for name in imports(MODULES[module], module, top_level=False):
        if name.split(".")[0] in ("flows", "tasks") and name not in ("flows", "tasks"):
            other = layer(name)
            allowed = other in MAY_IMPORT[own] or (module, other) in LOADERS
            assert allowed, f"{module} imports {name}: {own} may import {sorted(MAY_IMPORT[own])}"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("mlflow", {"flows.history.mlflow"}), ("dvc", {"flows.run.graph"}),
        ("ray", {"flows.run.cluster", "flows.run.workers"}), ("prefect_ray", {"flows.run.workers"}),
        ("vllm", {"tasks.core.engines.vllm.engine", "tasks.core.engines.vllm.worker"}),
    ],
)  # fmt: skip
def test_a_library_with_one_home_is_imported_there_only(library: str, homes: set[str]) -> None:
    users = {m for m, p in MODULES.items() if any(n.split(".")[0] == library for n in imports(p, m, top_level=False))}
    assert users <= homes


def test_nothing_heavy_is_imported_when_a_task_module_is() -> None:
    for module, path in MODULES.items():
        lazy = ("tasks.core.training.trainers", "tasks.core.training.losses")
        lazily_imported = module in lazy or module.startswith("tasks.core.engines.")
        if module.startswith("tasks") and not lazily_imported:
            heavy = {name for name in imports(path, module, top_level=True) if name.split(".")[0] in HEAVY}
            assert not heavy, f"{module} imports {sorted(heavy)} at its top; import it in the function that needs it"


def test_no_stage_brings_torch_along() -> None:
    modules = [f"tasks.{stage}" for stage in STAGES]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_graph_is_what_was_looked_at() -> None:
    assert {f"tasks.{stage}" for stage in STAGES} <= MODULES.keys()
    assert {"tasks.core.tables", "tasks.blocks.evaluate.metrics", "tasks.families.countdown.family"} <= MODULES.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_blocks_and_the_family_that_it_runs(stage: str) -> None:
    """What dvc.yaml declares covers the stage's module, every block module below it, and the family's where it is
    loaded. Shared core modules are left out on purpose: a comment in one of them would rerun everything."""
    declared_deps = set(declared(graph(ROOT), load(ROOT), stage, None if stage in SINGLE else "i01").deps)
    todo, needed = [f"tasks.{stage}"], set()
    while todo:
        module = todo.pop()
        needed.add(module)
        found = {m for m in imports(MODULES[module], module, top_level=False) if m in MODULES}
        todo += [m for m in found - needed if layer(m) == "blocks"]
        if "tasks.families" in found and stage != "prepare":
            needed.add("tasks.families.countdown.family")
    files = {MODULES[m].relative_to(ROOT).as_posix() for m in needed} - {"tasks/blocks/__init__.py"}
    assert not {file for file in files if not any(f"{file}/".startswith(f"{dep}/") for dep in declared_deps)}

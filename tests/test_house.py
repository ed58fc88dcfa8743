"""The house: which way imports go, what has one home, what a room may hold, and that names lead where they say."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from flows.params import schema
from flows.params.file import load
from flows.run.declared import declared, graph
from tasks import families
from tasks.core.block import SKILLS, Block, Options
from tasks.core.catalog import ARTIFACTS, BASE
from tests.support.paths import ROOT

STAGES = schema.STAGES
SINGLE = ("prepare", "base", "report")
HEAVY = ("torch", "vllm", "transformers", "trl", "peft", "datasets", "accelerate", "prefect", "mlflow", "dvc", "ray")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("flows", "tasks")
    for path in sorted((ROOT / top).rglob("*.py"))
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str, top_level: bool = False) -> set[str]:
    """Full names of what a module imports: at import time only, or anywhere in it, for type checkers too, and by name:
    `import_module("a.b")`, `import_module(f"a.{name}")`, `[..., "-m", "a.b"]`."""
    found: set[str] = set()
    todo: list[ast.AST] = [tree(module)]
    while todo:
        node = todo.pop()
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func) and not top_level:
            found |= by_name(node.args[0])
        elif isinstance(node, ast.List | ast.Tuple) and not top_level:
            values = [getattr(element, "value", None) for element in node.elts]
            found |= {str(after) for flag, after in pairwise(values) if flag == "-m"} & MODULES.keys()
        todo += ast.iter_child_nodes(node)
    return found - {module}


def by_name(argument: ast.expr) -> set[str]:
    """Modules that the argument of `import_module` may name."""
    if isinstance(argument, ast.JoinedStr) and isinstance(first := argument.values[0], ast.Constant):
        package = str(first.value)
        return {m for m in MODULES if m.startswith(package) and "." not in m.removeprefix(package)}
    return {str(getattr(argument, "value", ""))}


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


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    own = layer(module)
    for name in imports(module) & MODULES.keys() - {"flows", "tasks"}:
        assert layer(name) in MAY_IMPORT[own], f"{module} imports {name}: {own} may import {sorted(MAY_IMPORT[own])}"


def test_no_imports_go_in_a_circle() -> None:
    """What only a type checker imports, and what is imported by its name in a string, counts too."""
    edges = {module: imports(module) & MODULES.keys() for module in MODULES}
    while leaves := {module for module, others in edges.items() if not others & edges.keys()}:
        for module in leaves:
            del edges[module]
    while roots := edges.keys() - {other for others in edges.values() for other in others}:
        for module in roots:
            del edges[module]
    assert not edges, f"in circles, or between them: {sorted(edges)}"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("mlflow", {"flows.history.mlflow"}), ("dvc", {"flows.run.graph"}),
        ("ray", {"flows.run.cluster", "flows.run.workers"}), ("prefect_ray", {"flows.run.workers"}),
        ("vllm", {"tasks.core.engines.vllm.engine", "tasks.core.engines.vllm.worker"}),
    ],
)  # fmt: skip
def test_a_library_with_one_home_is_imported_there_only(library: str, homes: set[str]) -> None:
    assert {m for m in MODULES if any(name.split(".")[0] == library for name in imports(m))} == homes


def test_nothing_heavy_is_imported_when_a_task_module_is() -> None:
    for module in MODULES:
        lazy = ("tasks.core.training.trainers", "tasks.core.training.losses")
        lazily_imported = module in lazy or module.startswith("tasks.core.engines.")
        if module.startswith("tasks") and not lazily_imported:
            heavy = {name for name in imports(module, top_level=True) if name.split(".")[0] in HEAVY}
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


def test_tasks_never_print() -> None:
    for module in MODULES:
        called = [n.func for n in ast.walk(tree(module)) if isinstance(n, ast.Call)]
        printing = [f for f in called if isinstance(f, ast.Name) and f.id == "print"]
        alone = module in ("tasks.core.training.apart", "tasks.core.engines.vllm.process")  # say it to another process
        assert not module.startswith("tasks") or alone or not printing, f"{module} prints; tasks log, flows show it"


# --- rooms -------------------------------------------------------------------------------------------------------

ROOMS = [ROOT / top for top in ("flows", "tasks")]
ROOMS += [path for top in ROOMS for path in sorted(top.rglob("*")) if path.is_dir() and path.name != "__pycache__"]
COMMANDS = [path for path in sorted((ROOT / "flows").glob("*.py")) if path.name != "__init__.py"]
ALIKE = {
    "options",
    "family",
    "corpus",
    "language",
    "steps",
    "engine",
}  # one trade in several rooms, as each room's docstring says


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(ROOT).as_posix())
def test_a_room_can_be_seen_at_a_glance(room: Path) -> None:
    inside = [path.name for path in room.iterdir() if path.name not in ("__pycache__", "__init__.py")]
    own = len(COMMANDS) if room == ROOT / "flows" else 0
    assert len(inside) - own <= 15, inside


def test_two_files_of_one_name_have_one_trade() -> None:
    seen: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if path.name != "__init__.py":
            seen.setdefault(path.stem, []).append(module)
    assert {name for name, modules in seen.items() if len(modules) > 1} <= ALIKE


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_file_of_flows_is_a_command(path: Path) -> None:
    text = path.read_text()
    assert 'if __name__ == "__main__":' in text
    assert f"python -m flows.{path.stem}" in text.split('"""')[1], "its docstring says how it is called"
    assert len(text.splitlines()) <= 115


def test_every_family_has_the_same_files() -> None:
    for name in families.NAMES:
        folder = ROOT / "tasks/families" / name
        assert {"__init__.py", "options.py", "family.py", "corpus.py"} <= {path.name for path in folder.iterdir()}
        assert families.lacks(name).keys() <= SKILLS
        assert all((folder / file).is_file() for file in families.code(name))


# --- what is said of artifacts, blocks and commands ---------------------------------------------------------------


def test_the_catalog_is_what_dvc_yaml_says() -> None:
    """Every output of the graph is in the catalog; every artifact is an output, or lies in one."""
    stages, params = graph(ROOT), load(ROOT)
    outs = {path for s in STAGES for path in declared(stages, params, s, None if s in SINGLE else "i01").outs}
    known = {artifact.at("i01") for artifact in ARTIFACTS.values()} | {a.at(BASE) for a in ARTIFACTS.values()}
    assert outs <= known | {"data/tasks"}
    for path in {artifact.at("i01") for artifact in ARTIFACTS.values()}:
        assert any(f"{path}/".startswith(f"{out}/") or f"{out}/".startswith(f"{path}/") for out in outs), path


def blocks() -> Iterator[tuple[str, str, Block]]:
    for section in schema.WITH_BLOCKS:
        for name, block in import_module(f"tasks.blocks.{section}").BLOCKS.items():
            yield section, name, block


@pytest.mark.parametrize(("section", "name", "block"), [pytest.param(*b, id=f"{b[0]}.{b[1]}") for b in blocks()])
def test_a_block_declares_itself_where_its_section_is(section: str, name: str, block: Block) -> None:
    assert isinstance(block, Block)
    assert issubclass(block.options, Options)
    assert block.run.__doc__
    assert block.run.__module__.startswith(f"tasks.blocks.{section}.")
    assert name not in [other for s, other, _ in blocks() if s != section], "a block's name leads to one block"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_blocks_and_the_family_that_it_runs(stage: str) -> None:
    """What dvc.yaml declares covers the stage's module, every block module below it, and the family's where it is
    loaded. Shared core modules are left out on purpose: a comment in one of them would rerun everything."""
    declared_deps = set(declared(graph(ROOT), load(ROOT), stage, None if stage in SINGLE else "i01").deps)
    todo, needed = [f"tasks.{stage}"], set()
    while todo:
        module = todo.pop()
        needed.add(module)
        found = imports(module) & MODULES.keys()
        todo += [m for m in found - needed if layer(m) == "blocks"]
        if "tasks.families" in found and stage != "prepare":
            needed.add("tasks.families.countdown.family")
    files = {MODULES[m].relative_to(ROOT).as_posix() for m in needed} - {"tasks/blocks/__init__.py"}
    assert not {file for file in files if not any(f"{file}/".startswith(f"{dep}/") for dep in declared_deps)}


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "Makefile", ROOT / "params.yaml"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_files_that_a_document_names_are_there(document: Path) -> None:
    text = document.read_text()
    for module in re.findall(r"python -m ((?:flows|tasks)[\w.]*\w)", text):
        assert module in MODULES or module.endswith(".X"), module  # X: any command
    for path in re.findall(r"`((?:flows|tasks|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_graph_is_what_was_looked_at() -> None:
    assert {f"tasks.{stage}" for stage in STAGES} <= MODULES.keys()
    assert {"tasks.core.tables", "tasks.blocks.evaluate.metrics", "tasks.families.countdown.family"} <= MODULES.keys()

"""Finds the task family: from params.yaml before a run, from `data/tasks/family.json` inside it.

Stages other than `prepare` never look at `prepare`'s section; they read the name and options that `prepare` wrote
beside the data. A family is a module with `Options`, `create(options)`, and what is known before any work:
`check_inputs(family, root)`, which refuses files and sizes that cannot work and counts the pool, `parts(options)` of
its corpus, `difficulties(options)`, `UNUSABLE`, blocks that it has no skill for, and `CODE`, the files beside it that
decide what is asked and how replies are read.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.core import blocks, digests
from tasks.core.context import Context
from tasks.core.errors import BadInput, missing, unknown_name
from tasks.core.family import FREE_TEXT_BLOCKS, Family

FAMILIES = {
    "countdown": "tasks.families.countdown",
    "strings": "tasks.families.strings",
    "text": "tasks.families.text",
}
FILE = "data/tasks/family.json"
TEMPLATES = "data/tasks/templates"
CODE = "data/tasks/code.json"
USES = ("answer.j2", "critique.j2", "pairwise.j2", "checklist.j2", "refine.j2", "invent.j2")


def create(name: str, options: Mapping[str, Any], templates: Path | None = None) -> Family:
    """The family with checked options. `templates`: folder to read its templates from, instead of the family's own.
    Raises `UnknownName` with the nearest family, or `BadInput`."""
    folder = () if templates is None or _templates(name) is None else (templates,)
    family: Family = _module(name).create(_checked(name, options), *folder)
    return family


def with_source(name: str, options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The family's options, with `source` as their `path` where the family reads the user's file."""
    reads_file = "path" in _module(name).Options.model_fields
    return {**options, **({"path": source} if reads_file else {})}


def check_inputs(name: str, options: Mapping[str, Any], root: Path) -> dict[int, int] | None:
    """How many prompts of each difficulty the pool will have, None where only a reading of all data would tell.
    Refuses, with `BadInput`, prompt files and sizes that `prepare` would refuse. Seconds at most."""
    counts: dict[int, int] | None = _module(name).check_inputs(create(name, options), str(root))
    return counts


def parts(name: str, options: Mapping[str, Any]) -> list[str]:
    """The parts (skills) that the family's corpus will have. Raises `BadInput` for options that are none."""
    found: list[str] = _module(name).parts(_checked(name, options))
    return found


def difficulties(name: str, options: Mapping[str, Any]) -> list[int]:
    """The difficulties that its evaluated prompts may have. Raises `BadInput` for options that are none."""
    found: list[int] = _module(name).difficulties(_checked(name, options))
    return found


def unusable(name: str) -> dict[str, str]:
    """Blocks that the family cannot work with, each with the reason. Raises `UnknownName`."""
    found: dict[str, str] = _module(name).UNUSABLE
    return found


def has_free_text(name: str) -> bool:
    """Whether the family is a `FreeText` one. Raises `UnknownName`."""
    return unusable(name).keys().isdisjoint(FREE_TEXT_BLOCKS)


def templates(name: str) -> dict[str, str]:
    """The text of the template files that a user may edit; a remark where the family has none."""
    folder = _templates(name)
    if folder is None:
        return dict.fromkeys(USES, f"{{# {name} has no template files: its prompts are code #}}\n")
    return {use: (folder / use).read_text(encoding="utf-8") for use in USES}


def code(name: str) -> dict[str, str]:
    """Digests of the modules, besides the family's own, that decide what is asked and how replies are read."""
    folder = Path(_module(name).__file__ or "").parent
    return {file: digests.of_file(folder / file) for file in _module(name).CODE}


def load(root: Path) -> Family:
    """The family that `prepare` recorded. Raises `MissingArtifact`, or `BadInput` for a damaged record."""
    path = root / FILE
    if not path.is_file():
        raise missing(FILE)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, options = record["name"], dict(record["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{FILE} is no family record ({error}); restore it with `dvc checkout`") from error
    return create(name, options, root / TEMPLATES)


def read(context: Context) -> Family:
    """The same as an input of a stage. Raises `MissingArtifact`, or `BadInput` for a damaged record."""
    context.read(FILE)
    return load(context.root)


def _checked(name: str, options: Mapping[str, Any]) -> Any:
    return blocks.validate(_module(name).Options, dict(options), "prepare.options")


def _templates(name: str) -> Path | None:
    folder = Path(__file__).parents[1] / "templates" / name
    return folder if folder.is_dir() else None


def _module(name: str) -> ModuleType:
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES, "prepare.family")
    return importlib.import_module(FAMILIES[name])

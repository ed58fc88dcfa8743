"""Finds the task family: from params.yaml before a run, from `data/tasks/family.json` inside it.

Stages other than `prepare` never look at `prepare`'s section; they read the name and options that
`prepare` wrote beside the data. A family is a module with `Options`, `create(options)`, and
`check_inputs(family, root)`, which refuses files and sizes that cannot work without doing the work.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.core import blocks, digests
from tasks.core.errors import BadInput, MissingArtifact, unknown_name
from tasks.core.family import Family

FAMILIES = {
    "countdown": "tasks.families.countdown",
    "strings": "tasks.families.strings",
    "text": "tasks.families.text",
}
FILE = "data/tasks/family.json"


def create(name: str, options: Mapping[str, Any]) -> Family:
    """The family with checked options. Raises `UnknownName` with the nearest family, or `BadInput`."""
    module = _module(name)
    return module.create(blocks.validate(module.Options, dict(options), "prepare.options"))


def with_source(name: str, options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The family's options, with `source` as their `path` where the family reads the user's file."""
    reads_file = "path" in _module(name).Options.model_fields
    return {**options, **({"path": source} if reads_file else {})}


def check_inputs(name: str, options: Mapping[str, Any], root: Path) -> None:
    """Refuses, with `BadInput`, prompt files and sizes that `prepare` would refuse. Seconds at most."""
    _module(name).check_inputs(create(name, options), str(root))


def templates(name: str) -> str | None:
    """Digest of the template files that a user may edit, None where the family has none."""
    folder = Path(_module(name).__file__ or "").parent / "templates" / name
    return digests.of_path(folder) if folder.is_dir() else None


def load(root: Path) -> Family:
    """The family that `prepare` recorded. Raises `MissingArtifact`, or `BadInput` for a damaged record."""
    path = root / FILE
    if not path.is_file():
        raise MissingArtifact(f"{FILE} is not there; `dvc repro` makes it, `dvc pull` or `dvc checkout` restores it")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        name, options = record["name"], dict(record["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{FILE} is no family record ({error}); restore it with `dvc checkout`") from error
    return create(name, options)


def _module(name: str) -> ModuleType:
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES, "prepare.family")
    return importlib.import_module(FAMILIES[name])

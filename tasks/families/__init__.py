"""Finds the task family: from params.yaml before a run, from `data/tasks/family.json` inside it.

Stages other than `prepare` never look at `prepare`'s section; they read the name and options that `prepare` wrote
beside the data. A family is a package in this folder. Every one has the same files: `options.py` (what
`prepare.options` may hold), `family.py` (prompts, replies, answers: `tasks.core.family.Family`), `corpus.py` (its data),
where it has words and solutions of its own `language.py` and `steps.py`, and a face, `__init__.py`, with what is asked before any work:

    Options, create(options)     the family from checked options
    build(family, rng, root)     all its data (`SeedData`), for `prepare`
    check_inputs(family, root)   refuses files and sizes that cannot work; prompts of the pool by difficulty
    parts(options)               the parts (skills) of its corpus
    difficulties(options)        those that its evaluated prompts may have
    LACKS                        skills that it has not (words of `tasks.core.block`), and why
    USES                         what prompts it can write beside the problem (`Family.ask`), and what each shows
    CODE                         files beside `family.py` that decide what is asked and how replies are read
"""

import importlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.core import block, digests
from tasks.core.catalog import ARTIFACTS
from tasks.core.context import Context
from tasks.core.errors import BadInput, missing, unknown_name
from tasks.core.family import Family, SeedData
from tasks.families.text import templates as own

HERE = Path(__file__).parent
NAMES = sorted(path.parent.name for path in HERE.glob("*/__init__.py"))
FILES = ("answer.j2", "critique.j2", "pairwise.j2", "checklist.j2", "refine.j2", "invent.j2")


def create(name: str, options: Mapping[str, Any], templates: Path | None = None) -> Family:
    """The family with checked options. `templates`: folder to read its templates from, instead of the family's own.
    Raises `UnknownName` with the nearest family, or `BadInput`."""
    folder = () if templates is None or _templates(name) is None else (templates,)
    family: Family = _module(name).create(_checked(name, options), *folder)
    return family


def build(family: Family, rng: random.Random, root: Path) -> SeedData:
    """All data of the family; deterministic given `rng`. `root`: folder that relative data paths start at. Raises
    `BadInput` for data that cannot work."""
    data: SeedData = _module(family.name).build(family, rng, root)
    return data


def with_source(name: str, options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The family's options, with `source` as their `path` where the family reads the user's file."""
    reads_file = "path" in _module(name).Options.model_fields
    return {**options, **({"path": source} if reads_file else {})}


def check_inputs(name: str, options: Mapping[str, Any], root: Path) -> dict[int, int] | None:
    """How many prompts of each difficulty the pool will have, None where only a reading of all data would tell.
    Refuses, with `BadInput`, prompt files and sizes that `prepare` would refuse. Seconds at most."""
    counts: dict[int, int] | None = _module(name).check_inputs(create(name, options), root)
    return counts


def parts(name: str, options: Mapping[str, Any]) -> list[str]:
    """The parts (skills) that the family's corpus will have. Raises `BadInput` for options that are none."""
    found: list[str] = _module(name).parts(_checked(name, options))
    return found


def difficulties(name: str, options: Mapping[str, Any]) -> list[int]:
    """The difficulties that its evaluated prompts may have. Raises `BadInput` for options that are none."""
    found: list[int] = _module(name).difficulties(_checked(name, options))
    return found


def lacks(name: str) -> dict[str, str]:
    """Skills that the family has not, each with the reason. Raises `UnknownName`."""
    found: dict[str, str] = _module(name).LACKS
    return found


def templates(name: str) -> dict[str, str]:
    """The text of the template files that a user may edit; a remark where the family has none."""
    folder = _templates(name)
    if folder is None:
        return dict.fromkeys(FILES, f"{{# {name} has no template files: its prompts are code #}}\n")
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.j2"))}


def uses(name: str) -> dict[str, frozenset[str]]:
    """The uses of `Family.ask`, and which of `Parts` each of them shows. Raises `UnknownName`."""
    found: dict[str, frozenset[str]] = dict(_module(name).USES)
    if (folder := _templates(name)) is not None:
        found |= {use: frozenset(own.shown(folder, use)) for use in own.own(folder)}
    return found


def code(name: str) -> dict[str, str]:
    """Digests of the files, besides `family.py`, that decide what is asked and how replies are read."""
    return {file: digests.of_file(HERE / name / file) for file in _module(name).CODE}


def load(root: Path) -> Family:
    """The family that `prepare` recorded. Raises `MissingArtifact`, or `BadInput` for a damaged record."""
    place = ARTIFACTS["family"].path
    if not (root / place).is_file():
        raise missing(place)
    try:
        record = json.loads((root / place).read_text(encoding="utf-8"))
        name, options = record["name"], dict(record["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{place} is no family record ({error}); restore it with `dvc checkout`") from error
    return create(name, options, root / ARTIFACTS["templates"].path)


def read(context: Context) -> Family:
    """The same as an input of a stage. Raises `MissingArtifact`, or `BadInput` for a damaged record."""
    context.path("family")
    return load(context.root)


def _checked(name: str, options: Mapping[str, Any]) -> Any:
    return block.validate(_module(name).Options, dict(options), "prepare.options")


def _templates(name: str) -> Path | None:
    folder = HERE.parent / "templates" / name
    return folder if folder.is_dir() else None


def _module(name: str) -> ModuleType:
    if name not in NAMES:
        raise unknown_name("family", name, NAMES, "prepare.family")
    return importlib.import_module(f"tasks.families.{name}")

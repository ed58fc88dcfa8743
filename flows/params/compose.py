"""params.yaml made of a recipe, a family and a size."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from flows.params import file, problems, sections
from flows.params.schema import MODELS, OVERRIDDEN, STAGES, UNREAD, WITH_BLOCKS
from tasks import families
from tasks.core.block import Block, Options, bind, validate
from tasks.core.catalog import BASE
from tasks.core.errors import BadInput, unknown_name

FOLDER = Path(__file__).parents[1] / "recipes"
GROUPS = ("judges", "votes", "likelihood", "verifier", "refinement", "curriculum", "inference", "yardsticks")
Result = TypeVar("Result")


class Recipe(Options):
    """A method's file."""

    title: str = Field(min_length=1)
    paper: str
    summary: str
    formula: str  # what is computed
    source: str  # where the formula was read, and what of it is to the letter
    departs: str  # what is scaled down, left out or read after the abstract alone
    needs: str
    labels: bool
    family: str
    iterations: int = Field(ge=1, le=99)
    models: dict[str, Literal["previous", "base", "before"]] = Field(
        default_factory=dict
    )  # whose policy a column names
    params: dict[str, dict[str, Any]]  # sections: what the recipe says itself
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)  # iteration -> what it and later ones override


class FamilyDefaults(Options):
    """A family's file."""

    summary: str
    keeps: list[str]  # sections that are the user's own while the family stays
    blocks: dict[str, dict[str, Any] | None]  # options of a block wherever it is used; null: not for this family
    params: dict[str, dict[str, Any]]


class Size(Options):
    """A size's file. `limits`: dotted paths, `*` for any one key, to the largest number allowed there; `set`: paths
    to values; `iterations`: at most so many."""

    summary: str
    iterations: int = Field(ge=1)
    set: dict[str, Any]
    limits: dict[str, Any]


def names(kind: str = "") -> list[str]:
    """The recipes, or with `kind` "families", "sizes" or a group those, by name."""
    return sorted(path.stem for path in _files(kind))


def groups() -> dict[str, list[str]]:
    """The recipes by the folder that they lie in, which says what their judgement rests on; "own": in none of them."""
    found = {group: names(group) for group in GROUPS}
    found["own"] = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return {group: several for group, several in found.items() if several}


def _files(kind: str) -> Iterator[Path]:
    for group in [kind] if kind else ["", *GROUPS]:
        yield from (FOLDER / group).glob("*.yaml")


def read(name: str) -> Recipe:
    """A recipe. Raises `UnknownName` with the nearest."""
    return read_as(Recipe, "", name, "recipe")


def read_as(cls: Callable[..., Result], kind: str, name: str, what: str) -> Result:
    if name not in names(kind):
        raise unknown_name(what, name, [*names(kind), *(names("sizes") if what == "recipe" else [])])
    path = next(path for path in _files(kind) if path.stem == name)
    given = file.parse(path.read_text(encoding="utf-8"), path.name)
    result: Result = validate(cls, given, path.name)  # type: ignore[arg-type]
    return result


def shared() -> dict[str, Any]:
    """The sections that change no result, as a recipe writes them where there are none yet."""
    return _beside("shared.yaml")


def _beside(name: str) -> dict[str, Any]:
    """A YAML file of this folder."""
    path = Path(__file__).with_name(name)
    return file.parse(path.read_text(encoding="utf-8"), path.name)


def compose(name: str, family: str | None = None, iterations: int | None = None) -> dict[str, Any]:
    """All of params.yaml for a recipe, seed 0 and the family's engine. Raises `UnknownName`, or `BadInput` for a family
    that lacks a skill which the recipe needs."""
    recipe = read(name)
    family = family or recipe.family
    _check_sections(recipe.params, f"{name}.yaml: params")
    defaults = read_as(FamilyDefaults, "families", family, "family")
    blocks = _beside("blocks.yaml") | defaults.blocks
    given = sections.merged(defaults.params, recipe.params)
    made: dict[str, Any] = {"recipe": name, "seed": 0, "labels": recipe.labels, "engine": given["engine"]}
    made |= shared()
    for stage in STAGES:
        section = given.get(stage, {})
        if stage in WITH_BLOCKS:
            section = _filled(section, blocks)
        if stage == "evaluate":
            filled = {name: _filled(section[name], blocks) for name in ("critics", "makers")}
            section = section | filled
            if section["refine"] is not None:
                section = section | _filled({"refine": section["refine"]}, blocks)
        made[stage] = section
    if strange := sorted(recipe.models.keys() - set(MODELS)):
        raise unknown_name("column", strange[0], MODELS, f"{name}.yaml: models")
    made = with_iterations(made, iterations or recipe.iterations)
    _refuse_unusable(recipe, made)
    return made


def _check_sections(params: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raises `BadInput` for sections and entries of a recipe that cannot be, before they meet a family's."""
    known = ("engine", *STAGES)
    for stage, section in params.items():
        if stage not in known:
            raise unknown_name("section", stage, known, where)
        for name, entry in section.items() if stage in WITH_BLOCKS else ():
            if not isinstance(entry, Mapping):
                told = "null" if entry is None else repr(entry)
                raise BadInput(
                    f"{where}.{stage}.{name}: given {told}; a block takes a mapping of options, `{{}}` if it has none"
                )


def _refuse_unusable(recipe: Recipe, made: Mapping[str, Any]) -> None:
    """Raises `BadInput` where the method needs a skill that the family does not have, and no other block stands in."""
    family = made["prepare"]["family"]
    lacking = families.lacks(family)
    for stage in WITH_BLOCKS if family != recipe.family else ():
        blocks: Mapping[str, Block] = import_module(f"tasks.blocks.{stage}").BLOCKS
        for name, entry in made[stage].items():
            needs = blocks[str(entry.get("block", name))].needs
            if callable(needs):  # what it needs follows from its options, which must be sound
                [bound] = bind(blocks, {name: entry}, stage)
                needs = bound.needs
            for skill in sorted(needs & lacking.keys()):
                raise BadInput(
                    f"recipe {made['recipe']} is not for family {family}: its {stage} needs {entry.get('block', name)}, and "
                    f"{lacking[skill]}; leave --family out ({recipe.family} is the recipe's own), or use another recipe"
                )


def _filled(
    section: Mapping[str, Mapping[str, Any]], blocks: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, dict[str, Any]]:
    """Blocks with the family's options where the recipe gives none; without those that the family has no use for."""
    made = {}
    for name, entry in section.items():
        wanted = str(entry.get("block", name))
        defaults = blocks.get(wanted, {})
        if defaults is not None:
            own = {key: value for key, value in entry.items() if key not in defaults or key == "block"}
            given = {key: entry.get(key, value) for key, value in defaults.items() if key != "block"}
            other = {"block": defaults["block"]} if "block" in defaults else {}
            made[name] = own | other | given
    return made


def with_iterations(params: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The params with iterations i01 to `n`: rows that are there stay, new ones start from the one before, or as the
    recipe says."""
    present = params.get("iterations", {})
    recipe = params.get("recipe")
    known = read(recipe) if recipe in names() else None
    named = known.models if known else {}

    def overrides(key: str) -> dict[str, Any]:
        given = {since: row for since, row in known.rows.items() if since <= key} if known else {}
        return dict(given[max(given)]) if given else {}

    rows = {}
    for index in range(1, n + 1):
        key, previous = f"i{index:02d}", f"i{index - 1:02d}"
        whose = {"previous": previous, "base": BASE, "before": f"i{max(0, index - 2):02d}"}
        columns = {column: whose[named.get(column, "previous")] for column in MODELS}
        fresh: dict[str, Any] = columns | {stage: {} for stage in OVERRIDDEN} | overrides(key)
        rows[key] = present.get(key, fresh)
    evaluated = params.get("evaluations", {})
    return {
        **params,
        "iterations": rows,
        "evaluations": {key: evaluated.get(key, {}) for key in (BASE, *rows)},
    }


def resized(params: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """The params with the size's values and with no number above its limits. Paths that are not there stay so."""
    result: dict[str, Any] = json.loads(json.dumps(params))
    for path, value in size.set.items():
        _change(result, path.split("."), partial(_replaced, value))
    for path, limit in size.limits.items():
        _change(result, path.split("."), partial(_lowered, limit))
    return result


def _replaced(value: Any, present: Any) -> Any:
    return value


def _lowered(limit: Any, present: Any) -> Any:
    number = isinstance(present, int | float) and not isinstance(present, bool)
    return min(present, limit) if number else present


def _change(tree: Any, path: list[str], change: Callable[[Any], Any]) -> None:
    """Replaces what stands at the path by `change` of it."""
    if not isinstance(tree, dict):
        return
    for key in list(tree) if path[0] == "*" else [path[0]]:
        if key in tree and len(path) > 1:
            _change(tree[key], path[1:], change)
        elif key in tree:
            tree[key] = change(tree[key])


def chosen(
    name: str, present: Mapping[str, Any], iterations: int | None, seed: int | None, family: str | None
) -> dict[str, Any]:
    """The params that `use` writes, given the present ones (empty if there is no file). Raises `BadInput`."""
    if name in names("sizes"):
        if not present:
            raise BadInput(f"{name} is a size, not a method: use a recipe first ({', '.join(names())})")
        if family:
            raise BadInput(f"{name} is a size and goes with any family; leave --family out, or use a recipe first")
        problems.check(present)
        size = read_as(Size, "sizes", name, "size")
        made = with_iterations(resized(present, size), iterations or min(size.iterations, len(present["iterations"])))
    else:
        made = compose(name, family, iterations)
        place = made["prepare"]["family"]
        keeps = read_as(FamilyDefaults, "families", place, "family").keeps
        stays = isinstance(present.get("prepare"), Mapping) and present["prepare"].get("family") == place
        for key in ("seed", *UNREAD, *(("engine", *keeps) if stays else ())):
            made[key] = present.get(key, made[key])
        if not stays:  # which engine is the user's choice; how much it takes at once follows from the family
            chosen_engine = {
                k: v for k, v in present.get("engine", {}).items() if k in ("name", "precision", "threads", "endpoint")
            }
            made["engine"] = {**made["engine"], **chosen_engine}
    made["seed"] = made["seed"] if seed is None else seed
    problems.check(made, recipes=names())
    return made

"""Recipes: `python -m flows.recipe list [--json] | show NAME | use NAME [--family F] [--iterations N] [--seed S] | extend N`.

A recipe (`flows/recipes/NAME.yaml`) is a published method: title, paper, summary, what it needs, whether
the loop may see labels, the task family it is shown on, the number of iterations, and the sections of
params.yaml with the blocks it is made of. It says only what is its own. A family
(`flows/recipes/families/NAME.yaml`) adds the data, the base model, how it is measured, and for every
block the options that suit the family, so that methods differ only where they mean to.

`use NAME` writes all of params.yaml from the two: the same recipe always gives the same bytes. `seed`, `engine` and
what changes no result (`serving`, `runner`, `prices`) stay as they are in the present file, and so do the sections that
the family calls the user's own (`keeps`), as long as the family stays; of `engine` the sizes of batches and shards follow
from a new one. Sizes (`flows/recipes/sizes/NAME.yaml`, so far `mini`) are no methods: `use mini` sets numbers for a quick
look in whatever recipe is in place, and using the recipe again restores them, but for those in sections that are kept. A
refused call writes nothing.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import Field

from flows import exits, layout
from tasks import families
from tasks.core import params as parameters
from tasks.core.blocks import Options, validate
from tasks.core.errors import BadInput, unknown_name
from tasks.core.serving import DEFAULTS

FOLDER = Path(__file__).parent / "recipes"
SHOWN = 40  # changed values printed by `use`
app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, show and apply recipes.")
Result = TypeVar("Result")


class Recipe(Options):
    """A method's file."""

    title: str = Field(min_length=1)
    paper: str
    summary: str
    needs: str
    labels: bool
    family: str
    iterations: int = Field(ge=1, le=99)
    params: dict[str, dict[str, Any]]  # sections: what the recipe says itself


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


# --- the files -------------------------------------------------------------------------------------------


def names(kind: str = "") -> list[str]:
    """The recipes, or with `kind` "families" or "sizes" those, by name."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def read(name: str) -> Recipe:
    """A recipe. Raises `UnknownName` with the nearest."""
    return _read(Recipe, "", name, "recipe")


def _read(cls: Callable[..., Result], kind: str, name: str, what: str) -> Result:
    if name not in names(kind):
        raise unknown_name(what, name, [*names(kind), *(names("sizes") if what == "recipe" else [])])
    path = FOLDER / kind / f"{name}.yaml"
    given = parameters.parse(path.read_text(encoding="utf-8"), path.name)
    result: Result = validate(cls, given, path.name)  # type: ignore[arg-type]
    return result


# --- making params ---------------------------------------------------------------------------------------


def compose(name: str, family: str | None = None, iterations: int | None = None) -> dict[str, Any]:
    """All of params.yaml for a recipe, seed 0 and the family's engine. Raises `UnknownName`."""
    recipe = read(name)
    family = family or recipe.family
    defaults = _read(FamilyDefaults, "families", family, "family")
    _refuse_unusable(recipe, name, family, defaults.blocks)
    sections = parameters.merged(defaults.params, recipe.params)
    made: dict[str, Any] = {"recipe": name, "seed": 0, "labels": recipe.labels, "engine": sections["engine"]}
    made |= DEFAULTS
    for stage in parameters.STAGES:
        section = sections.get(stage, {})
        if stage in parameters.WITH_BLOCKS:
            section = _filled(section, defaults.blocks)
        if stage == "evaluate":
            section = section | {"critics": _filled(section["critics"], defaults.blocks)}
            if section["refine"] is not None:
                section = section | _filled({"refine": section["refine"]}, defaults.blocks)
        made[stage] = section
    return with_iterations(made, iterations or recipe.iterations)


def _refuse_unusable(recipe: Recipe, name: str, family: str, blocks: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Raises `BadInput` where the method needs a skill that the family does not have, and no other block stands in."""
    unusable = families.unusable(family)
    for stage in parameters.WITH_BLOCKS:
        for entry_name, entry in recipe.params.get(stage, {}).items():
            wanted = str(entry.get("block", entry_name))
            defaults = blocks.get(wanted, {})
            instead = str(defaults.get("block", wanted)) if defaults is not None else None
            if instead in unusable:
                raise BadInput(
                    f"recipe {name} is not for family {family}: its {stage} needs {wanted}, and {unusable[instead]}; "
                    f"leave --family out ({recipe.family} is the recipe's own), or use another recipe"
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
    """The params with iterations i01 to `n`: rows that are there stay, new ones start from the one before."""
    present = params.get("iterations", {})
    rows = {}
    for index in range(1, n + 1):
        key, previous = f"i{index:02d}", f"i{index - 1:02d}"
        fresh: dict[str, Any] = dict.fromkeys(parameters.MODELS, previous) | {
            stage: {} for stage in parameters.OVERRIDDEN
        }
        rows[key] = present.get(key, fresh)
    evaluated = params.get("evaluations", {})
    return {
        **params,
        "iterations": rows,
        "evaluations": {key: evaluated.get(key, {}) for key in (parameters.BASE, *rows)},
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
        parameters.check(present)
        size = _read(Size, "sizes", name, "size")
        made = with_iterations(resized(present, size), iterations or min(size.iterations, len(present["iterations"])))
    else:
        made = compose(name, family, iterations)
        place = made["prepare"]["family"]
        keeps = _read(FamilyDefaults, "families", place, "family").keeps
        stays = isinstance(present.get("prepare"), Mapping) and present["prepare"].get("family") == place
        for key in ("seed", *DEFAULTS, *(("engine", *keeps) if stays else ())):
            made[key] = present.get(key, made[key])
        if not stays:  # which engine is the user's choice; how much it takes at once follows from the family
            chosen_engine = {
                k: v for k, v in present.get("engine", {}).items() if k in ("name", "precision", "threads", "endpoint")
            }
            made["engine"] = {**made["engine"], **chosen_engine}
    made["seed"] = made["seed"] if seed is None else seed
    parameters.check(made, recipes=names())
    return made


def write(text: str, path: Path) -> None:
    """Replaces the file as a whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# --- commands --------------------------------------------------------------------------------------------


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="For programs: name, title, needs.")] = False) -> None:
    """The recipes there are."""
    rows = [{"name": name, "title": (recipe := read(name)).title, "needs": recipe.needs} for name in names()]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    width = max(len(name) for name in [*names(), *names("sizes")])
    for row in rows:
        print(f"{row['name']:{width}}  {row['title']}\n{'':{width}}  needs {row['needs']}")
    for name in names("sizes"):
        print(f"{name:{width}}  (a size) {_read(Size, 'sizes', name, 'size').summary}")


@app.command()
def show(name: str) -> None:
    """What a recipe is, and the sections it writes."""
    if name in names("sizes"):
        size = _read(Size, "sizes", name, "size")
        print(f"{name}: {size.summary}\nat most {size.iterations} iterations; where a recipe has them:")
        print("\n".join(f"  {path}: {layout.on_one_line(value)}" for path, value in size.set.items()))
        print("\n".join(f"  {path}: at most {limit}" for path, limit in size.limits.items()))
        return
    recipe = read(name)
    made = compose(name)
    print(f"{name}: {recipe.title}\n{recipe.paper}\n\n{recipe.summary.strip()}\n\nneeds {recipe.needs}")
    print(
        f"labels in the loop: {'yes' if recipe.labels else 'no'}; family {recipe.family}; {recipe.iterations} iterations\n"
    )
    for stage in parameters.WITH_BLOCKS:
        print("\n".join(layout.lines_of(stage, made[stage], 0)))


@app.command()
def use(
    name: str,
    iterations: Annotated[int | None, typer.Option(min=1, max=99, help="Rows i01 to this one.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Default: the present file's.")] = None,
    family: Annotated[str | None, typer.Option(help="Another task family than the recipe's own.")] = None,
) -> None:
    """Writes params.yaml for a recipe, or lowers the present one's numbers to a size."""
    root = Path.cwd()
    path = root / parameters.FILE
    if not (root / "dvc.yaml").is_file():
        raise BadInput(f"{root} has no dvc.yaml; run this in the repository's root")
    present = parameters.load(root) if path.is_file() else {}
    made = chosen(name, present, iterations, seed, family)
    text = layout.render(made)
    found = layout.changes(present, made)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write(text, path)
    print(f"{parameters.FILE}: {name}, {len(found)} value{'' if len(found) == 1 else 's'} changed")
    print("".join(f"  {line}\n" for line in found[:SHOWN]), end="")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more")


@app.command()
def extend(iterations: Annotated[int, typer.Argument(min=1, max=99, help="The last iteration's number.")]) -> None:
    """Adds iterations to params.yaml, each starting from the one before; nothing else changes."""
    path = Path.cwd() / parameters.FILE
    present = parameters.load(Path.cwd())
    parameters.check(present, recipes=names())
    last = parameters.iterations(present)[-1]
    if iterations <= parameters.number(last):
        raise BadInput(f"extend {iterations}: {parameters.FILE} has {last} already; give a higher number")
    made = with_iterations(present, iterations)
    write(layout.render(made), path)
    print(f"{parameters.FILE}: {last} was the last iteration, now i{iterations:02d} is")


if __name__ == "__main__":
    sys.exit(exits.code(app))

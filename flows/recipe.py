"""Recipes: `python -m flows.recipe list [--json] | show NAME | use NAME [--iterations N] [--seed S]`.

A recipe (`flows/recipes/NAME.yaml`) is a published method: title, paper, summary, what it needs, whether
the loop may see labels, the task family it is shown on, the number of iterations, and the sections of
params.yaml with the blocks it is made of. It says only what is its own. A family
(`flows/recipes/families/NAME.yaml`) adds the data, the base model, how it is measured, and for every
block the options that suit the family, so that methods differ only where they mean to.

`use NAME` writes all of params.yaml from the two: the same recipe always gives the same bytes. `seed` and
`engine` stay as they are in the present file, and so do the sections that the family calls the user's own
(`keeps`), as long as the family stays. Sizes (`flows/recipes/sizes/NAME.yaml`, so far `mini`) are no
methods: `use mini` lowers numbers of whatever recipe is in place, and using the recipe again restores them.
A refused call writes nothing.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import Field

from tasks.core import params as parameters
from tasks.core.blocks import Options, validate
from tasks.core.errors import AutodidactError, BadInput, unknown_name

FOLDER = Path(__file__).parent / "recipes"
WIDTH = 120
SHOWN = 40  # changed values printed by `use`
COMMENTS = {
    "recipe": "Written by `python -m flows.recipe use {recipe}`; every value of the project is here, edit freely.\n"
    "`python -m flows.check` says what cannot work; `dvc repro` reruns what an edit touches.",
    "seed": "One seed for everything: data, sampling, training.",
    "labels": "Whether the loop may see the answers. Evaluation always may.",
    "engine": "How models answer. `threads` and the shards' sizes are part of a result's identity.",
    "prepare": "The task: seed corpus (labelled), pool (unlabelled), probe and held-out problems.",
    "base": "The model that the loop starts from: trained here on the seed corpus, or `pretrained: PATH`.",
    "synthesize": "Which prompts an iteration works on. Blocks by name, here and below.",
    "sample": "The policy's answers.",
    "critique": "What the judge, a model of the iteration's row, says about them.",
    "refine": "The policy's second thoughts, criticised again.",
    "filter": "What is kept, how it is weighted, what it is mixed with.",
    "train": "How the iteration's initial model learns from it.",
    "evaluate": "How every candidate is measured, on the held-out set and on the probe set.",
    "promote": "When the candidate becomes the policy: probe set only.",
    "iterations": "One row an iteration: the models it starts from, and what it overrides in a section.\n"
    "To go on, append a row (i04: previous i03): only its own stages run.",
}

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
    blocks: dict[str, dict[str, Any]]  # options of a block, wherever it is used
    params: dict[str, dict[str, Any]]


class Size(Options):
    """A size's file: `values` maps dotted paths, `*` for any one key, to the largest number allowed there."""

    summary: str
    iterations: int = Field(ge=1)
    values: dict[str, Any]


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
    sections = parameters.merged(defaults.params, recipe.params)
    made: dict[str, Any] = {"recipe": name, "seed": 0, "labels": recipe.labels, "engine": sections["engine"]}
    for stage in parameters.STAGES:
        section = sections.get(stage, {})
        if stage in parameters.WITH_BLOCKS:
            section = {key: _filled(key, entry, defaults.blocks) for key, entry in section.items()}
        if stage == "evaluate":
            critics = section.get("critics") or {}
            section = section | {"critics": {key: _filled(key, entry, defaults.blocks) for key, entry in critics.items()}}
            if section.get("refine"):
                section = section | {"refine": _filled("refine", section["refine"], defaults.blocks)}
        made[stage] = section
    return with_iterations(made, iterations or recipe.iterations)


def _filled(name: str, entry: Mapping[str, Any], blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A block's entry with the family's options where the recipe gives none."""
    defaults = blocks.get(str(entry.get("block", name)), {})
    return {key: value for key, value in entry.items() if key not in defaults} | {
        key: entry.get(key, value) for key, value in defaults.items()
    }


def with_iterations(params: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The params with iterations i01 to `n`: rows that are there stay, new ones start from the one before."""
    present = params.get("iterations", {})
    rows = {}
    for index in range(1, n + 1):
        key, previous = f"i{index:02d}", f"i{index - 1:02d}"
        fresh = dict.fromkeys(parameters.MODELS, previous) | {stage: {} for stage in parameters.LOOP}
        rows[key] = present.get(key, fresh)
    first = params.get("evaluations", {}).get(parameters.BASE, {"evaluate": {}})
    return {**params, "iterations": rows, "evaluations": {parameters.BASE: first, **rows}}


def resized(params: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """The params with no number above the size's. Paths that are not there are left out."""
    result: dict[str, Any] = json.loads(json.dumps(params))
    for path, limit in size.values.items():
        _limit(result, path.split("."), limit)
    return result


def _limit(tree: Any, path: list[str], limit: Any) -> None:
    if not isinstance(tree, dict):
        return
    for key in list(tree) if path[0] == "*" else [path[0]]:
        if key not in tree:
            continue
        value = tree[key]
        if len(path) > 1:
            _limit(value, path[1:], limit)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            tree[key] = min(value, limit)


# --- writing ---------------------------------------------------------------------------------------------


def render(params: Mapping[str, Any]) -> str:
    """params.yaml's text: sections in data-flow order with a comment each, small mappings on one line."""
    lines: list[str] = []
    for key in parameters.TOP:
        value = params[key]
        comment = COMMENTS.get(key, "").replace("{recipe}", str(params["recipe"])).splitlines()
        lines.extend([""] if lines and (comment or isinstance(value, Mapping) and key != "evaluations") else [])
        lines.extend(f"# {line}" for line in comment)
        if key == "iterations":
            lines.append("iterations: &iterations")
            lines.extend(f"  {name}: {_flow(row)}" for name, row in value.items())
        elif key == "evaluations":
            lines.extend(["evaluations:", f"  {parameters.BASE}: {_flow(value[parameters.BASE])}", "  <<: *iterations"])
        else:
            lines.extend(_block(key, value, 0))
    return "\n".join(lines) + "\n"


def _block(key: str, value: Any, depth: int) -> Iterator[str]:
    """A key with its value as lines: on one line where that is short and holds no mapping of mappings."""
    line = f"{'  ' * depth}{_scalar(key)}: {_flow(value)}"
    nested = isinstance(value, Mapping) and (depth == 0 or any(isinstance(v, Mapping) for v in value.values()))
    if not isinstance(value, Mapping) or not value or (len(line) <= WIDTH and not nested):
        yield line
        return
    yield f"{'  ' * depth}{_scalar(key)}:"
    for name, entry in value.items():
        yield from _block(name, entry, depth + 1)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(entry) for entry in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value)
        reserved = value.lower() in {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
        return value if plain and not reserved else json.dumps(value, ensure_ascii=False)
    return str(value)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`path: old -> new` for every value that differs; `evaluations` repeats `iterations` and is left out."""
    before, after = ({path: value for path, value in _flat(tree, "")} for tree in (old, new))
    absent = "(none)"
    return [
        f"{path}: {before.get(path, absent)} -> {after.get(path, absent)}"
        for path in dict.fromkeys([*after, *before])
        if before.get(path, absent) != after.get(path, absent)
        and (not path.startswith("evaluations.") or path.startswith(f"evaluations.{parameters.BASE}."))
    ]


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{path}.{key}" if path else str(key))
    else:
        yield path, _flow(value)


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
        for key in ("seed", "engine", *(keeps if stays else ())):
            made[key] = present.get(key, made[key])
    made["seed"] = made["seed"] if seed is None else seed
    parameters.check(made, recipes=names())
    return made


def write(text: str, path: Path) -> None:
    """Replaces the file as a whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


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
        print(f"{name}: {size.summary}\nat most {size.iterations} iterations, and no value above:")
        print("\n".join(f"  {path}: {_flow(value)}" for path, value in size.values.items()))
        return
    recipe = read(name)
    made = compose(name)
    print(f"{name}: {recipe.title}\n{recipe.paper}\n\n{recipe.summary.strip()}\n\nneeds {recipe.needs}")
    print(f"labels in the loop: {'yes' if recipe.labels else 'no'}; family {recipe.family}; {recipe.iterations} iterations\n")
    for stage in parameters.WITH_BLOCKS:
        print("\n".join(_block(stage, made[stage], 0)))


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
    text = render(made)
    found = changes(present, made)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write(text, path)
    print(f"{parameters.FILE}: {name}, {len(found)} value{'' if len(found) == 1 else 's'} changed")
    print("".join(f"  {line}\n" for line in found[:SHOWN]), end="")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more")


def main() -> int:
    """Runs the command; bad input ends in a message and exit code 2."""
    try:
        app()
    except AutodidactError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Recipes for people: the list, one of them, and all as a page: `python -m flows.params.gallery` writes docs/recipes.md."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from textwrap import indent
from typing import Any

from flows.params import compose, schema, sections
from flows.params.write import lines_of, on_one_line
from tasks.blocks.critique.judging import in_order

FILE = Path(__file__).parents[2] / "docs" / "recipes.md"
INTRODUCTION = """# Recipes

`python -m flows.params.gallery` writes this page from the files in `flows/recipes/`.

- Each recipe is a published method as a choice of blocks. `python -m flows.recipe use NAME` writes it into params.yaml.
- A group says what a method's judgement rests on.
- *Path* names the blocks in the order of the stages.
- *Source* says where the formula was read, and *departs* what is scaled down, left out, or read after the abstract alone.
- [Results](results.md) says what each gained, and where it did not help."""
ABOUT = {
    "judges": "The model's own judgement of an answer: verdicts, points, comparisons.",
    "votes": "Agreement among several answers to a prompt.",
    "likelihood": "What the model thinks of a text by its probabilities.",
    "verifier": "A check of the right answer. These recipes see labels.",
    "refinement": "A second attempt, with the first one before the model's eyes.",
    "curriculum": "Prompts that become harder as the model becomes better.",
    "inference": "Nothing is trained; several answers are put together.",
    "yardsticks": "The bounds that every method is measured against.",
    "own": "Recipes that lie in no group.",
}


def rows() -> list[dict[str, str]]:
    """Name, group, title and needs of every recipe."""
    return [
        {"name": name, "group": group, "title": (recipe := compose.read(name)).title, "needs": recipe.needs}
        for group, several in compose.groups().items()
        for name in several
    ]


def listing() -> str:
    """What there is to use: recipes by group, sizes, families."""
    width = max(len(name) for name in [*compose.names(), *compose.names("sizes")])
    lines = []
    for group, several in groupby(rows(), key=itemgetter("group")):
        lines += [group, *(f"  {row['name']:{width}}  {row['title']}" for row in several), ""]
    lines += ["sizes, to use after a recipe"]
    lines += [f"  {name:{width}}  {_size(name).summary}" for name in compose.names("sizes")]
    lines += ["", "families, for `use NAME --family FAMILY`"]
    for name in compose.names("families"):
        family = compose.read_as(compose.FamilyDefaults, "families", name, "family")
        lines.append(f"  {name:{width}}  {family.summary}")
    return "\n".join(lines)


def shown(name: str) -> str:
    """All that is to be said of a recipe, and the sections it writes."""
    recipe, made = compose.read(name), compose.compose(name)
    labels = "yes" if recipe.labels else "no"
    parts = [
        f"{name}: {recipe.title}\n{recipe.paper}",
        recipe.summary.strip(),
        f"formula\n{indent(recipe.formula.strip(), '  ')}",
        f"path\n{indent(path(made), '  ')}",
        f"source\n{indent(recipe.source.strip(), '  ')}",
        f"departs\n{indent(recipe.departs.strip(), '  ')}",
        f"needs {recipe.needs}\nlabels in the loop: {labels}; family {recipe.family}; {recipe.iterations} iterations",
        "\n".join(line for stage in schema.WITH_BLOCKS for line in lines_of(stage, made[stage], 0)),
    ]
    return "\n\n".join(parts)


def shown_size(name: str) -> str:
    """What a size does."""
    size = _size(name)
    lines = [f"{name}: {size.summary}", f"at most {size.iterations} iterations; where a recipe has them:"]
    lines += [f"  {place}: {on_one_line(value)}" for place, value in size.set.items()]
    lines += [f"  {place}: at most {limit}" for place, limit in size.limits.items()]
    return "\n".join(lines)


def _size(name: str) -> compose.Size:
    return compose.read_as(compose.Size, "sizes", name, "size")


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for group, names in compose.groups().items():
        parts += [f"## {group.capitalize()}", ABOUT[group], *(part for name in names for part in _recipe(name))]
    return "\n\n".join(parts) + "\n"


def _recipe(name: str) -> Iterator[str]:
    recipe, made = compose.read(name), compose.compose(name)
    yield f"### {name}"
    yield f"**{recipe.title}.** {_sentence(recipe.paper)}"
    yield recipe.summary.strip()
    yield f"```\n{recipe.formula.strip()}\n\n{path(made)}\n```"
    labels = "sees labels" if recipe.labels else "sees no labels"
    yield (
        f"*Source:* {_joined(recipe.source)} *Departs:* {_joined(recipe.departs)} *Needs:* {_sentence(recipe.needs)} The loop "
        f"{labels}; family `{recipe.family}`, {recipe.iterations} iteration{'' if recipe.iterations == 1 else 's'}."
    )


def path(made: Mapping[str, Any]) -> str:
    """The way through the stages: which blocks each has, in the order in which they run."""
    lines = []
    for stage in schema.WITH_BLOCKS:
        bounds = sections.options(made, stage, None)
        bounds = in_order(bounds) if stage == "critique" else bounds
        blocks = [_told(bound.name, made[stage][bound.name]) for bound in bounds]
        if blocks:
            lines.append(f"{stage:10}  {', '.join(blocks)}")
    ways = made["evaluate"]["answers"]
    lines += [f"{'answers':10}  {', '.join(ways)}"] if ways else []
    return "\n".join(lines) or "nothing is made or trained; evaluate measures the base model"


def _told(name: str, entry: Mapping[str, Any]) -> str:
    """An entry by its block, its name where that is another, and whom it asks or reads."""
    block = str(entry.get("block", name))
    told = [str(entry[key]) for key in ("critic", "model", "statistic") if entry.get(key)]
    told += [f"n {entry['n']}"] if "n" in entry and block != "fixed_unlabeled" else []
    inside = f"({', '.join(told)})" if told else ""
    return f"{block}{inside}" if block == name else f"{name}: {block}{inside}"


def _joined(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    joined = _joined(text)
    return joined if joined.endswith(".") else f"{joined}."


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
    print(f"{FILE.name}: {len(compose.names())} recipes")

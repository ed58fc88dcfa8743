"""Recipes: `python -m flows.recipe list [--json] | show NAME | use NAME [--family F] [--iterations N] [--seed S] | extend N`.

A recipe (`flows/recipes/GROUP/NAME.yaml`, one of your own in `flows/recipes/`) is a published method: title, paper, summary,
formula and its source, what departs from the paper, what it needs, whether the loop may see labels, the task family it is
shown on, the number of iterations, and the sections of params.yaml with the blocks it is made of. `models` says whose policy
a column of an iteration's row names (`previous`, `base`, `before`: the one before the previous), `rows` what an iteration and
those after it override. It says only what is its own. A family
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
from pathlib import Path
from typing import Annotated

import typer

from flows.machine import terminal
from flows.params import file, gallery, problems, sections
from flows.params import write as layout
from flows.params.compose import chosen, names, with_iterations
from flows.params.write import write
from tasks.core.errors import BadInput

SHOWN = 40  # changed values printed by `use`
app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, show and apply recipes.")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="For programs: name, title, needs.")] = False) -> None:
    """The recipes there are."""
    print(json.dumps(gallery.rows(), indent=2, ensure_ascii=False) if as_json else gallery.listing())


@app.command()
def show(name: str) -> None:
    """What a recipe is, and the sections it writes."""
    print(gallery.shown_size(name) if name in names("sizes") else gallery.shown(name))


@app.command()
def use(
    name: str,
    iterations: Annotated[int | None, typer.Option(min=1, max=99, help="Rows i01 to this one.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Default: the present file's.")] = None,
    family: Annotated[str | None, typer.Option(help="Another task family than the recipe's own.")] = None,
) -> None:
    """Writes params.yaml for a recipe, or lowers the present one's numbers to a size."""
    root = Path.cwd()
    path = root / file.FILE
    if not (root / "dvc.yaml").is_file():
        raise BadInput(f"{root} has no dvc.yaml; run this in the repository's root")
    present = file.load(root) if path.is_file() else {}
    made = chosen(name, present, iterations, seed, family)
    text = layout.render(made)
    found = layout.changes(present, made)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write(text, path)
    print(f"{file.FILE}: {name}, {len(found)} value{'' if len(found) == 1 else 's'} changed")
    print("".join(f"  {line}\n" for line in found[:SHOWN]), end="")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more")


@app.command()
def extend(iterations: Annotated[int, typer.Argument(min=1, max=99, help="The last iteration's number.")]) -> None:
    """Adds iterations to params.yaml, each starting from the one before; nothing else changes."""
    path = Path.cwd() / file.FILE
    present = file.load(Path.cwd())
    problems.check(present, recipes=names())
    last = sections.iterations(present)[-1]
    if iterations <= sections.number(last):
        raise BadInput(f"extend {iterations}: {file.FILE} has {last} already; give a higher number")
    made = with_iterations(present, iterations)
    write(layout.render(made), path)
    print(f"{file.FILE}: {last} was the last iteration, now i{iterations:02d} is")


if __name__ == "__main__":
    sys.exit(terminal.code(app))

"""Whether params.yaml can work: all its problems, as lines for one message.

Each line has the place, what was given, what is allowed, and the nearest valid name. The file's shape is held against
`flows.params.schema`. Sections are checked by the `parse` of their stage, as they stand and once more with every
override; then whether they fit one another (`flows.params.between`), and the user's files and model
(`flows.params.inputs`). Imports the stages' modules, never torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.params import between
from flows.params.file import FILE
from flows.params.inputs import attempt, check_files, check_installed
from flows.params.schema import LOOP, MODELS, STAGES, WITH_BLOCKS, File, Row, beyond_shape
from flows.params.sections import number, options
from tasks.core.block import validate
from tasks.core.catalog import BASE
from tasks.core.errors import BadInput, unknown_name

NOTHING = (
    "write {} for a block without options, or take the line out; null leaves a block out of one iteration, in its row of "
    "iterations"
)
DEEPEST = 30  # nesting; a YAML alias can make a mapping contain itself


def check(params: Mapping[str, Any], root: Path | None = None, recipes: Iterable[str] | None = None) -> None:
    """Refuses whatever can be refused before any work, all of it in one `BadInput`, one problem a line.

    `root`: where relative file and model paths start; None leaves files and models unchecked.
    `recipes`: the names that `recipe` may have; None leaves the name unchecked."""
    if problems := problems_of(params, root, None if recipes is None else list(recipes)):
        raise BadInput("\n".join(problems))


def problems_of(params: Mapping[str, Any], root: Path | None, recipes: Sequence[str] | None) -> list[str]:
    """Every problem, one a line; `root` and `recipes` as in `check`."""
    problems: list[str] = []
    attempt(problems, _check_values, params)
    if problems:
        return problems
    problems.extend(_shape(params))
    if recipes is not None and isinstance(name := params.get("recipe"), str) and name not in recipes:
        problems.append(str(unknown_name("recipe", name, recipes, "recipe")))
    iterations = _check_tables(problems, params)
    for stage in STAGES:
        if isinstance(params.get(stage), Mapping):
            _check_stage(problems, params, stage, iterations)
    if not problems:
        problems.extend(between.sections(params, iterations))
    if root is not None:
        attempt(problems, check_installed, params)
        check_files(problems, params, root, iterations)
    below = "" if root is None else f"{root}/"  # paths in it are written as from there
    return list(dict.fromkeys(line.replace(below, "") for problem in problems for line in problem.splitlines()))


def _check_values(params: Mapping[str, Any]) -> None:
    """Names are texts, and no number is infinite or none: they pass every bound and mean nothing."""
    for path, value in _leaves(params, ()):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{'.'.join(path)}: given {value!r}; every number in {FILE} is finite")


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if len(path) > DEEPEST:
        raise BadInput(f"{'.'.join(path[:3])}: is nested more than {DEEPEST} deep, or an alias contains itself")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                kind, place = type(key).__name__, ".".join((*path, str(key)))
                raise BadInput(f"{place}: given the {kind} {key!r} as a name; a name is text, put it in quotes")
            yield from _leaves(entry, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, str(index)))
    else:
        yield path, value


def _shape(params: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the file's own shape, sections of stages and rows of tables apart."""
    try:
        file: File = validate(File, params, "")
    except BadInput as error:
        yield from str(error).splitlines()
        return
    yield from beyond_shape(file)


def _check_tables(problems: list[str], params: Mapping[str, Any]) -> list[str]:
    """Checks `iterations` and `evaluations`; returns the keys whose rows are sound enough to go on with."""
    table, evaluations = params.get("iterations"), params.get("evaluations")
    if not isinstance(table, Mapping):
        return []
    sound = []
    for iteration, entry in table.items():
        found = list(_row(iteration, entry, table))
        problems.extend(found)
        if not found and isinstance(entry, Mapping) and set(entry) == set(Row.model_fields):
            sound.append(iteration)
    if isinstance(evaluations, Mapping):
        what = f"a row for {BASE} and for every iteration, `{{}}` where nothing of evaluate is overridden"
        wanted = [BASE, *table]
        problems.extend(
            f"evaluations.{iteration}: is missing; there is {what}"
            for iteration in wanted
            if iteration not in evaluations
        )
        problems.extend(
            f"evaluations.{iteration}: there is no such iteration; remove the row, or add one to iterations"
            for iteration in evaluations
            if iteration not in wanted
        )
    return sorted(sound, key=number)


def _row(iteration: str, entry: Any, table: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row of `iterations` although its shape is right."""
    where = f"iterations.{iteration}"
    if iteration == BASE:
        yield f"{where}: {BASE} is the base model's; iterations start at i01"
    elif number(iteration) < 0:
        yield f"{where}: is no iteration's key; write i and two to four digits, like i01"
    elif isinstance(entry, Mapping):
        if "evaluate" in entry:
            yield f"{where}.evaluate: overrides of evaluate stand in evaluations.{iteration}"
        earlier = [BASE, *sorted((k for k in table if 0 < number(k) < number(iteration)), key=number)]
        for name in MODELS:
            if isinstance(entry.get(name), str) and entry[name] not in earlier:
                yield str(unknown_name("earlier iteration", entry[name], earlier, f"{where}.{name}"))


def _check_stage(problems: list[str], params: Mapping[str, Any], stage: str, iterations: list[str]) -> None:
    """Parses the section as it stands, then once more for every row that overrides it."""
    own: list[str] = []
    if stage in WITH_BLOCKS:
        own += [f"{stage}.{name}: given null; {NOTHING}" for name, entry in params[stage].items() if entry is None]
    attempt(own, options, params, stage, None)
    problems.extend(own)
    if stage not in LOOP:
        return
    known = {line for problem in own for line in problem.splitlines()}
    name = "evaluations" if stage == "evaluate" else "iterations"
    table = params.get(name)
    for iteration in [*([BASE] if stage == "evaluate" else []), *iterations]:
        entry = table.get(iteration) if isinstance(table, Mapping) else None
        override = entry.get(stage) if isinstance(entry, Mapping) and stage != "evaluate" else entry
        if isinstance(override, Mapping) and override:
            found: list[str] = []
            attempt(found, options, params, stage, iteration)
            lines = (line for problem in found for line in problem.splitlines() if line not in known)
            problems.extend(f"{name}.{iteration}: {line}" for line in lines)

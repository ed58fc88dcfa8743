"""Whether params.yaml can work: all its problems, as lines for one message.

Each line has the place, what was given, what is allowed, and the nearest valid name. Sections are checked
by the `parse` of their stage, as they stand and once more with every override; then whether they fit one
another (`tasks.core.fitting`), and the user's files and model. Imports the stages' modules, never torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.params import between
from flows.params.file import FILE
from flows.params.inputs import attempt, check_files, check_installed
from flows.params.schema import SECTIONS, TOP, Serving, Shared, engine
from flows.params.sections import BASE, LOOP, MODELS, OVERRIDDEN, STAGES, number, options, section
from tasks.core.blocks import validate
from tasks.core.engines.options import endpoint_problems
from tasks.core.errors import BadInput, unknown_name

DEEPEST = 30  # nesting; a YAML alias can make a mapping contain itself


def problems_of(params: Mapping[str, Any], root: Path | None, recipes: Sequence[str] | None) -> list[str]:
    """Every problem, one a line; `root` and `recipes` as in `flows.params.problems.check`."""
    problems: list[str] = []
    attempt(problems, _check_numbers, params)
    if problems:
        return problems
    _check_top(problems, params)
    if recipes is not None and isinstance(name := params.get("recipe"), str) and name not in recipes:
        problems.append(str(unknown_name("recipe", name, recipes, "recipe")))
    if "engine" in params:
        attempt(problems, engine, params)
    for name, options_of in SECTIONS.items():
        if name in params:
            section_options = attempt(problems, validate, options_of, params[name], name)
            if isinstance(section_options, Serving):
                problems.extend(endpoint_problems(section_options.openai))
    keys = _check_tables(problems, params)
    for stage in STAGES:
        if stage in params:
            _check_stage(problems, params, stage, keys)
    if not problems:
        problems.extend(between.base(params))
        problems.extend(between.unusable("evaluate", section(params, "evaluate", BASE), params))
        for key in keys:
            problems.extend(between.between_sections(params, key))
    if root is not None:
        attempt(problems, check_installed, params)
        check_files(problems, params, root, keys)
    below = "" if root is None else f"{root}/"  # paths in it are written as from there
    return list(dict.fromkeys(line.replace(below, "") for problem in problems for line in problem.splitlines()))


def _check_numbers(params: Mapping[str, Any]) -> None:
    """No infinite number and no not-a-number anywhere: they pass every bound and mean nothing."""
    for path, value in _leaves(params, ()):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{'.'.join(path)}: given {value!r}; every number in {FILE} is finite")


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if len(path) > DEEPEST:
        raise BadInput(f"{'.'.join(path[:3])}: is nested more than {DEEPEST} deep, or an alias contains itself")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _leaves(entry, (*path, str(key)))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, str(index)))
    else:
        yield path, value


def _check_top(problems: list[str], params: Mapping[str, Any]) -> None:
    problems.extend(str(unknown_name("key", str(key), TOP, FILE)) for key in params if key not in TOP)
    missing = [key for key in TOP if key not in params]
    problems.extend(
        f"{key}: is missing from {FILE}; every section is written there, `{{}}` if empty" for key in missing
    )
    for key in Shared.model_fields:
        if key in params:
            partial = {"recipe": "x", "seed": 0, "labels": False, key: params[key]}
            attempt(problems, _shared, partial)


def _shared(given: Mapping[str, Any]) -> None:
    try:
        validate(Shared, given, FILE)
    except BadInput as error:
        raise BadInput(str(error).replace(f"{FILE}.", "")) from error


def _check_tables(problems: list[str], params: Mapping[str, Any]) -> list[str]:
    """Checks `iterations` and `evaluations`; returns the keys whose rows are sound enough to go on with."""
    table = params.get("iterations")
    if "iterations" not in params:
        return []
    if not isinstance(table, Mapping) or not table:
        problems.append(f"iterations: given {table!r}; a mapping with at least one row (`i01: {{...}}`)")
        return []
    sound = []
    for key, entry in table.items():
        found = _row_problems(key, entry, table)
        problems.extend(found)
        if not found:
            sound.append(key)
    if "evaluations" in params:
        problems.extend(_evaluation_problems(params["evaluations"], table))
    return sorted(sound, key=number)


def _row_problems(key: Any, entry: Any, table: Mapping[Any, Any]) -> list[str]:
    where = f"iterations.{key}"
    if not isinstance(key, str):
        return [f"{where}: given the {type(key).__name__} {key!r}; DVC makes no stages of it, write a key like i01"]
    if key == BASE:
        return [f"{where}: {BASE} is the base model's; iterations start at i01"]
    if number(key) < 0:
        return [f"{where}: is no iteration's key; write i and two to four digits, like i01"]
    if not isinstance(entry, Mapping):
        return [f"{where}: given {entry!r}; a row is a mapping of {', '.join((*MODELS, *OVERRIDDEN))}"]
    known = (*MODELS, *OVERRIDDEN)
    found = [
        f"{where}.evaluate: overrides of evaluate stand in evaluations.{key}"
        if name == "evaluate"
        else str(unknown_name("key", str(name), known, where))
        for name in entry
        if name not in known
    ]
    earlier = [BASE, *sorted((k for k in table if isinstance(k, str) and 0 < number(k) < number(key)), key=number)]
    for name in MODELS:
        if not isinstance(entry.get(name), str):
            given = f"given {entry[name]!r}" if name in entry else "is missing"
            found.append(f"{where}.{name}: {given}; it names {BASE} or an earlier iteration")
        elif entry[name] not in earlier:
            found.append(str(unknown_name("earlier iteration", entry[name], earlier, f"{where}.{name}")))
    for stage in OVERRIDDEN:
        if stage not in entry:
            found.append(f"{where}.{stage}: is missing; write `{stage}: {{}}` where nothing is overridden")
        elif not isinstance(entry[stage], Mapping):
            found.append(f"{where}.{stage}: given {entry[stage]!r}; a mapping of overrides, `{{}}` for none")
    return found


def _evaluation_problems(table: Any, rows: Mapping[Any, Any]) -> list[str]:
    what = f"a row for {BASE} and for every iteration, `{{}}` where nothing of evaluate is overridden"
    if not isinstance(table, Mapping):
        return [f"evaluations: given {table!r}; it has {what}"]
    wanted = [BASE, *(key for key in rows if isinstance(key, str))]
    found = [f"evaluations.{key}: is missing; there is {what}" for key in wanted if key not in table]
    for key, entry in table.items():
        if key not in wanted:
            found.append(f"evaluations.{key}: there is no such iteration; remove the row, or add one to iterations")
        elif not isinstance(entry, Mapping):
            found.append(f"evaluations.{key}: given {entry!r}; a mapping of overrides of evaluate")
    return found


def _check_stage(problems: list[str], params: Mapping[str, Any], stage: str, keys: list[str]) -> None:
    """Parses the section as it stands, then once more for every row that overrides it."""
    if not isinstance(params[stage], Mapping):
        problems.append(f"{stage}: given {params[stage]!r}; a section is a mapping, `{{}}` if empty")
        return
    own: list[str] = []
    attempt(own, options, params, stage, None)
    problems.extend(own)
    if stage not in LOOP:
        return
    known = {line for problem in own for line in problem.splitlines()}
    name = "evaluations" if stage == "evaluate" else "iterations"
    table = params.get(name)
    for key in [*([BASE] if stage == "evaluate" else []), *keys]:
        entry = table.get(key) if isinstance(table, Mapping) else None
        override = entry.get(stage) if isinstance(entry, Mapping) and stage != "evaluate" else entry
        if isinstance(override, Mapping) and override:
            found: list[str] = []
            attempt(found, options, params, stage, key)
            lines = (line for problem in found for line in problem.splitlines() if line not in known)
            problems.extend(f"{name}.{key}: {line}" for line in lines)


def check(params: Mapping[str, Any], root: Path | None = None, recipes: Iterable[str] | None = None) -> None:
    """Refuses whatever can be refused before any work, all of it in one `BadInput`, one problem a line.

    `root`: where relative file and model paths start; None leaves files and models unchecked.
    `recipes`: the names that `recipe` may have; None leaves the name unchecked."""
    from flows.params.problems import problems_of

    if problems := problems_of(params, root, None if recipes is None else list(recipes)):
        raise BadInput("\n".join(problems))

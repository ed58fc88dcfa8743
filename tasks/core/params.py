"""Everything that is asked of params.yaml: read it, check all of it, and take a stage's own part from it.

Input: `params.yaml` in the repository root, parsed with DVC's own YAML reader, so that both see the same
values (YAML 1.2: `1e-3` is a number, `off` is a word). One section per stage, the shared values
`recipe`, `seed`, `labels` and `engine`, and two tables: `iterations`, whose rows name the models that an
iteration starts from (`previous`, `initial`, `reference`, `judge`) and override a stage's section for
that iteration alone, and `evaluations`, the same rows and i00.

A section is merged with its override key by key, mappings into mappings; any other value replaces. Where
a section is a mapping of blocks, `null` in place of a block leaves that block out: `-S refine.revise=null`.

`check` collects every problem of the file into one `BadInput`, with the place, what was given, what is
allowed and the nearest valid name. It imports the stages' modules for their `parse`, and no torch.
"""

import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from tasks.core.blocks import Options, validate
from tasks.core.errors import BadInput, unknown_name
from tasks.core.seeds import derive

FILE = "params.yaml"
LOOP = ("synthesize", "sample", "critique", "refine", "filter", "train", "evaluate", "promote")
STAGES = ("prepare", "base", *LOOP, "report")
WITH_BLOCKS = ("synthesize", "sample", "critique", "refine", "filter", "train")  # sections made of named blocks
MODELS = ("previous", "initial", "reference", "judge")
TOP = ("recipe", "seed", "labels", "engine", *STAGES, "iterations", "evaluations")
BASE = "i00"
KEY = re.compile(r"i\d{2,4}")
DEEPEST = 30  # nesting; a YAML alias can make a mapping contain itself

Result = TypeVar("Result")


class Engine(Options):
    """The `engine` section: which engine answers, how it computes, and how requests are cut into shards."""

    name: str
    precision: Literal["float32", "bfloat16"]
    threads: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    rows_per_shard: int = Field(ge=1)
    draws_per_shard: int = Field(ge=1)


class Shared(Options):
    """The values that belong to no stage."""

    recipe: str = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**31)
    labels: bool


# --- reading ---------------------------------------------------------------------------------------------


def load(root: Path) -> dict[str, Any]:
    """params.yaml as it stands, aliases and merge keys resolved. Raises `BadInput` for a file that is not
    there, no YAML, no mapping, or gives a key twice."""
    path = root / FILE
    if not path.is_file():
        raise BadInput(f"{path} is not there; `python -m flows.recipe use self_evolution` writes it")
    try:
        return parse(path.read_text(encoding="utf-8"), FILE)
    except UnicodeDecodeError as error:
        raise BadInput(f"{FILE} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def parse(text: str, name: str) -> dict[str, Any]:
    """YAML text as a mapping; `name` is the file's, for messages. Raises `BadInput`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        given = YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        found = re.search(r'duplicate key "([^"]*)"', str(error))
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        what = f"key '{found.group(1)}'" if found else "a key"
        raise BadInput(f"{name}, line {line}: {what} is given twice; keep one of them") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise BadInput(f"{name}, line {line}: is not YAML: {error.problem or error.context}") from error
    except YAMLError as error:
        raise BadInput(f"{name} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise BadInput(f"{name}: given {type(given).__name__}; its top level is a mapping of sections")
    return given


def merged(own: Any, override: Any) -> Any:
    """`own` with `override` on top: mappings key by key, anything else replaced."""
    if not (isinstance(own, Mapping) and isinstance(override, Mapping)):
        return override
    result = dict(own)
    for key, value in override.items():
        result[key] = merged(result[key], value) if key in result else value
    return result


# --- a stage's own part ----------------------------------------------------------------------------------


def iterations(params: Mapping[str, Any]) -> list[str]:
    """The iterations' keys in the order of their numbers, whatever their order in the file."""
    return sorted((str(key) for key in params["iterations"]), key=number)


def number(key: str) -> int:
    """2 for "i02"; -1 for what is no iteration's key."""
    return int(key[1:]) if KEY.fullmatch(key) else -1


def stage_keys(params: Mapping[str, Any], stage: str) -> list[str | None]:
    """Every key that a stage runs under: [None] for one that runs once, else the iterations; evaluate: i00 too."""
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    if stage not in LOOP:
        return [None]
    return [*([BASE] if stage == "evaluate" else []), *iterations(params)]


def row(params: Mapping[str, Any], key: str) -> dict[str, str]:
    """Which earlier iterations' models this one starts from, is compared with and is judged by."""
    if key == BASE:
        return dict.fromkeys(MODELS, BASE)
    if key not in params["iterations"]:
        raise unknown_name("iteration", key, params["iterations"], "iterations")
    return {name: params["iterations"][key][name] for name in MODELS}


def section(params: Mapping[str, Any], stage: str, key: str | None) -> dict[str, Any]:
    """The stage's section with the override of iteration `key` merged in; blocks that are null left out."""
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    own = params[stage]
    if key is not None and stage in LOOP:
        table = "evaluations" if stage == "evaluate" else "iterations"
        if key not in params[table]:
            raise unknown_name("iteration", key, params[table], table)
        own = merged(own, params[table][key][stage])
    if stage in WITH_BLOCKS:
        own = {name: entry for name, entry in own.items() if entry is not None}
    return dict(own)


def options(params: Mapping[str, Any], stage: str, key: str | None) -> Any:
    """The stage's validated options, as its module's `parse` returns them. Raises `BadInput`."""
    return importlib.import_module(f"tasks.{stage}").parse(section(params, stage, key))


def engine(params: Mapping[str, Any]) -> Engine:
    """The validated `engine` section. Raises `BadInput`."""
    from tasks.core.engines import ENGINES

    checked: Engine = validate(Engine, params["engine"], "engine")
    if checked.name not in ENGINES:
        raise unknown_name("engine", checked.name, ENGINES, "engine.name")
    return checked


def seed(params: Mapping[str, Any], stage: str, key: str | None) -> int:
    """A seed of 31 bits for this stage and iteration: the same on every machine, different between stages."""
    return derive(params["seed"], stage, key)


# --- checking --------------------------------------------------------------------------------------------


def check(params: Mapping[str, Any], root: Path | None = None, recipes: Iterable[str] | None = None) -> None:
    """Refuses whatever can be refused before any work, all of it in one `BadInput`, one problem a line.

    `root`: where relative file and model paths start; None leaves files and models unchecked.
    `recipes`: the names that `recipe` may have; None leaves the name unchecked."""
    problems: list[str] = []
    _try(problems, _check_numbers, params)
    if problems:
        raise BadInput("\n".join(problems))
    _check_top(problems, params)
    if recipes is not None and isinstance(name := params.get("recipe"), str) and name not in (known := list(recipes)):
        problems.append(str(unknown_name("recipe", name, known, "recipe")))
    if "engine" in params:
        _try(problems, engine, params)
    keys = _check_tables(problems, params)
    for stage in STAGES:
        if stage in params:
            _check_stage(problems, params, stage, keys)
    if not problems:
        for key in keys:
            problems.extend(line for line in _across(params, key) if line not in problems)
    if root is not None:
        _check_files(problems, params, root)
    if problems:
        raise BadInput("\n".join(dict.fromkeys(line for problem in problems for line in problem.splitlines())))


def _try(problems: list[str], function: Callable[..., Result], *arguments: Any) -> Result | None:
    """The function's result, or None and its complaint among the problems."""
    try:
        return function(*arguments)
    except BadInput as error:
        problems.append(str(error))
        return None


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
            _try(problems, _shared, partial)


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
        return [f"{where}: given {entry!r}; a row is a mapping of {', '.join((*MODELS, *LOOP))}"]
    known = (*MODELS, *LOOP)
    found = [str(unknown_name("key", str(name), known, where)) for name in entry if name not in known]
    earlier = [BASE, *sorted((k for k in table if isinstance(k, str) and 0 < number(k) < number(key)), key=number)]
    for name in MODELS:
        if name not in entry:
            found.append(f"{where}.{name}: is missing; it names {BASE} or an earlier iteration")
        elif not isinstance(entry[name], str):
            found.append(f"{where}.{name}: given {entry[name]!r}; it names {BASE} or an earlier iteration")
        elif entry[name] not in earlier:
            found.append(str(unknown_name("earlier iteration", entry[name], earlier, f"{where}.{name}")))
    for stage in LOOP:
        if stage not in entry:
            found.append(f"{where}.{stage}: is missing; write `{stage}: {{}}` where nothing is overridden")
        elif not isinstance(entry[stage], Mapping):
            found.append(f"{where}.{stage}: given {entry[stage]!r}; a mapping of overrides, `{{}}` for none")
    return found


def _evaluation_problems(table: Any, rows: Mapping[Any, Any]) -> list[str]:
    advice = "write `evaluations: {i00: {evaluate: {}}, <<: *iterations}` with `iterations: &iterations`"
    if not isinstance(table, Mapping):
        return [f"evaluations: given {table!r}; it is {BASE} and the rows of iterations: {advice}"]
    found = []
    if BASE not in table:
        found.append(f"evaluations.{BASE}: is missing; {advice}")
    elif not isinstance(table[BASE], Mapping) or list(table[BASE]) != ["evaluate"]:
        found.append(f"evaluations.{BASE}: given {table[BASE]!r}; it is `{{evaluate: {{}}}}`, overrides inside")
    elif not isinstance(table[BASE]["evaluate"], Mapping):
        found.append(f"evaluations.{BASE}.evaluate: given {table[BASE]['evaluate']!r}; a mapping of overrides")
    if {key: value for key, value in table.items() if key != BASE} != dict(rows):
        found.append(f"evaluations: its rows are not those of iterations; {advice}")
    return found


def _check_stage(problems: list[str], params: Mapping[str, Any], stage: str, keys: list[str]) -> None:
    """Parses the section as it stands, then once more for every row that overrides it."""
    if not isinstance(params[stage], Mapping):
        problems.append(f"{stage}: given {params[stage]!r}; a section is a mapping, `{{}}` if empty")
        return
    own: list[str] = []
    _try(own, options, params, stage, None)
    problems.extend(own)
    if stage not in LOOP:
        return
    known = {line for problem in own for line in problem.splitlines()}
    table = params.get("evaluations" if stage == "evaluate" else "iterations")
    for key in [*([BASE] if stage == "evaluate" else []), *keys]:
        entry = table.get(key) if isinstance(table, Mapping) else None
        override = entry.get(stage) if isinstance(entry, Mapping) else None
        if isinstance(override, Mapping) and override:
            found: list[str] = []
            _try(found, options, params, stage, key)
            name = "evaluations" if key == BASE else "iterations"
            lines = (line for problem in found for line in problem.splitlines() if line not in known)
            problems.extend(f"{name}.{key}: {line}" for line in lines)


# --- what must fit between sections ----------------------------------------------------------------------


def _across(params: Mapping[str, Any], key: str) -> Iterator[str]:
    """Problems between this iteration's sections, each of which is sound by itself."""
    critics = section(params, "critique", key)
    if not params["labels"]:
        for name, entry in critics.items():
            if _block(name, entry) == "verifier":
                yield (
                    f"critique.{name}: block verifier reads the truth, but {FILE} says `labels: false`; use a "
                    "label-free critic, or a recipe that declares labels (`python -m flows.recipe use oracle`)"
                )
    for stage in ("refine", "filter"):
        for name, entry in section(params, stage, key).items():
            if "critic" in entry and entry["critic"] not in critics:
                yield str(unknown_name("critic", str(entry["critic"]), critics, f"{stage}.{name}.critic"))
    yield from _parts(section(params, "filter", key), section(params, "train", key))


def _block(name: str, entry: Mapping[str, Any]) -> str:
    return str(entry.get("block", name))


def _parts(filters: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    """What train mixes must be what filter makes."""
    entries = {_block(name, entry): entry for name, entry in filters.items()}
    rows = set(entries["replay"]["parts"]) if "replay" in entries else set()
    if "positives" in entries:
        rows.add("own")
        if "accumulate" in entries and entries["accumulate"].get("newest_share") is not None:
            rows.add("earlier")
    for name, entry in training.items():
        block = _block(name, entry)
        if block == "dpo" and not any(made.startswith("pairs_") for made in entries):
            yield f"train.{name}: dpo trains on pairs, and no block of filter makes any; add one (pairs_best_worst)"
        wanted = entry.get("mixture") if block == "sft" else entry.get("replay")
        for part in wanted or {}:
            if part not in rows:
                place = f"train.{name}.{'mixture' if block == 'sft' else 'replay'}"
                hint = "" if part not in ("own", "earlier") else "; `positives` makes own, `accumulate` earlier"
                yield f"{unknown_name('part', str(part), rows, f'{place} (what filter makes)')}{hint}"


def _check_files(problems: list[str], params: Mapping[str, Any], root: Path) -> None:
    """The user's files and pretrained model, where the sections that name them are sound."""
    prepare = params.get("prepare")
    if isinstance(prepare, Mapping) and not any(problem.startswith("prepare") for problem in problems):
        from tasks.core.families import check_inputs

        _try(problems, check_inputs, root, prepare)
    base = params.get("base")
    pretrained = base.get("pretrained") if isinstance(base, Mapping) else None
    if isinstance(pretrained, str):
        from tasks.core.models import validate_folder

        _try(problems, validate_folder, root / pretrained)

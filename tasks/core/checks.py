"""Whether params.yaml can work: all its problems, as lines for one message.

Each line has the place, what was given, what is allowed, and the nearest valid name. Sections are checked
by the `parse` of their stage, as they stand and once more with every override; then whether they fit one
another (`tasks.core.fitting`), and the user's files and model. Imports the stages' modules, never torch.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasks import families
from tasks.core import engines, fitting, trainable
from tasks.core.blocks import validate
from tasks.core.engines import server_renders
from tasks.core.engines.options import endpoint_problems
from tasks.core.errors import BadInput, unknown_name
from tasks.core.models.pointer import Pointer
from tasks.core.params import (
    BASE,
    FILE,
    LOOP,
    MODELS,
    OVERRIDDEN,
    STAGES,
    TOP,
    Shared,
    engine,
    number,
    options,
    section,
)  # fmt: skip
from tasks.core.serving import SECTIONS, Serving

MISSING_LM_EVAL = "evaluate.benchmarks: lm-eval is not installed; `pip install --constraint constraints.txt --editable '.[lm-eval]'` adds it"
SCORED = f"is scored by log-probabilities of given text, and {fitting.NO_SCORES}, or leave it out"
SCORED_KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")  # output_type of a task of lm-eval
DEEPEST = 30  # nesting; a YAML alias can make a mapping contain itself
Result = TypeVar("Result")


def problems_of(params: Mapping[str, Any], root: Path | None, recipes: Sequence[str] | None) -> list[str]:
    """Every problem, one a line; `root` and `recipes` as in `tasks.core.params.check`."""
    problems: list[str] = []
    _try(problems, _check_numbers, params)
    if problems:
        return problems
    _check_top(problems, params)
    if recipes is not None and isinstance(name := params.get("recipe"), str) and name not in recipes:
        problems.append(str(unknown_name("recipe", name, recipes, "recipe")))
    if "engine" in params:
        _try(problems, engine, params)
    for name, options_of in SECTIONS.items():
        if name in params:
            section_options = _try(problems, validate, options_of, params[name], name)
            if isinstance(section_options, Serving):
                problems.extend(endpoint_problems(section_options.openai))
    keys = _check_tables(problems, params)
    for stage in STAGES:
        if stage in params:
            _check_stage(problems, params, stage, keys)
    if not problems:
        problems.extend(fitting.base(params))
        problems.extend(fitting.unusable("evaluate", section(params, "evaluate", BASE), params))
        for key in keys:
            problems.extend(fitting.between_sections(params, key))
    if root is not None:
        _try(problems, _check_installed, params)
        _check_files(problems, params, root, keys)
    below = "" if root is None else f"{root}/"  # paths in it are written as from there
    return list(dict.fromkeys(line.replace(below, "") for problem in problems for line in problem.splitlines()))


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
    _try(own, options, params, stage, None)
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
            _try(found, options, params, stage, key)
            lines = (line for problem in found for line in problem.splitlines() if line not in known)
            problems.extend(f"{name}.{key}: {line}" for line in lines)


# --- files -------------------------------------------------------------------------------------------------


def _check_installed(params: Mapping[str, Any]) -> None:
    section = params.get("engine")
    name = section.get("name") if isinstance(section, Mapping) else None
    if isinstance(name, str):
        engines.check_installed(name)


def _check_files(problems: list[str], params: Mapping[str, Any], root: Path, keys: Sequence[str]) -> None:
    """The user's files and pretrained model, where the sections that name them are sound, and what the pool holds."""
    prepare = params.get("prepare")
    if isinstance(prepare, Mapping) and not any(problem.startswith("prepare") for problem in problems):
        family, source = prepare["family"], prepare["source"]
        if not (root / source).exists():
            problems.append(
                f"prepare.source: given {source!r}, but {root / source}: there is no such file; name the file that the "
                f"problems come from (`python -m flows.recipe list`: a recipe writes that of its family){_of_hub(source)}"
            )
        else:
            given = families.with_source(family, prepare["options"], source)
            pool = _try(problems, families.check_inputs, family, given, root)
            if not problems and pool is not None:
                problems.extend(fitting.supply(params, keys, pool))
    evaluate = params.get("evaluate")
    if isinstance(evaluate, Mapping) and not any("evaluat" in problem for problem in problems):
        sound = "engine" in params and not any(problem.startswith("engine") for problem in problems)
        chat = sound and server_renders(params["engine"])
        problems.extend(_benchmark_problems(params, root, [BASE, *keys], chat))
    base = params.get("base")
    folder = None
    pretrained = base.get("pretrained") if isinstance(base, Mapping) else False
    if isinstance(base, Mapping) and (pretrained is None or (isinstance(pretrained, str) and pretrained.strip())):
        folder = _try(problems, _check_model, root, params)
    if not problems:
        problems.extend(trainable.machine(params, keys, root))
        problems.extend(trainable.targets(params, keys, folder))
        problems.extend(trainable.continued(params, keys, folder))


def _of_hub(source: str) -> str:
    """What to do with a name of the Hugging Face hub."""
    name = source.removeprefix("hf://").removeprefix("datasets/")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
        return ""
    return (
        f"; if it is a dataset of the Hugging Face hub, `python -m flows.fetch {name}` makes files of it to name here"
    )


def _benchmark_problems(params: Mapping[str, Any], root: Path, keys: Sequence[str], chat: bool) -> Iterator[str]:
    """The folder that evaluate depends on is there, the same for all iterations, lm-eval is where it is wanted, and no task
    wants scores of a server that takes messages (`chat`)."""
    files = params["evaluate"]["benchmark_files"]
    if not (root / files).is_dir():
        yield (
            f"evaluate.benchmark_files: given {files!r}, but {root / files} is no folder; name the one with your tasks for "
            "lm-eval (a recipe writes tasks/templates/benchmarks), benchmarks or not: stage evaluate depends on it"
        )
    sections = {key: section(params, "evaluate", key) for key in keys}
    for key, own in sections.items():
        if own["benchmark_files"] != files:
            yield (
                f"evaluations.{key}.benchmark_files: given "
                f"{own['benchmark_files']!r}; it is one folder for all iterations, set in evaluate"
            )
    if any(own["benchmarks"] for own in sections.values()) and importlib.util.find_spec("lm_eval") is None:
        yield MISSING_LM_EVAL
    if chat:
        scored = _scored_tasks(root / files)
        for own in sections.values():
            for name, benchmark in (own["benchmarks"] or {}).items():
                for task in scored.intersection(benchmark["tasks"]):
                    yield f"evaluate.benchmarks.{name}: task {task} {SCORED}"


def _scored_tasks(folder: Path) -> set[str]:
    """The tasks in the user's files that say that they are scored; lm-eval itself is only asked in stage evaluate."""
    found = set()
    for path in folder.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        kind, task = (re.search(rf"^{key}:\s*['\"]?([\w.-]+)", text, re.MULTILINE) for key in ("output_type", "task"))
        if kind and task and kind[1] in SCORED_KINDS:
            found.add(task[1])
    return found


def _check_model(root: Path, params: Mapping[str, Any]) -> Path | None:
    """The pretrained model's folder; None where a model is made here, or is still to be fetched. A model on disk is checked
    as it stands; for one that is not, the hub is asked whether it can be fetched. Either way the chat template is tried."""
    from tasks.core.models import chat, folders, hub, tokenizers

    name, own = params["base"].get("pretrained"), params["base"].get("chat_template")
    folder, text, special = None, None, chat.MADE
    where = f"base.pretrained: {name}: its chat template"
    if name is not None:
        try:
            folders.check_name(root, name)
            if (root / Path(name).expanduser()).is_dir() or hub.cached(name):
                folder = folders.resolve(root, Pointer(name, ""))
                folders.validate_folder(folder, own is None)
            else:
                hub.look(name)
        except BadInput as error:
            raise BadInput(f"base.pretrained: {error}") from error
    if folder is not None:
        tokenizer = folders.parts(folder).tokenizer
        text, special = chat.of_folder(tokenizer), chat.tokens(tokenizer)
    if isinstance(own, str):
        text, where = tokenizers.chat_template(own), f"base.chat_template: tasks/templates/chat/{own}.jinja"
        chat.check(text, special, where, "correct it")
    if text is not None and isinstance(prepare := params.get("prepare"), Mapping):
        chat.check_system(text, special, prepare.get("options") or {}, where)
    return folder

"""The user's files, models and packages that params.yaml names."""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flows.params import between, trainable
from flows.params.sections import BASE, section
from tasks import families
from tasks.blocks.evaluate.options import MISSING_LM_EVAL, SCORED, SCORED_KINDS
from tasks.core import engines
from tasks.core.engines import server_renders
from tasks.core.errors import BadInput
from tasks.core.models.pointer import Pointer

Result = TypeVar("Result")


def attempt(problems: list[str], function: Callable[..., Result], *arguments: Any) -> Result | None:
    """The function's result, or None and its complaint among the problems."""
    try:
        return function(*arguments)
    except BadInput as error:
        problems.append(str(error))
        return None


def check_installed(params: Mapping[str, Any]) -> None:
    section = params.get("engine")
    name = section.get("name") if isinstance(section, Mapping) else None
    if isinstance(name, str):
        engines.check_installed(name)


def check_files(problems: list[str], params: Mapping[str, Any], root: Path, iterations: Sequence[str]) -> None:
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
            pool = attempt(problems, families.check_inputs, family, given, root)
            if not problems and pool is not None:
                problems.extend(between.supply(params, iterations, pool))
    evaluate = params.get("evaluate")
    if isinstance(evaluate, Mapping) and not any("evaluat" in problem for problem in problems):
        sound = "engine" in params and not any(problem.startswith("engine") for problem in problems)
        chat = sound and server_renders(params["engine"])
        problems.extend(_benchmark_problems(params, root, [BASE, *iterations], chat))
    base = params.get("base")
    folder = None
    pretrained = base.get("pretrained") if isinstance(base, Mapping) else False
    if isinstance(base, Mapping) and (pretrained is None or (isinstance(pretrained, str) and pretrained.strip())):
        folder = attempt(problems, _check_model, root, params)
    if not problems:
        problems.extend(trainable.machine(params, iterations, root))
        problems.extend(trainable.targets(params, iterations, folder))
        problems.extend(trainable.continued(params, iterations, folder))


def _of_hub(source: str) -> str:
    """What to do with a name of the Hugging Face hub."""
    name = source.removeprefix("hf://").removeprefix("datasets/")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
        return ""
    return (
        f"; if it is a dataset of the Hugging Face hub, `python -m flows.fetch {name}` makes files of it to name here"
    )


def _benchmark_problems(params: Mapping[str, Any], root: Path, iterations: Sequence[str], chat: bool) -> Iterator[str]:
    """The folder that evaluate depends on is there, the same for all iterations, lm-eval is where it is wanted, and no task
    wants scores of a server that takes messages (`chat`)."""
    files = params["evaluate"]["benchmark_files"]
    if not (root / files).is_dir():
        yield (
            f"evaluate.benchmark_files: given {files!r}, but {root / files} is no folder; name the one with your tasks for "
            "lm-eval (a recipe writes tasks/templates/benchmarks), benchmarks or not: stage evaluate depends on it"
        )
    sections = {iteration: section(params, "evaluate", iteration) for iteration in iterations}
    for iteration, own in sections.items():
        if own["benchmark_files"] != files:
            yield (
                f"evaluations.{iteration}.benchmark_files: given "
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

"""Everything that is asked of params.yaml: read it, check all of it, and take a stage's own part from it.

Input: `params.yaml` in the repository root, parsed with DVC's own YAML reader, so that both see the same values (YAML
1.2: `1e-3` is a number, `off` is a word). One section per stage, the shared values `recipe`, `seed`, `labels` and
`engine`, what changes no result (`serving`, `runner`, `prices`), and two tables: `iterations`, whose rows name the
models that an iteration starts from (`previous`, `initial`, `reference`, `judge`) and override a stage's section for
that iteration alone, and `evaluations`, with a row of overrides of `evaluate` for each of them and for i00.

A section is merged with its override key by key, mappings into mappings; any other value replaces. Where
a section is a mapping of blocks, `null` in place of a block leaves that block out: `-S refine.revise=null`.

`check` (its work is in `tasks.core.checks`) refuses a file with anything wrong in it.
"""

import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tasks.core.blocks import Options, validate
from tasks.core.errors import BadInput, unknown_name
from tasks.core.seeds import derive
from tasks.core.serving import SECTIONS

FILE = "params.yaml"
LOOP = ("synthesize", "sample", "critique", "refine", "filter", "train", "evaluate", "promote")
STAGES = ("prepare", "base", *LOOP, "report")
OVERRIDDEN = tuple(stage for stage in LOOP if stage != "evaluate")  # in rows of `iterations`
WITH_BLOCKS = ("synthesize", "sample", "critique", "refine", "filter", "train")  # sections made of named blocks
MODELS = ("previous", "initial", "reference", "judge")
TOP = ("recipe", "seed", "labels", "engine", *SECTIONS, *STAGES, "iterations", "evaluations")
BASE = "i00"
SECRET = re.compile(r"(?i).*(api_?key|authori[sz]ation|password|secret|bearer|(access|auth)_?token).*")
KEY = re.compile(r"i\d{2,4}")


class Endpoint(Options):
    """What of an endpoint decides its replies (engine `openai`)."""

    model: str | None = Field(min_length=1)  # the name to ask the server for; null: the model's path
    protocol: Literal["completions", "chat"]  # the prompt rendered here, or messages that the server renders
    length_field: Literal["max_tokens", "max_completion_tokens"]  # what the server calls the reply's longest length
    extra: dict[str, Any]  # further fields of every request; null takes one of OpenAI's own out


class Engine(Options):
    """The `engine` section: which engine answers, how it computes, and how requests are cut into shards."""

    name: str  # transformers, vllm or openai
    precision: Literal["float32", "bfloat16"]  # that the model is loaded and computes in
    threads: int = Field(ge=1)  # of a CPU
    batch_size: int = Field(ge=1)  # requests computed side by side
    rows_per_shard: int = Field(ge=1)  # replies that are stored together, about: a shard
    draws_per_shard: int = Field(ge=1)  # of one prompt in a shard, so that a higher n leaves the old ones alone
    endpoint: Endpoint


class Shared(Options):
    """The values that belong to no stage."""

    recipe: str = Field(min_length=1)  # its name, for people
    seed: int = Field(ge=0, lt=2**31)  # of data, sampling and training
    labels: bool  # whether the loop may see the answers


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
        row = params[table][key]
        own = merged(own, row if stage == "evaluate" else row[stage])
    if stage in WITH_BLOCKS:
        own = {name: entry for name, entry in own.items() if entry is not None}
    return dict(own)


def options(params: Mapping[str, Any], stage: str, key: str | None) -> Any:
    """The stage's validated options, as its module's `parse` returns them. Raises `BadInput`."""
    return importlib.import_module(f"tasks.{stage}").parse(section(params, stage, key))


def engine(params: Mapping[str, Any]) -> Engine:
    """The validated `engine` section. Raises `BadInput`."""
    from tasks.core.engines import check_name

    checked: Engine = validate(Engine, params["engine"], "engine")
    check_name(checked.name, "engine.name")
    own = {"model", "prompt", "messages", "n", "stream", "echo", "temperature", "top_p", "seed", "logprobs"}
    for name in sorted(own | {"max_tokens", "max_completion_tokens"}):
        if checked.endpoint.extra.get(name) is not None:
            raise BadInput(
                f"engine.endpoint.extra.{name}: is set elsewhere in {FILE} or not at all; write null to leave it out"
            )
    if secret := sorted(name for name in checked.endpoint.extra if SECRET.fullmatch(name)):
        raise BadInput(
            f"engine.endpoint.extra.{secret[0]}: looks like a key, and {FILE} is no place for one: export it as the environment "
            "variable that serving.openai.key_variable names"
        )
    return checked


def seed(params: Mapping[str, Any], stage: str, key: str | None) -> int:
    """A seed of 31 bits for this stage and iteration: the same on every machine, different between stages."""
    return derive(params["seed"], stage, key)


def check(params: Mapping[str, Any], root: Path | None = None, recipes: Iterable[str] | None = None) -> None:
    """Refuses whatever can be refused before any work, all of it in one `BadInput`, one problem a line.

    `root`: where relative file and model paths start; None leaves files and models unchecked.
    `recipes`: the names that `recipe` may have; None leaves the name unchecked."""
    from tasks.core.checks import problems_of

    if problems := problems_of(params, root, None if recipes is None else list(recipes)):
        raise BadInput("\n".join(problems))

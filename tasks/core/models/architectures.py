"""Architectures: whether transformers knows a model type and its keys, found out without importing torch.

Importing a configuration class of transformers imports torch, which takes seconds, and every stage checks
params.yaml. So the fields are read from the source of the class; where a class does not show all of its
fields, its keys are left to transformers, which is asked when the model is built.
"""

import ast
import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tasks.core.errors import BadInput, UnknownName, unknown_name
from tasks.core.models import files

FROM_TOKENIZER = {"vocab_size", "pad_token_id", "eos_token_id", "bos_token_id"}
OLD_KEYS = {"rope_theta", "rope_scaling"}  # read by transformers, though no field carries the name
SIZE = re.compile(r"^(n|d|num|max_position)_|_(size|dim)$")  # whole numbers that count or measure something
PLAIN: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "None": type(None),
    "list": list,
    "tuple": (tuple, list),
    "dict": dict,
}


class Field(NamedTuple):
    """A field of a configuration class, as its source shows it."""

    annotation: str
    may_be_zero: bool


def check(architecture: Mapping[str, Any], where: str) -> None:
    """Raises `BadInput` or `UnknownName` (nearest name) for a model type or key that transformers does not know,
    and for values of another type than the key's.
    Keys are read from the source of the configuration class, because importing it would import torch."""
    if "model_type" not in architecture:
        raise BadInput(f"{where}: model_type is missing; it names the architecture, for instance qwen3")
    wanted = str(architecture["model_type"])
    check_model_type(wanted, where)
    folder = wanted.replace("-", "_")
    own = _fields(_transformers() / "models" / folder / f"configuration_{folder}.py", wanted)
    if own is None:
        return
    fields = (_fields(_transformers() / "configuration_utils.py", "") or {}) | own
    for key, value in architecture.items():
        if key in FROM_TOKENIZER:
            raise BadInput(f"{where}.{key}: comes from the tokenizer and cannot be set")
        if key not in fields.keys() | OLD_KEYS | {"model_type"}:
            raise unknown_name("key", str(key), own.keys() - FROM_TOKENIZER, where)
        if key in fields:
            _check_value(key, value, fields[key], where)


def check_model_type(model_type: str, where: str) -> None:
    """Raises `UnknownName` (nearest names) unless transformers has a causal language model of this type."""
    known = _causal()
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UnknownName(f"{where}: transformers has no causal language model of model_type {model_type!r}{hint}")


def _check_value(key: str, value: Any, field: Field, where: str) -> None:
    """Raises `BadInput` for a value of another type than the field's, and for a size below 1. A field is only held
    to a type where all its alternatives are plain ones."""
    kinds = [kind.partition("[")[0].strip() for kind in re.sub(r"\[.*\]", "", field.annotation).split("|")]
    if all(kind in PLAIN for kind in kinds):
        fits = any(isinstance(value, PLAIN[kind]) for kind in kinds)
        if not fits or (isinstance(value, bool) and "bool" not in kinds):
            raise BadInput(f"{where}.{key}: given {value!r}; transformers wants {field.annotation}")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if "int" in kinds and SIZE.search(key) and whole and value < 1 and not field.may_be_zero:
        raise BadInput(f"{where}.{key}: given {value}; a size is at least 1")


def _transformers() -> Path:
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise BadInput("transformers is not installed; `make env` installs it")
    return Path(spec.origin).parent


@cache
def _causal() -> list[str]:
    """Model types that `AutoModelForCausalLM` knows."""
    source = (_transformers() / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    table = source.partition("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")[2].partition("\n)")[0]
    return re.findall(r'\("([\w.-]+)",', table)


@cache
def layers(model_type: str) -> frozenset[str]:
    """Names of the layers with a matrix of weights in models of this type, as their source shows them; none where it does
    not show all of them."""
    folder = model_type.replace("-", "_")
    source = _transformers() / "models" / folder / f"modeling_{folder}.py"
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    if re.search(r"^from \.\.\w+\.modeling_", text, re.MULTILINE):
        return frozenset()
    found = re.findall(r"self\.(\w+) = (?:nn\.)?(?:\w*Linear|Conv[12][dD]|Embedding)\(", text)
    return frozenset(found) - files.HEADS


@cache
def _fields(source: Path, model_type: str) -> dict[str, Field] | None:
    """Annotated fields of the configuration class of `model_type` in a source file; None if no such class
    derives directly from the base class, so that its fields are not all in sight."""
    if not source.is_file():
        return None
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        values = {
            item.targets[0].id: item.value.value
            for item in node.body
            if isinstance(item, ast.Assign)
            and isinstance(item.targets[0], ast.Name)
            and isinstance(item.value, ast.Constant)
        }
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        is_base = not model_type and node.name == "PreTrainedConfig"
        if is_base or (model_type and values.get("model_type") == model_type and bases == ["PreTrainedConfig"]):
            return {
                item.target.id: Field(ast.unparse(item.annotation), _is_zero_or_less(item.value))
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    return None


def _is_zero_or_less(default: ast.expr | None) -> bool:
    """Whether a field's default is a number below 1, which then means something."""
    if isinstance(default, ast.UnaryOp):
        return isinstance(default.op, ast.USub)
    return isinstance(default, ast.Constant) and default.value == 0

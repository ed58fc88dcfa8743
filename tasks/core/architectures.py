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
from typing import Any

from tasks.core.errors import BadInput, UnknownName, unknown_name

FROM_TOKENIZER = {"vocab_size", "pad_token_id", "eos_token_id", "bos_token_id"}
OLD_KEYS = {"rope_theta", "rope_scaling"}  # read by transformers, though no field carries the name


def check(architecture: Mapping[str, Any], where: str) -> None:
    """Raises `BadInput` or `UnknownName` (nearest name) for a model type or key that transformers does not know.
    Keys are read from the source of the configuration class, because importing it would import torch."""
    if "model_type" not in architecture:
        raise BadInput(f"{where}: model_type is missing; it names the architecture, for instance qwen3")
    wanted = str(architecture["model_type"])
    known = _causal()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UnknownName(f"{where}: transformers has no causal language model of model_type {wanted!r}{hint}")
    folder = wanted.replace("-", "_")
    own = _fields(_transformers() / "models" / folder / f"configuration_{folder}.py", wanted)
    if own is None:
        return
    fields = (own | (_fields(_transformers() / "configuration_utils.py", "") or set()) | OLD_KEYS) - FROM_TOKENIZER
    for key in architecture:
        if key in FROM_TOKENIZER:
            raise BadInput(f"{where}.{key}: comes from the tokenizer and cannot be set")
        if key not in fields | {"model_type"}:
            raise unknown_name("key", str(key), own - FROM_TOKENIZER, where)


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
def _fields(source: Path, model_type: str) -> set[str] | None:
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
            return {i.target.id for i in node.body if isinstance(i, ast.AnnAssign) and isinstance(i.target, ast.Name)}
    return None

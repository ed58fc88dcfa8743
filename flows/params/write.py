"""How params.yaml is laid out: its text from the values, and the values that differ between two files.

Sections come in data-flow order with a comment each; a small mapping stands on one line, rows of
`iterations` and `evaluations` always do. Equal values, equal bytes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.params import schema

WIDTH = 120
COMMENTS = {
    "recipe": "Written by `python -m flows.recipe use {recipe}`; every value of the project is here, edit freely.\n"
    "`python -m flows.check` says what cannot work; `dvc repro` reruns what an edit touches.",
    "seed": "One seed for everything: data, sampling, training.",
    "labels": "Whether the loop may see the answers. Evaluation always may.",
    "engine": "How models answer. `threads` and the shards' sizes are part of a result's identity.",
    "serving": "How engines are run and reached. From here to `prices` nothing changes a result, so no edit reruns a stage.",
    "runner": "Where shards are computed: in this process, or by the workers of a Ray cluster. `training`: in a process of its\n"
    "own (auto: where there is a GPU, always, never).",
    "prices": "For the accounting: a million tokens, an hour of the machine.",
    "prepare": "The task: seed corpus (labelled), pool (unlabelled), probe and held-out problems.",
    "base": "The model that the loop starts from: trained here on the seed corpus, or `pretrained: PATH`.",
    "synthesize": "Which prompts an iteration works on. Blocks by name, here and below.",
    "sample": "The policy's answers.",
    "critique": "What the judge, a model of the iteration's row, says about them.",
    "refine": "The policy's second thoughts, criticised again.",
    "filter": "What is kept, how it is weighted, what it is mixed with.",
    "train": "How the iteration's initial model learns from it.",
    "evaluate": "How every candidate is measured, on the held-out set and on the probe set.",
    "promote": "When the candidate becomes the policy: probe set only.",
    "iterations": "One row an iteration: the models it starts from, and what it overrides in a section.\n"
    "To go on, `python -m flows.recipe extend 4` adds rows up to i04: only its own stages run.",
    "evaluations": "What an evaluation overrides in `evaluate`: a row for every iteration, and for the base model.",
}


def render(params: Mapping[str, Any]) -> str:
    """params.yaml's text: sections in data-flow order with a comment each, small mappings on one line."""
    lines: list[str] = []
    for key in schema.TOP:
        value = params[key]
        comment = COMMENTS.get(key, "").replace("{recipe}", str(params["recipe"])).splitlines()
        lines.extend([""] if lines and (comment or isinstance(value, Mapping)) else [])
        lines.extend(f"# {line}" for line in comment)
        if key in ("iterations", "evaluations"):
            lines.append(f"{key}:")
            lines.extend(f"  {name}: {on_one_line(row)}" for name, row in value.items())
        else:
            lines.extend(lines_of(key, value, 0))
    return "\n".join(lines) + "\n"


def lines_of(key: str, value: Any, depth: int) -> Iterator[str]:
    """A key with its value as lines: on one line where that is short and holds no mapping of mappings."""
    line = f"{'  ' * depth}{_scalar(key)}: {on_one_line(value)}"
    nested = isinstance(value, Mapping) and (depth == 0 or any(isinstance(v, Mapping) for v in value.values()))
    if not isinstance(value, Mapping) or not value or (len(line) <= WIDTH and not nested):
        yield line
        return
    yield f"{'  ' * depth}{_scalar(key)}:"
    for name, entry in value.items():
        yield from lines_of(name, entry, depth + 1)


def on_one_line(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {on_one_line(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(on_one_line(entry) for entry in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value)
        reserved = value.lower() in {"null", "true", "false", "yes", "no", "on", "off"}
        return value if plain and not reserved else json.dumps(value, ensure_ascii=False)
    return str(value)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`path: old -> new` for every value that differs."""
    before, after = (dict(_flat(tree, "")) for tree in (old, new))
    absent = "(none)"
    return [
        f"{path}: {before.get(path, absent)} -> {after.get(path, absent)}"
        for path in dict.fromkeys([*after, *before])
        if before.get(path, absent) != after.get(path, absent)
    ]


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{path}.{key}" if path else str(key))
    else:
        yield path, on_one_line(value)


def write(text: str, path: Path) -> None:
    """Replaces the file as a whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)

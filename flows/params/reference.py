"""Every section of params.yaml, block and option, as a Markdown page: `python -m flows.params.reference`.

Read from the code, so that it cannot say anything else: the classes that check params.yaml (names, types, limits, and
the comment beside each option) and the docstrings of blocks. A test compares `docs/options.md` with it.
"""

import ast
import inspect
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import annotated_types
from pydantic import BaseModel

from flows.params import compose, schema
from tasks.core.block import Block
from tasks.core.training.options import SftOptions, TrainingOptions

KINDS = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "anything"}
BOUNDS = {
    annotated_types.Ge: ("ge", ">= {}"),
    annotated_types.Gt: ("gt", "> {}"),
    annotated_types.Le: ("le", "<= {}"),
    annotated_types.Lt: ("lt", "< {}"),
}
COMMON = {  # options that say the same everywhere
    "temperature": "of sampling; 0: greedy",
    "top_p": "the smallest set of tokens with this much probability is drawn from",
    "max_new_tokens": "of a reply, at most",
    "critic": "name of a critic of this iteration",
    "pairs": "of a prompt, compared at most; null: every pair",
    "criteria": "each a statement about the response, true or not",
    "rank": "of the adapter",
    "weight_decay": "of AdamW",
}
HEAD = "| option | value | says |\n|---|---|---|"
INTRODUCTION = """# Every option

`python -m flows.params.reference` writes this page from the code that checks params.yaml.

- Every option has to be there. Defaults stand in recipes and families (`python -m flows.recipe show NAME`), not in code.
- In a section made of blocks an entry is `NAME: {block: BLOCK, ...}`. Without `block` the name is the block's.
- `python -m flows.check` says what is wrong, and names the nearest valid name."""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Shared", _table(schema.File, schema.SHARED)]
    for name in ("engine", *schema.UNREAD):
        parts += [f"## {name}", _table(typing.cast(type[BaseModel], schema.File.model_fields[name].annotation))]
    parts += ["## prepare", _table(import_module("tasks.prepare").Options)]
    for family in compose.names("families"):
        parts += [f"### options of family `{family}`", _of_family(family)]
    parts += ["## base", _table(import_module("tasks.base").BaseOptions)]
    for stage in schema.WITH_BLOCKS:
        parts += [f"## {stage}"]
        parts += ["Options of both blocks:", _table(TrainingOptions)] if stage == "train" else []
        parts += [*_blocks(import_module(f"tasks.blocks.{stage}").BLOCKS)]
    parts += ["## evaluate", _table(import_module("tasks.evaluate").Section)]
    promote = import_module("tasks.promote")
    gates = ", ".join(f"`{name}`" for name in sorted({*promote.GATES, *promote.LABEL_FREE}))
    parts += [
        "## promote",
        _table(promote.Promotion),
        f"`metric` is one of {gates}, `pass_at_K`, `maj_at_K`, `best_of_K` and `accuracy_difficulty_K`.",
    ]
    parts.insert(1, _contents(parts[1:]))
    return "\n\n".join(parts) + "\n"


def _contents(parts: Sequence[str]) -> str:
    """A link to each section."""
    titles = [part.removeprefix("## ") for part in parts if part.startswith("## ")]
    return "Contents: " + ", ".join(f"[{title}](#{title.lower()})" for title in titles) + "."


def _of_family(name: str) -> str:
    options: type[BaseModel] = import_module(f"tasks.families.{name}").Options
    return _table(options, options.model_fields.keys() - {"path"})  # that is `prepare.source`


def _blocks(known: Mapping[str, Block]) -> Iterator[str]:
    for name, block in known.items():
        options = block.options
        yield f"**`{name}`** {_said(block)}"
        shown = [field for field in options.model_fields if field not in TrainingOptions.model_fields]
        if shown or issubclass(options, TrainingOptions):
            yield _table(options, shown)


def _table(options: type[BaseModel], shown: Collection[str] | None = None) -> str:
    """The options in `shown`, or all of them."""
    return "\n".join([HEAD, *_rows(options, options.model_fields if shown is None else shown)])


def _rows(options: type[BaseModel], shown: Collection[str], before: str = "") -> Iterator[str]:
    told = _comments(options)
    for name, field in options.model_fields.items():
        if name not in shown:
            continue
        limits = [text.format(getattr(limit, key)) for limit in field.metadata for key, text in _bound(limit)]
        value = _kind(field.annotation, " and ".join(limits))
        yield f"| `{before}{name}` | {value} | {told.get(name) or COMMON.get(name, '')} |"
        nested, step = _nested(field.annotation)
        if nested is not None and nested is not SftOptions:
            yield from _rows(nested, nested.model_fields, f"{before}{name}.{step}")


def _bound(limit: Any) -> Iterator[tuple[str, str]]:
    if type(limit) in BOUNDS:
        yield BOUNDS[type(limit)]


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The options that a value is made of, if it is a mapping of such, and how they are named in it."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return _nested(inner[1])[0], "NAME."
    if origin in (UnionType, typing.Union):
        return next((found for kind in inner if (found := _nested(kind))[0]), (None, ""))
    return None, ""


def _kind(annotation: Any, limits: str = "") -> str:
    """An annotation in words, with the limits of its numbers."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (UnionType, typing.Union):
        return ", or ".join([*(_kind(kind, limits) for kind in inner if kind is not NoneType), "null"])
    if origin is list:
        element = inner[0]
        return f"list of {_kind(typing.get_args(element)[0] if typing.get_origin(element) is typing.Annotated else element)}"
    if origin is dict or annotation is dict:
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "options of `sft`" if annotation is SftOptions else "mapping"
    return f"{KINDS.get(annotation, 'anything')} {limits}".strip()


def _comments(options: type[BaseModel]) -> dict[str, str]:
    """What the source says beside each option, in the class or in those that it comes from."""
    found: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        if not issubclass(cls, BaseModel) or not cls.__annotations__ or cls.__module__.startswith("pydantic"):
            continue
        source = textwrap.dedent(inspect.getsource(cls))
        lines = source.splitlines()
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0 :].strip()
                found[node.target.id] = comment.removeprefix("#").strip().replace("|", "\\|")
    return found


def _said(block: Block) -> str:
    """The first paragraph of a block's docstring, without its errors."""
    return " ".join((inspect.getdoc(block.run) or "").split("\n\n")[0].split()).partition(" Raises ")[0]


if __name__ == "__main__":
    Path("docs/options.md").write_text(page(), encoding="utf-8")

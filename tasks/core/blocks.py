"""How blocks are found and how their options are checked: a plain dictionary from name to function.

Each kind of block lives in a module of `tasks/blocks/` with a dictionary `BLOCKS`. A block's last
parameter is called `options` and its annotation is a class derived from `Options`, or `Options` for a
block that has none; every option is given in params.yaml (there are no defaults here) and an unknown
one is refused.

A section of params.yaml is a mapping of named entries. The entry's name is the block's name unless it
says `block: NAME`. Entries run in the order of their names, or of their block's phase where a kind has
phases: DVC compares mappings without order, so an order that only the file's lines give would go stale
unseen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict

from tasks.core.asking.demand import Counts, Demand
from tasks.core.errors import BadInput, unknown_name

Block = Callable[..., Any]
Requests = Callable[[Any, Counts], list[Demand]]  # (a block's options, what it works on) -> what it asks, at most


class Options(BaseModel):
    """Options of a block or a stage: every field required, unknown ones refused, strict types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Bound:
    """A block with its checked options, under the name that params.yaml gives it."""

    name: str
    block: Block
    options: Any

    def __call__(self, *arguments: Any) -> Any:
        return self.block(*arguments, self.options)


def options_class(block: Block) -> type[Options]:
    """The class that annotates the block's `options` parameter."""
    return get_type_hints(block)["options"]


def bind(blocks: Mapping[str, Block], section: Mapping[str, Any], where: str) -> list[Bound]:
    """The section's entries, by name. Raises `BadInput` for entries, names and options that cannot be, and
    `UnknownName` with the nearest valid name."""
    for name in section:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise BadInput(f"{where}.{name}: given the {kind} {name!r} as a name; a name is text, put it in quotes")
    bound = []
    for name, entry in sorted(section.items()):
        if not isinstance(entry, Mapping):
            raise BadInput(
                f"{where}.{name}: given {entry!r}; a block takes a mapping of options, `{{}}` if it has none"
            )
        wanted = str(entry.get("block", name))
        if wanted not in blocks:
            raise unknown_name("block", wanted, blocks, f"{where}.{name}")
        options = {key: value for key, value in entry.items() if key != "block"}
        block = blocks[wanted]
        bound.append(Bound(name, block, validate(options_class(block), options, f"{where}.{name}")))
    return bound


def validate(cls: type[Options], given: Any, where: str) -> Any:
    """`given` as `cls`. Raises `BadInput` naming the key, what was given, what is allowed, the nearest name."""
    from pydantic import ValidationError

    try:
        return cls.model_validate(given)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join([where, *(str(part) for part in problem["loc"])])
            if problem["type"] == "extra_forbidden":
                known = _fields_at(cls, problem["loc"][:-1])
                lines.append(str(unknown_name("key", str(problem["loc"][-1]), known, place.rpartition(".")[0])))
            elif problem["type"] == "missing":
                lines.append(f"{place}: is missing; every value stands in params.yaml")
            else:
                lines.append(f"{place}: given {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}")
        raise BadInput("\n".join(lines)) from error


def _fields_at(cls: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the nested options class that `path` leads to."""
    for part in path:
        field = cls.model_fields.get(str(part))
        candidates = [field.annotation] if field else []
        candidates += list(getattr(field.annotation, "__args__", ())) if field else []
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            break
        cls = nested[0]
    return list(cls.model_fields)

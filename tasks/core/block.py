"""What a block is, how blocks are found, and how their options are checked.

A block is one declared value, `Block`: a function, and what is known of it before it runs. Each package of
`tasks/blocks/` has a plain dictionary `BLOCKS` from name to block. One signature serves all kinds:
`run(given, options) -> made`. `given` is a frozen record, made by the stage; `made` is a value. The parameter `options`
is annotated with a class derived from `Options`; every option is given in params.yaml (there are no defaults here) and
an unknown one is refused.

A section of params.yaml is a mapping of named entries. The entry's name is the block's name unless it
says `block: NAME`. A block that asks a model asks the stage's own unless the entry says `model: COLUMN`. Entries run in the order of their names, or of their block's phase where a kind has
phases: DVC compares mappings without order, so an order that only the file's lines give would go stale
unseen.

What a block gives and needs are words, and `flows.params.between` holds them against each other:

    verdicts, scores, votes, comparisons   what a critic says; a block with an option `critic` needs some of it
    sub-questions, critiques, revisions, inventing, free text, unique answers
                                           skills that a family may lack; the last: right answers of a prompt are equal
    likelihoods, vocabulary                what an engine may not tell: scores of given text; of the whole vocabulary
    labels                                 the truth
    siblings                               the other answers to the same prompt
    rows of PART, pairs of PART, rated rows of PART
                                           what filter makes and train takes; "corpus rows of PART": what replays take
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict

from tasks.core.asking.demand import Counts, Demand
from tasks.core.errors import BadInput, unknown_name

Run = Callable[[Any, Any], Any]  # (given, options) -> made
Asks = Callable[[Any, Counts], list[Demand]]  # (options, what it works on) -> what it asks of models, at most
Takes = Callable[[Any, bool, int | None], "Taken | None"]  # (options, first iteration, hardest before) -> of the pool
Facts = frozenset[str] | Callable[[Any], frozenset[str]]  # words, or those that follow from the options
Reads = Callable[[Any], "list[Read]"]  # options -> the critics whose opinions are read

OPINIONS = frozenset({"verdicts", "scores", "votes", "comparisons"})
SKILLS = frozenset({"sub-questions", "critiques", "revisions", "inventing", "free text", "unique answers"})


@dataclass(frozen=True)
class Taken:
    """How many prompts a block takes from the pool in an iteration, of one difficulty or (None) of any."""

    number: int
    difficulty: int | None = None


@dataclass(frozen=True)
class Read:
    """A critic whose opinions a block reads: where its options name it, its name, and what it has to say."""

    option: str
    critic: str
    needs: frozenset[str]


def asks_nothing(options: Any, counts: Counts) -> list[Demand]:
    """Of a block that asks no model."""
    return []


class Options(BaseModel):
    """Options of a block or a stage: every field required, unknown ones refused, strict types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Block:
    """One way to do a part of a stage's work."""

    run: Run
    asks: Asks = asks_nothing
    gives: Facts = frozenset()
    needs: Facts = frozenset()
    phase: str = ""  # where a kind has phases
    takes: Takes | None = None  # of a block that takes prompts from the pool
    reads: Reads | None = None  # of a block that names critics in other ways than by one option `critic`

    @cached_property
    def options(self) -> type[Options]:
        """The class that annotates the function's `options` parameter."""
        return get_type_hints(self.run)["options"]


@dataclass(frozen=True)
class Bound:
    """A block with its checked options, under the name that params.yaml gives it. `kind` is the block's own name; `model`
    the one that it asks, by a column of the iteration's row; None: the stage's own."""

    name: str
    kind: str
    block: Block
    options: Any
    model: str | None = None

    def entry(self) -> dict[str, Any]:
        """What params.yaml says of it."""
        model = {} if self.model is None else {"model": self.model}
        return {"block": self.kind, **model, **self.options.model_dump(mode="json")}

    def __call__(self, given: Any) -> Any:
        return self.block.run(given, self.options)

    def asks(self, counts: Counts) -> list[Demand]:
        """What it asks of models, at most."""
        return self.block.asks(self.options, counts)

    @property
    def reads(self) -> "list[Read]":
        """The critics whose opinions it reads."""
        if self.block.reads is not None:
            return self.block.reads(self.options)
        critic = getattr(self.options, "critic", None)
        return [] if critic is None else [Read("critic", critic, self.needs & OPINIONS)]

    @property
    def gives(self) -> frozenset[str]:
        return _words(self.block.gives, self.options)

    @property
    def needs(self) -> frozenset[str]:
        return _words(self.block.needs, self.options)


def _words(facts: Facts, options: Any) -> frozenset[str]:
    return facts(options) if callable(facts) else facts


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
            error = unknown_name("block", wanted, blocks, f"{where}.{name}")
            own = (
                ""
                if "block" in entry
                else f"; a name of your own takes `block: {next(iter(blocks))}` or another of them"
            )
            raise type(error)(f"{error}{own}")
        block, model = blocks[wanted], entry.get("model")
        if model is not None and not isinstance(model, str):
            raise BadInput(f"{where}.{name}.model: given {model!r}; it is the name of a column of the iteration's row")
        options = {key: value for key, value in entry.items() if key not in ("block", "model")}
        bound.append(Bound(name, wanted, block, validate(block.options, options, f"{where}.{name}"), model))
    return bound


def validate(cls: type[Options], given: Any, where: str) -> Any:
    """`given` as `cls`. Raises `BadInput` naming the key, what was given, what is allowed, the nearest name. `where`: the
    dotted place of `given` in params.yaml, "" for the whole file."""
    from pydantic import ValidationError

    try:
        return cls.model_validate(given)
    except ValidationError as error:
        raise BadInput("\n".join(_told(cls, problem, where) for problem in _first(error.errors()))) from error


def _first(problems: list[Any]) -> list[Any]:
    """The complaints without those that follow from another: a misspelt key is missing too."""
    surplus = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]

    def follows(loc: tuple[Any, ...]) -> bool:
        beside = [str(other[-1]) for other in surplus if other[:-1] == loc[:-1]]
        return bool(difflib.get_close_matches(str(loc[-1]), beside, n=1))

    return [problem for problem in problems if problem["type"] != "missing" or not follows(problem["loc"])]


def _told(cls: type[Options], problem: Any, where: str) -> str:
    """One of pydantic's complaints in words of this project."""
    place = ".".join(filter(None, [where, *(str(part) for part in problem["loc"])]))
    if problem["type"] == "extra_forbidden":
        known = _fields_at(cls, problem["loc"][:-1])
        return str(unknown_name("key", str(problem["loc"][-1]), known, place.rpartition(".")[0] or "params.yaml"))
    if problem["type"] == "missing":
        return f"{place}: is missing" + ("" if where.endswith(".yaml") else "; every value stands in params.yaml")
    said = problem["msg"].removeprefix("Value error, ")
    said = f"{said[0].lower()}{said[1:]}"
    if problem["type"] in ("dict_type", "model_type"):
        said = "a mapping is wanted, `{}` if it is empty"
    return f"{place}: given {problem['input']!r}; {said}"


def _fields_at(cls: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the options class that `path` leads to, through nested classes and mappings of them."""
    found, inside = cls, cls
    for part in path:
        kind: Any = inside
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation if part in kind.model_fields else None
        else:
            kind = get_args(kind)[1]  # of a mapping
        options = [kind, *get_args(kind)]
        inside = next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), kind)
        if get_origin(kind) is dict:
            inside = kind
        if isinstance(inside, type) and issubclass(inside, BaseModel):
            found = inside
    return list(found.model_fields)

"""What a task family is: the one place that knows what prompts look like and what is an answer.

A family makes or loads prompts, renders every template (answer, critique, refine, judge, invent),
reads replies, and where truth can be checked verifies them. `verify` is reached only through
`tasks.core.labels`, so that a label-free loop cannot call it.

All text that a model wrote is data: a template that quotes it must make sure that it cannot close
the template's delimiters; where it cannot be quoted safely the method returns None.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import polars as pl

from tasks.core import digests
from tasks.core.errors import BadInput, unknown_name

Messages = list[dict[str, str]]  # [{"role": ..., "content": ...}, ...]
Guard = Callable[[Messages], str | None]  # why a prompt may not be used, None: it may
Problem = TypeVar("Problem")


def user(content: str) -> Messages:
    """A conversation of one message, the user's."""
    return [{"role": "user", "content": content}]


@dataclass(frozen=True)
class Verdict:
    """What one critique says. `parsed` False: nothing may be read from it, and `why` says why."""

    parsed: bool
    verdict: bool | None = None
    score: float | None = None  # higher is better
    text: str = ""  # the critique to show to a refiner
    why: str | None = None


@dataclass(frozen=True)
class Choice:
    """One judgement between two options, as the worth of the first: 1, 0, or 0.5 where neither is better. None: nothing
    may be read, and `why` says why."""

    worth: float | None
    why: str | None = None


@dataclass(frozen=True)
class Question:
    """A sub-question about one claim of a candidate, asked without showing the claim."""

    messages: Messages
    claim: str  # what the candidate says; the verdict compares the model's own answer with it


@dataclass(frozen=True)
class Parts:
    """What the prompt of a use shows: the prompt that is answered, and what goes with it. Texts of models are data."""

    question: Messages
    answers: tuple[str, ...] = ()  # of models
    critique: str = ""
    gold: str | None = None  # the right answer, through the one door to the truth


@dataclass(frozen=True)
class Invented:
    """A prompt that the model wrote, parsed; `messages` None: not usable, and `why` says why."""

    messages: Messages | None
    why: str | None = None


@dataclass(frozen=True)
class SeedData:
    """What `prepare` gets from a family. Prompt rows are dicts with `messages`, `difficulty`, `answer` (None
    where verification needs none); corpus rows are dicts with `part` (the skill), `prompt`, `completion`. Where they
    come from the user's data, both have `origin`, a dict with `file`, `row`, `id`."""

    corpus: list[dict[str, Any]]
    pool: list[dict[str, Any]]  # unlabelled prompts in the order in which iterations use them
    probe: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    reserved: list[dict[str, Any]] = field(default_factory=list)  # `fingerprint`, `words` of benchmark prompts
    dropped: list[dict[str, Any]] = field(default_factory=list)  # rows of the user's data, as in tables.UNUSED
    counts: dict[str, int] = field(default_factory=dict)  # rows read, and left aside by the user's choice


def labelled_row(part: str, prompt: str, reply: str) -> dict[str, Any]:
    """A row of the corpus: a prompt and its reply, of one message each."""
    return {"part": part, "prompt": user(prompt), "completion": [{"role": "assistant", "content": reply}]}


class Split(Protocol):
    """Options of a family that lists all its problems and splits them by a hash."""

    @property
    def heldout_share(self) -> float: ...
    @property
    def labelled_share(self) -> float: ...
    @property
    def labelled(self) -> int: ...
    @property
    def heldout(self) -> int: ...
    @property
    def probe(self) -> int: ...


def check_shares(options: Split) -> None:
    """Raises `BadInput` where the shares leave no unlabelled problems."""
    if options.heldout_share + options.labelled_share >= 1:
        raise BadInput(
            f"prepare.options: heldout_share {options.heldout_share} and labelled_share {options.labelled_share} "
            "leave no unlabelled prompts; their sum must be below 1"
        )


def split_by_hash(
    problems: Iterable[Problem], text: Callable[[Problem], str], options: Split, what: str
) -> tuple[list[Problem], list[Problem], list[Problem]]:
    """Held-out, labelled and unlabelled problems, each in the order of the hashes of their `text`. `what` they are in
    messages, in the plural. Raises `BadInput` where a share is too small for what is asked of it."""
    hashed = sorted((int(digests.of_value(text(problem)), 16) / 16**32, problem) for problem in problems)
    heldout_end = options.heldout_share
    labelled_end = heldout_end + options.labelled_share
    heldout = [problem for share, problem in hashed if share < heldout_end]
    labelled = [problem for share, problem in hashed if heldout_end <= share < labelled_end]
    pool = [problem for share, problem in hashed if share >= labelled_end]
    if len(heldout) < options.heldout:
        raise BadInput(
            f"prepare.options.heldout: given {options.heldout}, but the held-out share has {len(heldout)} {what}"
        )
    if len(labelled) < options.labelled + options.probe:
        raise BadInput(
            f"prepare.options: labelled {options.labelled} and probe {options.probe} are asked of the labelled "
            f"share, which has {len(labelled)} {what}; lower them or raise labelled_share"
        )
    if not pool:
        raise BadInput(f"prepare.options: none of the {what} are left for the unlabelled pool; lower the shares")
    return heldout, labelled, pool


class Family(Protocol):
    """One task family. Options come validated from `prepare.options` in params.yaml."""

    name: str
    has_truth: bool  # verify works for this data
    unique_answers: bool
    """Whether all right answers of a prompt are equal, so that the most common answer means something."""

    def vocabulary(self) -> list[str] | None:
        """Word-level vocabulary (whitespace-separated words), or None to train a BPE tokenizer on the corpus."""
        ...

    def extract(self, messages: Messages, response: str) -> str | None:
        """Canonical answer for votes, None where the response does not obey the family's grammar. Says nothing about
        truth: it must not compare with what the prompt asks for."""
        ...

    def difficulty(self, messages: Messages) -> int: ...

    def fingerprint(self, messages: Messages) -> str:
        """Equal for prompts that are the same problem; what keeps held-out problems out of training."""
        ...

    def traces(self, messages: Messages) -> list[int]:
        """What `guard` needs of an evaluated problem beside its fingerprint: hashes of its words, or nothing."""
        ...

    def guard(self, reserved: pl.DataFrame) -> Guard:
        """Keeps evaluated problems, and what is too much like them, out of training. `reserved`: FINGERPRINTS."""
        ...

    def ask(self, use: str, parts: Parts) -> Messages | None:
        """The prompt of a use by its name, such as `answer`, `retry` or `hinted`; None where something cannot be quoted
        safely. Which uses a family has, and what each of them shows, its face says (`USES`)."""
        ...

    def shows(self, use: str) -> frozenset[str]:
        """Which of `Parts` a use shows beside the question: `answers`, `critique`, `gold`."""
        ...

    # --- critique, refine, judge, invent: templates and parsers -----------------------------------
    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        """The holistic critique's prompt, None where the response cannot be quoted safely."""
        ...

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        """Reads a holistic critique. Verdict True/False; score = points given (additive judge), in [0, 1]."""
        ...

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        """The factored critic's sub-questions (Chain-of-Verification), None if the response is malformed."""
        ...

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        """The factored critic's verdict from the `questions` and the model's own answers to them. Arithmetic
        and membership come from the answers; no truth is computed here beyond comparing them with the claims."""
        ...

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None: ...

    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        """Asks the model for a new prompt (self-instruct); `examples` are prompts to show, maybe none."""
        ...

    def parse_invented(self, reply: str) -> list[Invented]:
        """The prompts that the reply holds, at least one entry."""
        ...

    # --- truth: only through tasks.core.labels -----------------------------------------------------
    def gold(self, messages: Messages, answer: str | None) -> str | None:
        """The right answer of a prompt, None where there is none, or not one. `answer`: the prompt's own, where it has it."""
        ...

    def verify(self, messages: Messages, answer: str | None, response: str) -> bool: ...


def by_fingerprint(fingerprint: Callable[[Messages], str], reserved: pl.DataFrame) -> Guard:
    """The guard that refuses equal problems and nothing else."""
    forbidden = frozenset(reserved["fingerprint"])
    return lambda messages: "held out" if fingerprint(messages) in forbidden else None


REVISE = frozenset({"answers", "critique"})


class Revising(Protocol):
    """What `asked` needs of a family."""

    @property
    def name(self) -> str: ...
    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None: ...


def asked(
    family: Revising, use: str, parts: Parts, others: Mapping[str, Callable[[Parts], Messages | None]]
) -> Messages | None:
    """The prompt of a use that a function makes, or of the two that every family has: `answer`, the prompt as it is, and
    `revise`, the last answer with a critique of it. Raises `BadInput` for a use that the family has not."""
    if use == "answer":
        return parts.question
    if use == "revise":
        return family.refine_messages(parts.question, parts.answers[-1] if parts.answers else "", parts.critique)
    if use not in others:
        raise unknown_name("use", use, ["answer", "revise", *others], f"family {family.name}")
    return others[use](parts)


class Unskilled:
    """What a family says of skills that it does not have, which it inherits, and overrides where it has one. Of its
    prompts it also says that equal problems alone are too much alike."""

    name: str

    def traces(self, messages: Messages) -> list[int]:
        return []

    def guard(self, reserved: pl.DataFrame) -> Guard:
        return by_fingerprint(self.fingerprint, reserved)  # type: ignore[attr-defined]

    def ask(self, use: str, parts: Parts) -> Messages | None:
        return asked(self, use, parts, {})

    def shows(self, use: str) -> frozenset[str]:
        return REVISE if use == "revise" else frozenset()

    def gold(self, messages: Messages, answer: str | None) -> str | None:
        return answer

    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        return None

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        return Verdict(False, why=f"{self.name} has no critique skill")

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        return None

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        return Verdict(False, why=f"{self.name} has no sub-questions")

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        return None

    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        raise BadInput(
            f"{self.name} has no skill to invent prompts; use `difficulty_curriculum` or `fixed_unlabeled` in synthesize"
        )

    def parse_invented(self, reply: str) -> list[Invented]:
        return [Invented(None, f"{self.name} has no skill to invent prompts")]


@runtime_checkable
class FreeText(Protocol):
    """What a family besides has whose answers are free text: templates and parsers for judges of it. `brief`: the reply
    is to be the verdict alone. Messages are None where a response cannot be shown; `..._replies` are the replies
    between which a judge chooses that is asked in brief, in the words of the template."""

    def question(self, messages: Messages) -> str:
        """The prompt's own text, without the template around it."""
        ...

    def points_messages(self, messages: Messages, response: str) -> Messages | None: ...

    def points_replies(self) -> dict[str, float]:
        """Every reply with its score in [0, 1]."""
        ...

    def pair_messages(self, messages: Messages, first: str, second: str, brief: bool) -> Messages | None: ...

    def parse_pair(self, messages: Messages, first: str, second: str, reply: str) -> Choice: ...

    def pair_replies(self) -> tuple[str, str]:
        """For the first response, and for the second."""
        ...

    def criterion_messages(self, messages: Messages, response: str, criterion: str, brief: bool) -> Messages | None: ...

    def parse_criterion(self, messages: Messages, response: str, reply: str) -> Choice: ...

    def criterion_replies(self) -> tuple[str, str]:
        """Met, and not met."""
        ...

"""What the stages of a run ask of a model, and which data this is about, from params.yaml alone.

`demands` gives every stage's requests as upper bounds: each block says its own (`tasks.core.asking.demand`), under the number of
prompts and candidates that the stages before it can make. `task` is the task's data: the artifacts where `prepare` is
current, else what `prepare` would write, made in memory. `conversations` and `examples` are prompts and training rows
like those of the run, on which lengths and speeds are measured. Needs neither torch nor DVC.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, expm1, log2, sqrt
from pathlib import Path
from random import Random
from typing import Any

from flows.history import artifacts
from flows.params import sections
from tasks import evaluate, families
from tasks.blocks import refine
from tasks.core.asking.demand import Counts, Demand, Kind
from tasks.core.catalog import ARTIFACTS
from tasks.core.family import Family, Messages

Example = tuple[Messages, str]  # prompt and reply
Stage = tuple[str, str | None]  # stage and iteration

SHOWN = 20_000  # answers on which repeated questions are counted, at most
CONVERSATIONS = 2048  # of a kind, at most
ROWS = 256  # of a part, at most
PARTS: dict[Kind, tuple[str, ...]] = {  # whose prompts in the corpus are of this kind
    "answer": ("solve",),
    "question": ("fact", "usage"),
    "critique": ("critique",),
    "refine": ("refine",),
    "invent": ("invent",),
}


@dataclass(frozen=True)
class Task:
    """The task's data as far as the estimate needs it."""

    family: Family
    pool: list[Messages]
    heldout: int
    probe: int
    corpus: dict[str, list[Example]]  # by part

    @property
    def evaluated(self) -> tuple[int, int]:
        """Prompts of the sets that are evaluated."""
        return self.heldout, self.probe

    @property
    def answers(self) -> list[Example]:
        """Well-formed answers to prompts like the pool's; none without a corpus."""
        return self.corpus.get("solve", [])[:SHOWN]


@dataclass(frozen=True)
class Questions:
    """Of the factored critic, about the seed corpus's answers: `most` about one answer; how many were `asked` about all
    of them, and how many of these, and of their first `half`, were distinct."""

    most: int
    asked: int
    distinct: int
    half: int

    def expected(self, number: float) -> float:
        """How many of `number` questions differ."""
        return different(self.asked, self.distinct, self.half, number)


def demands(params: Mapping[str, Any], evaluated: Iterable[int], questions: int) -> dict[Stage, list[Demand]]:
    """Requests of every stage that asks a model, at most, one demand for each time that it asks. `evaluated`: held-out
    and probe prompts; `questions`: as in `tasks.core.asking.demand.Counts`."""
    found: dict[Stage, list[Demand]] = {}
    sets = list(evaluated)
    for iteration in sections.stage_keys(params, "evaluate"):
        options = sections.options(params, "evaluate", iteration)
        found["evaluate", iteration] = [demand for n in sets for demand in evaluate.asks(options, n, questions)]
    for iteration in sections.iterations(params):
        chosen, sampled, judges, refiners = (
            sections.options(params, stage, iteration) for stage in ("synthesize", "sample", "critique", "refine")
        )
        number = sum(bound.options.n for bound in chosen)
        counts = Counts(number, 0, questions)
        found["synthesize", iteration] = [demand for block in chosen for demand in block.asks(counts)]
        answers = [demand for block in sampled for demand in block.asks(counts)]
        found["sample", iteration] = answers
        counts = Counts(number, sum(demand.requests for demand in answers), questions)
        found["critique", iteration] = [demand for critic in judges for demand in critic.asks(counts)]
        found["refine", iteration] = [demand for block in refiners for demand in refine.asks(block, judges, counts)]
    return found


def count_questions(family: Family, answers: Iterable[Example]) -> Questions:
    """The questions that answers are split into."""
    several = [family.questions(prompt, reply) or [] for prompt, reply in answers]
    put = [str(question.messages) for asked in several for question in asked]
    return Questions(max(map(len, several), default=0), len(put), len(set(put)), len(set(put[: len(put) // 2])))


def task(root: Path, params: Mapping[str, Any], current: bool) -> Task:
    """The task's data: from the artifacts where `prepare` is `current`, else made in memory. Raises `BadInput`."""

    if current and (root / ARTIFACTS["family"].path).is_file():
        found = artifacts.Artifacts(root)
        pool, held, probed = (
            found.table(name, None, columns=["messages"])["messages"].to_list() for name in ("pool", "heldout", "probe")
        )
        corpus = found.table("corpus", None, columns=["part", "prompt", "completion"]).rows()
        return Task(families.load(root), pool, len(held), len(probed), _by_part(corpus))
    given = params["prepare"]
    family = families.create(given["family"], families.with_source(given["family"], given["options"], given["source"]))
    data = families.build(family, Random(sections.seed(params, "prepare", None)), root)
    pool = [row["messages"] for row in data.pool]
    rows = [(row["part"], row["prompt"], row["completion"]) for row in data.corpus]
    return Task(family, pool, len(data.heldout), len(data.probe), _by_part(rows))


def _by_part(rows: Iterable[tuple[str, Messages, Messages]]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for part, prompt, completion in rows:
        found.setdefault(part, []).append((prompt, completion[-1]["content"]))
    return found


def conversations(given: Task, asked: Iterable[Demand]) -> dict[Kind, list[Messages]]:
    """Prompts of every kind that is asked: the pool's, the corpus's, and where it has none, the family's templates around
    a pool prompt and a reply of full length."""
    found: dict[Kind, list[Messages]] = {}
    for demand in asked:
        if demand.kind in found:
            continue
        parts = [part for part in PARTS[demand.kind] if part in given.corpus]
        if demand.kind == "answer":
            found["answer"] = given.pool[:CONVERSATIONS]
        elif parts:
            each = CONVERSATIONS // len(parts)
            found[demand.kind] = [prompt for part in parts for prompt, _ in given.corpus[part][:each]]
        else:
            longest = max(d.longest for d in asked)
            pairs = given.answers[:ROWS] or [(prompt, _filler(given, longest)) for prompt in given.pool[:ROWS]]
            made = [_template(given.family, demand.kind, *pair) for pair in pairs]
            found[demand.kind] = [messages for messages in made if messages]
    return {kind: several for kind, several in found.items() if several}


def _template(family: Family, kind: Kind, prompt: Messages, reply: str) -> Messages | None:
    if kind == "critique":
        return family.critique_messages(prompt, reply)
    return family.refine_messages(prompt, reply, reply) if kind == "refine" else family.invent_messages([prompt] * 3)


def _filler(given: Task, tokens: int) -> str:
    """Text of about so many tokens, from the pool's prompts; a word is 4/3 tokens."""
    words = " ".join(messages[-1]["content"] for messages in given.pool[:ROWS]).split()
    return " ".join((words * ceil(tokens / max(1, len(words))))[: ceil(0.75 * tokens)])


def examples(given: Task, wanted: Iterable[str], longest: int) -> dict[str, list[Example]]:
    """Rows to train on of every part; what the model will make itself is like the corpus's solutions."""
    own = given.answers[:ROWS] or [(prompt, _filler(given, longest)) for prompt in given.pool[:ROWS]]
    return {part: given.corpus.get(part, own)[:ROWS] for part in wanted}


def different(asked: int, distinct: int, half: int, number: float) -> float:
    """How many of `number` things differ, where of `asked` of them `distinct` did and of their first half `half`.

    The lower of two curves through these: a power law, and as many kinds, equally frequent, as make it likeliest. Within
    the sample the first is nearer; beyond it there are no new kinds without end."""
    if asked < 2 or distinct >= asked:
        return number
    if distinct <= half:
        return min(number, distinct)
    power = min(1.0, log2(distinct / half))
    kinds = _kinds(asked, distinct)
    return min(number, distinct * (number / asked) ** power, kinds * -expm1(-number / kinds))


def _kinds(asked: int, distinct: int) -> float:
    """Kinds of which `asked` draws show `distinct`, in the mean."""
    low, high = float(distinct), 1e3 * asked * asked
    while high / low > 1.0001:
        middle = sqrt(low * high)
        if -middle * expm1(-asked / middle) < distinct:
            low = middle
        else:
            high = middle
    return high

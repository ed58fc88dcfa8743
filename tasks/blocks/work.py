"""The one state that everything is given which asks a model about prompts: samplers, critics, refiners, evaluation.

A maker is a function `(work, options) -> Made`, a critic `(work, options) -> CRITIQUES`. Both see all that was made
before them and change none of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import polars as pl

from tasks.core import tables
from tasks.core.asking.model import Model
from tasks.core.block import Bound
from tasks.core.errors import BadInput
from tasks.core.family import Family, Messages
from tasks.core.labels import Truth
from tasks.core.models.pointer import Pointer
from tasks.core.seeds import derive

POLICY, JUDGE = "previous", "judge"  # columns of the row: who samples and refines, and who criticises


@dataclass(frozen=True)
class Cast(Mapping[str, Model]):
    """The models of a stage by the columns of its row; each is opened when a block first takes it."""

    open: Callable[[Pointer], Model]
    pointers: Mapping[str, Pointer]

    def __getitem__(self, column: str) -> Model:
        return self.open(self.pointers[column])

    def __iter__(self) -> Iterator[str]:
        return iter(self.pointers)

    def __len__(self) -> int:
        return len(self.pointers)


@dataclass(frozen=True)
class Answer:
    """One candidate with the prompt that it answers."""

    candidate_id: str
    prompt_id: str
    draw: int  # its number among the samples of its prompt
    question: Messages  # the prompt's own messages
    response: str
    answer: str | None  # canonical, null where none could be extracted
    gold: str | None  # the prompt's answer, null in label-free runs


@dataclass(frozen=True)
class Made:
    """What a maker made: CANDIDATES, and CRITIQUES of them where it judged them itself."""

    candidates: pl.DataFrame = tables.nothing(tables.CANDIDATES)
    opinions: pl.DataFrame = tables.nothing(tables.CRITIQUES)


@dataclass(frozen=True)
class Work:
    """What a maker or critic is given."""

    prompts: pl.DataFrame  # PROMPTS
    family: Family
    models: Mapping[str, Model]  # by the columns of the row; loaded when first asked
    truth: Truth
    seed: int  # of this block
    name: str  # the block's name in params.yaml, and what progress bars show
    candidates: pl.DataFrame = tables.nothing(tables.CANDIDATES)  # made so far
    opinions: pl.DataFrame = tables.nothing(tables.CRITIQUES)  # of them, so far
    critics: Sequence[Bound] = ()  # who judges what a maker makes
    voters: frozenset[str] | None = None  # ids of the candidates that count in a vote; None: all
    asked: str = POLICY  # the column of the model that the block asks

    def of(self, bound: Bound) -> "Work":
        """The same, as the block `bound` is given it: under its name, with a seed and a model of its own."""
        return replace(self, seed=derive(self.seed, bound.name), name=bound.name, asked=bound.model or self.asked)

    @property
    def model(self) -> Model:
        """The model that the block asks."""
        return self.models[self.asked]

    @cached_property
    def answers(self) -> list[Answer]:
        """The candidates with their prompts, in the order of the prompts, then by source, turn and draw."""
        asked = self.prompts.select("prompt_id", question="messages", gold="answer").with_row_index("place")
        rows = self.candidates.join(asked, on="prompt_id", how="left").sort(
            "place", "source", "turn", "draw", "candidate_id"
        )
        columns = ("candidate_id", "prompt_id", "draw", "question", "response", "answer", "gold")
        return [Answer(*row) for row in rows.select(columns).iter_rows()]


def in_order(makers: Sequence[Bound], where: str) -> list[Bound]:
    """Makers after those whose answers they go on from (`of`), else in the order given. `where`: their section, for
    messages. Raises `BadInput` where they go on from one another in a circle."""
    waiting, placed = {maker.name: maker for maker in makers}, list[Bound]()
    while waiting:
        ready = (maker for maker in waiting.values() if not waiting.keys() & set(getattr(maker.options, "of", ())))
        first = next(ready, None)
        if first is None:
            raise BadInput(f"{where}: {', '.join(waiting)} go on from one another in a circle; let one of them begin")
        placed.append(waiting.pop(first.name))
    return placed


def combined(several: Sequence[Made]) -> Made:
    """All that several makers made."""
    found = [Made(), *several]
    return Made(pl.concat([made.candidates for made in found]), pl.concat([made.opinions for made in found]))

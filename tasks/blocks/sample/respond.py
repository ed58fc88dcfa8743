"""Replies that go on from answers: a second attempt, several answers put into one, a debate.

The family writes what the model reads by the name of a use (`tasks.core.family.Family.ask`); for `text` a use is a file.
A few methods by their options:

    template retry                                   intrinsic self-correction, SCoRe's second turn
    template aggregate, together k                   generative self-aggregation (Li et al. 2025)
    template debate, together k, each, rounds r      multi-agent debate (Liang et al. 2023)
    template hinted, which: {critic, verdict: false} an explanation of the right answer where the model failed (labels)
    template revise, which: {critic, verdict: false} critique and revision (Self-Refine, Madaan et al. 2023); in `refine`
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import polars as pl
from pydantic import Field

from tasks.blocks.sample.candidates import Asked, candidates
from tasks.blocks.work import Made, Work, combined
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Sampling
from tasks.core.family import Messages, Parts
from tasks.core.seeds import derive


class Respond(Options):
    of: list[str] = Field(min_length=1)  # names of the blocks whose answers are gone on from
    template: str = Field(min_length=1)  # the family's use that asks
    together: int = Field(ge=1)  # answers of a prompt that are shown at once
    each: bool  # each of those shown together comes first once; false: they are shown once
    per_prompt: int | None = Field(ge=1)  # conversations about a prompt and round, at most; null: all
    rounds: int = Field(ge=1)  # replies are gone on from again, so often in all
    n: int = Field(ge=1)  # replies to each conversation
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


class Said(NamedTuple):
    """An answer that is gone on from."""

    prompt: str
    question: Messages
    candidate: str
    turn: int
    response: str
    gold: str | None  # the prompt's own answer, null in label-free runs


def respond(work: Work, options: Respond) -> Made:
    """The replies of all rounds, each a candidate whose parent is the first of the answers that it was shown."""
    going, found = work.candidates.filter(pl.col("source").is_in(options.of)), []
    for number in range(1, options.rounds + 1):
        going = replies(work, options, going, {}, number)
        found.append(Made(going))
    return combined(found)


def replies(
    work: Work, options: Respond, going: pl.DataFrame, critiques: Mapping[str, str], number: int
) -> pl.DataFrame:
    """CANDIDATES of one round that go on from those of `going`. `critiques`: what a critic says of each, by its id."""
    asked, latest, hinted = [], 0, "gold" in work.family.shows(options.template)
    for _, group in groupby(_said(work, going, options), key=itemgetter(0)):
        for shown in list(_together(list(group), options))[: options.per_prompt]:
            texts = tuple(said.response for said in shown)
            critique, question = critiques.get(shown[0].candidate, ""), shown[0].question
            gold = work.truth.gold(question, shown[0].gold) if hinted else None
            messages = work.family.ask(options.template, Parts(question, texts, critique, gold))
            if messages is not None:
                asked.append(Asked(shown[0].prompt, shown[0].question, messages, shown[0].candidate))
                latest = max(latest, shown[0].turn)
    if not asked:
        return work.candidates.clear()
    seed = derive(work.seed, number)
    sampling = Sampling(options.n, options.temperature, options.top_p, options.max_new_tokens, seed)
    told = work.model.generate([about.messages for about in asked], sampling, work.name)
    return candidates(work.family, work.model.digest, work.name, latest + 1, asked, told)


def _said(work: Work, going: pl.DataFrame, options: Respond) -> Iterator[Said]:
    """The answers by prompt; of equal ones that are shown alone the first."""
    rows = going.sort("prompt_id", "source", "turn", "draw", "candidate_id")
    if options.together == 1:
        rows = rows.unique(["prompt_id", "response"], keep="first", maintain_order=True)
    questions = work.prompts.select("prompt_id", question="messages", gold="answer")
    rows = rows.join(questions, on="prompt_id", how="left", maintain_order="left")
    columns = ("prompt_id", "question", "candidate_id", "turn", "response", "gold")
    yield from (Said(*row) for row in rows.select(columns).iter_rows())


def _together(several: Sequence[Said], options: Respond) -> Iterator[list[Said]]:
    """The answers of a prompt, as many at once as are shown together; what is left over is not shown."""
    size = options.together
    for start in range(0, len(several) - size + 1, size):
        group = list(several[start : start + size])
        for place in range(size if options.each else 1):
            yield [group[place], *group[:place], *group[place + 1 :]]


def asks(options: Respond, counts: Counts) -> list[Demand]:
    """What it asks, at most."""
    conversations = counts.candidates if options.each else counts.candidates // options.together
    if options.per_prompt is not None:
        conversations = min(conversations, options.per_prompt * counts.prompts)
    return [Demand("refine", conversations * options.n * options.rounds, options.max_new_tokens, options.n)]


BLOCKS = {"respond": Block(respond, asks)}

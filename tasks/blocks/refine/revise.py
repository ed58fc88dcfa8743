"""Revision: what a critic refused is asked for anew, with the critique before the model's eyes.

Only what the critic refuses is refined: refining what was right breaks a good part of it.
"""

from dataclasses import replace

import polars as pl
from pydantic import Field

from tasks.blocks.critique.judging import judged
from tasks.blocks.critique.opinions import aggregate
from tasks.blocks.sample.candidates import Asked, candidates
from tasks.blocks.work import Made, Work, combined
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Sampling
from tasks.core.seeds import derive


class CritiqueRevise(Options):
    critic: str  # the critic whose refusals are refined and whose text is shown
    per_prompt: int = Field(ge=1)  # refused candidates refined per prompt and round, at most
    rounds: int = Field(ge=1)  # what is refused again is refined again, this often in all
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


def critique_revise(work: Work, options: CritiqueRevise) -> Made:
    """The model revises refused candidates with the critique before its eyes (SELF, Lu et al. 2023; Self-Refine).

    Gives the refinements of all rounds and their critiques, by those of `work.critics` that judge a candidate without
    looking at others."""
    alone = [critic for critic in work.critics if "siblings" not in critic.needs]
    model, found = work.model, []
    for turn in range(1, options.rounds + 1):
        asked = _refused(work, options)
        if not asked:
            break
        sampling = Sampling(1, options.temperature, options.top_p, options.max_new_tokens, derive(work.seed, turn))
        replies = model.generate([about.messages for about in asked], sampling, work.name)
        made = candidates(work.family, model.digest, work.name, turn, asked, replies)
        work = replace(work, candidates=made)
        work = replace(work, opinions=judged(work, alone))
        found.append(Made(work.candidates, work.opinions))
    return combined(found)


def _refused(work: Work, options: CritiqueRevise) -> list[Asked]:
    """What the model is asked about the candidates that the critic refused, at most so many of a prompt."""
    questions = work.prompts.select("prompt_id", question="messages")
    opinions = aggregate(work.opinions, options.critic).filter(~pl.col("verdict").fill_null(True))
    chosen = (
        work.candidates.join(opinions.select("candidate_id", "text"), on="candidate_id", how="inner")
        .sort("prompt_id", "draw", "candidate_id")
        .unique(["prompt_id", "response"], keep="first", maintain_order=True)
        .group_by("prompt_id", maintain_order=True)
        .head(options.per_prompt)
        .join(questions, on="prompt_id", how="left", maintain_order="left")
    )
    columns = ("prompt_id", "question", "response", "text", "candidate_id")
    asked = []
    for prompt, question, response, text, candidate in chosen.select(columns).iter_rows():
        messages = work.family.refine_messages(question, response, text or "")
        if messages is not None:
            asked.append(Asked(prompt, question, messages, candidate))
    return asked


def _asks(options: CritiqueRevise, counts: Counts) -> list[Demand]:
    number = min(options.per_prompt * counts.prompts, counts.candidates) * options.rounds
    return [Demand("refine", number, options.max_new_tokens)]


BLOCKS = {"critique_revise": Block(critique_revise, _asks, needs=frozenset({"verdicts", "revisions"}))}

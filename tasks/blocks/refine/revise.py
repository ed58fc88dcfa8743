"""Revision: what the critic refused is asked for anew, with the critique before the model's eyes."""

from collections.abc import Sequence

import polars as pl
from pydantic import Field

from tasks.blocks import critics as judging
from tasks.blocks.sample.candidates import candidates as candidates_from
from tasks.core import tables
from tasks.core.asking.demand import Counts, Demand
from tasks.core.asking.local import Asker
from tasks.core.blocks import Bound, Options
from tasks.core.engines.base import Sampling
from tasks.core.family import Family
from tasks.core.seeds import derive


class CritiqueRevise(Options):
    critic: str  # the critic whose refusals are refined and whose text is shown
    per_prompt: int = Field(ge=1)  # refused candidates refined per prompt and round, at most
    rounds: int = Field(ge=1)  # what is refused again is refined again, this often in all
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


def critique_revise(
    candidates: pl.DataFrame,
    critiques: pl.DataFrame,
    prompts: pl.DataFrame,
    family: Family,
    model: Asker,
    critics: Sequence[Bound],
    judge: Asker,
    seed: int,
    name: str,
    labels_for: str,
    labels: bool,
    options: CritiqueRevise,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The model revises refused candidates with the critique before its eyes (SELF, Lu et al. 2023; Self-Refine).

    Returns the refinements of all rounds (CANDIDATES) and their critiques (CRITIQUES)."""
    questions = prompts.select("prompt_id", question="messages")
    alone = [critic for critic in critics if critic.block not in judging.AMONG_SAMPLES]
    found, judged = [tables.empty(tables.CANDIDATES)], [tables.empty(tables.CRITIQUES)]
    for turn in range(1, options.rounds + 1):
        opinions = judging.aggregate(critiques, options.critic).filter(~pl.col("verdict").fill_null(True))
        chosen = (
            candidates.join(opinions.select("candidate_id", "text"), on="candidate_id", how="inner")
            .sort("prompt_id", "draw", "candidate_id")
            .unique(["prompt_id", "response"], keep="first", maintain_order=True)
            .group_by("prompt_id", maintain_order=True)
            .head(options.per_prompt)
            .join(questions, on="prompt_id", how="left", maintain_order="left")
        )
        asked = [
            family.refine_messages(question, response, text or "")
            for question, response, text in chosen.select("question", "response", "text").iter_rows()
        ]
        usable = [index for index, messages in enumerate(asked) if messages is not None]
        if not usable:
            break
        rows = chosen[usable]
        sampling = Sampling(1, options.temperature, options.top_p, options.max_new_tokens, derive(seed, turn))
        templates = [asked[index] or [] for index in usable]
        candidates = candidates_from(
            family,
            model.digest,
            name,
            turn,
            rows["prompt_id"].to_list(),
            rows["question"].to_list(),
            templates,
            model.generate(templates, sampling, name),
            rows["candidate_id"].to_list(),
        )
        critiques = judging.critique(alone, candidates, prompts, family, judge, seed, labels_for, labels)
        found.append(candidates)
        judged.append(critiques)
    return pl.concat(found), pl.concat(judged)


def requested(options: CritiqueRevise, counts: Counts) -> list[Demand]:
    number = min(options.per_prompt * counts.prompts, counts.candidates) * options.rounds
    return [Demand("refine", number, options.max_new_tokens)]

"""Ways to answer a prompt with several samples: which of them, or of their answers, is given.

A way names a critic of `evaluate.critics` and how its scores decide. Each adds a figure `accuracy_NAME` with its interval
and `tokens_NAME`, the new tokens a prompt that the samples and the critic took.

    pick: best                              best-of-n (with self-certainty: Kang et al. 2025)
    pick: most                              the majority vote, self-consistency (Wang et al. 2022)
    pick: most, critic, rank_power: p       Borda voting (Kang et al. 2025): the r-th best of n samples has
                                            (n - r + 1)^p votes for its answer; p = 0 is the majority vote
    pick: most, critic, rank_power: null    votes weighted by the scores themselves
"""

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Literal, NamedTuple

import polars as pl
from pydantic import Field, model_validator

from tasks.blocks.critique.opinions import aggregate
from tasks.blocks.evaluate.metrics import Number, accuracy, mean, of_kind, wilson
from tasks.core.block import Options


class Way(Options):
    pick: Literal["best", "most"]  # the sample with the highest score, or the answer with the most votes
    critic: str | None  # of evaluate.critics, with scores; null: each sample has one vote
    rank_power: float | None = Field(ge=0)  # a vote weighs its rank to this power; null: its score

    @model_validator(mode="after")
    def _fits(self) -> "Way":
        if self.pick == "best" and self.critic is None:
            raise ValueError("pick: best goes by a critic; name it in `critic`")
        if self.rank_power is not None and (self.pick == "best" or self.critic is None):
            raise ValueError("rank_power is for votes that a critic ranks: pick: most, and a critic")
        return self


class Sample(NamedTuple):
    """One sample of a prompt. `score`: None where the critic gives none."""

    place: int  # its row
    answer: str | None
    score: float | None


def chosen(drawn: pl.DataFrame, critiques: pl.DataFrame, ways: Mapping[str, Way]) -> pl.DataFrame:
    """The sample that each way gives for each prompt, as rows of `drawn` with `kind`, the way's name. `drawn`: rows of one
    prompt set with `prompt_id`, `draw`, `answer` and `judged_id`, the candidate that critiques are of."""
    found = [drawn.clear()]
    for name, way in ways.items():
        told = drawn.select("judged_id", "prompt_id", "answer").with_row_index("place")
        if way.critic is None:
            told = told.with_columns(score=pl.lit(None, dtype=pl.Float64))
        else:
            opinions = aggregate(critiques, way.critic).select(judged_id="candidate_id", score="score")
            told = told.join(opinions, on="judged_id", how="left", maintain_order="left")
        groups = told.group_by("prompt_id", maintain_order=True).agg("place", "answer", "score")
        places = [pick(list(map(Sample, *row)), way) for row in groups.select("place", "answer", "score").iter_rows()]
        found.append(drawn[places].with_columns(kind=pl.lit(name)))
    return pl.concat(found)


def pick(samples: Sequence[Sample], way: Way) -> int:
    """The place of the sample that is given, of those of one prompt in the order of their draws. Of equals the first; a
    missing score is below every other; what has no answer has no vote, and is given only where nothing has one."""
    ranked = sorted(samples, key=lambda sample: (sample.score is None, -(sample.score or 0.0)))
    if way.pick == "best":
        return ranked[0].place
    weights = {sample.place: 1.0 for sample in samples}
    if way.critic is not None and way.rank_power is None:
        weights = {sample.place: sample.score or 0.0 for sample in samples}
    elif way.rank_power is not None:
        weights = {s.place: float((len(ranked) - rank) ** way.rank_power) for rank, s in enumerate(ranked)}
    votes: dict[str, list[float]] = {}
    for sample in samples:
        if sample.answer is not None:
            votes.setdefault(sample.answer, []).append(weights[sample.place])
    if not votes:
        return samples[0].place
    most = max(votes, key=lambda answer: fsum(votes[answer]))
    return next(sample.place for sample in samples if sample.answer == most)


def figures(predictions: pl.DataFrame, tokens: Mapping[str, Number]) -> dict[str, Number]:
    """`accuracy_NAME` with its interval, and `tokens_NAME`, for every way in `tokens`."""
    found: dict[str, Number] = {}
    for name, spent in tokens.items():
        given = of_kind(predictions, name)
        right = accuracy(given)
        low, high = wilson(int(given["correct"].sum()), given.height) if right is not None else (None, None)
        found |= {f"accuracy_{name}": right, f"accuracy_{name}_low": low, f"accuracy_{name}_high": high}
        found |= {f"tokens_{name}": spent}
    return found


def tokens(drawn: pl.DataFrame, critiques: pl.DataFrame, way: Way, prompts: int) -> Number:
    """New tokens a prompt: of all its samples, and of the way's critic."""
    judged = critiques.filter(pl.col("critic") == way.critic) if way.critic else critiques.clear()
    spent = int(drawn["tokens"].sum()) + int(judged["tokens"].sum())
    return mean([spent / prompts]) if prompts else None

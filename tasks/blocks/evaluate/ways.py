"""Ways to answer a prompt with several attempts: which of them, or of their answers, is given.

A way names the attempts that it chooses among (`greedy`, `sample`, or makers of `evaluate.makers`), a critic of
`evaluate.critics`, and how its scores decide. Each adds a figure `accuracy_NAME` with its interval, no answer counting as a
wrong one, and `tokens_NAME`, the new tokens a prompt that the attempts and the critic took.

    pick: first, of: [again, greedy]        what a maker made of it, and the greedy answer where it made nothing
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
    of: list[str] = Field(min_length=1)  # greedy, sample, or names of evaluate.makers
    pick: Literal[
        "first", "best", "most"
    ]  # of the first that made any, the highest score, or the answer with most votes
    critic: str | None  # of evaluate.critics, with scores; null: each attempt has one vote
    rank_power: float | None = Field(ge=0)  # a vote weighs its rank to this power; null: its score

    @model_validator(mode="after")
    def _fits(self) -> "Way":
        if self.pick == "best" and self.critic is None:
            raise ValueError("pick: best goes by a critic; name it in `critic`")
        if self.pick == "first" and self.critic is not None:
            raise ValueError("pick: first goes by no critic; give null")
        if self.rank_power is not None and (self.pick != "most" or self.critic is None):
            raise ValueError("rank_power is for votes that a critic ranks: pick: most, and a critic")
        return self


class Sample(NamedTuple):
    """One sample of a prompt. `score`: None where the critic gives none."""

    place: int  # its row
    answer: str | None
    score: float | None


def chosen(attempts: pl.DataFrame, critiques: pl.DataFrame, ways: Mapping[str, Way]) -> pl.DataFrame:
    """The attempt that each way gives for each prompt, as rows of `attempts` with the way's name as `kind`. `attempts`: rows
    of one prompt set with `kind`, who made it, `prompt_id`, `draw`, `answer` and `judged_id`, the candidate that critiques
    are of."""
    found = [attempts.clear()]
    for name, way in ways.items():
        order = {source: place for place, source in enumerate(way.of)}
        own = attempts.filter(pl.col("kind").is_in(way.of))
        rank = pl.col("kind").replace_strict(order, default=len(order), return_dtype=pl.Int32)
        drawn = own.with_columns(_rank=rank).sort("_rank", "draw", maintain_order=True).drop("_rank")
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
    if way.pick == "first":
        return samples[0].place
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


def figures(predictions: pl.DataFrame, tokens: Mapping[str, Number], prompts: int) -> dict[str, Number]:
    """`accuracy_NAME` with its interval, and `tokens_NAME`, for every way in `tokens`."""
    found: dict[str, Number] = {}
    for name, spent in tokens.items():
        given = of_kind(predictions, name)
        count = int(given["correct"].sum())
        right = None if accuracy(given) is None or not prompts else count / prompts
        low, high = wilson(count, prompts) if right is not None else (None, None)
        found |= {f"accuracy_{name}": right, f"accuracy_{name}_low": low, f"accuracy_{name}_high": high}
        found |= {f"tokens_{name}": spent}
    return found


def tokens(
    way: Way, spent: Mapping[str, int], parents: Mapping[str, Sequence[str]], critiques: pl.DataFrame, prompts: int
) -> Number:
    """New tokens a prompt: of all attempts that it takes, and of the way's critic. `spent`: tokens of each source;
    `parents`: the sources that one goes on from."""
    needed, todo = set[str](), list(way.of)
    while todo:
        source = todo.pop()
        if source not in needed:
            needed.add(source)
            todo += parents.get(source, ())
    judged = critiques.filter(pl.col("critic") == way.critic) if way.critic else critiques.clear()
    total = sum(spent.get(source, 0) for source in needed) + int(judged["tokens"].sum())
    return mean([total / prompts]) if prompts else None

"""Exploration against exploitation: which source and threshold give data that are both enough and right."""

from collections.abc import Sequence
from itertools import groupby
from math import fsum
from operator import itemgetter
from typing import NamedTuple

import polars as pl
from pydantic import Field

from tasks.blocks.filter.selection import Selection
from tasks.core.block import Block, Options, Read


class Balance(Options):
    right: str  # the critic whose verdict says what is right
    critic: str  # the critic whose score is held against the threshold
    wanted: int = Field(ge=1)  # right answers that a prompt should have
    thresholds: list[float] = Field(min_length=1)  # to choose from; a score has to be above
    at_most: list[int] = Field(min_length=1)  # kept answers of a prompt to choose from, least first
    rows: int = Field(ge=1)  # answers that should be kept altogether


class Judged(NamedTuple):
    candidate: str
    prompt: str
    source: str
    score: float
    right: bool


class Choice(NamedTuple):
    """What is kept of one source at one threshold. `worth`: the balance score, its mean over all prompts."""

    worth: float
    source: str
    threshold: float
    cap: int
    kept: frozenset[str]


def balance(state: Selection, options: Balance) -> Selection:
    """Keeps the answers of one block of `sample` whose score is above one threshold: those with the highest balance score
    (B-STaR, Zeng et al. 2024). Of a prompt with r right ones among k that are kept it is r/k * min(r/wanted, 1), 0 where
    none is kept. At most c are kept of a prompt, best first; c is the smallest of `at_most` that gives `rows` answers.

    Blocks of `sample` that differ in their temperature make the choice of the temperature."""
    scores = state.opinions(options.critic, "balance").select("candidate_id", "score")
    verdicts = state.opinions(options.right, "balance").select("candidate_id", right="verdict")
    told = state.kept.join(scores, on="candidate_id", how="left").join(verdicts, on="candidate_id", how="left")
    columns = ("candidate_id", "prompt_id", "source", "score", "right")
    known = told.filter(pl.col("score").is_not_null() & pl.col("right").is_not_null()).sort("source", "candidate_id")
    rows = [Judged(*row) for row in known.select(columns).iter_rows()]
    choices = [
        choice(list(several), threshold, options, state.prompts.height)
        for _, source in groupby(rows, key=itemgetter(2))
        for several in [list(source)]
        for threshold in options.thresholds
    ]
    best = max(choices, key=itemgetter(0), default=None)
    kept = best.kept if best else frozenset()
    source = best.source if best else ""
    reason = (
        pl.when(pl.col("score").is_null() | pl.col("right").is_null())
        .then(pl.lit("no judgement"))
        .when(pl.col("source") != source)
        .then(pl.lit(f"{source} balances better"))
        .when(~pl.col("candidate_id").is_in(list(kept)))
        .then(pl.lit(f"score not above {best.threshold:g}, or over the cap of {best.cap}" if best else "no judgement"))
    )
    return state.narrow("balance", told.select("candidate_id", reason=reason))


def choice(rows: Sequence[Judged], threshold: float, options: Balance, prompts: int) -> Choice:
    """What is kept of one source's answers at a threshold, and the balance score of it."""
    above: dict[str, list[Judged]] = {}
    for row in sorted(rows, key=lambda row: (-row.score, row.candidate)):
        if row.score > threshold:
            above.setdefault(row.prompt, []).append(row)
    sizes = {cap: sum(min(cap, len(several)) for several in above.values()) for cap in sorted(options.at_most)}
    cap = next((cap for cap, size in sizes.items() if size >= options.rows), max(sizes))
    kept = [several[:cap] for several in above.values()]
    worths = [worth(sum(row.right for row in several), len(several), options.wanted) for several in kept]
    names = frozenset(row.candidate for several in kept for row in several)
    return Choice(fsum(worths) / max(1, prompts), rows[0].source, threshold, cap, names)


def worth(right: int, kept: int, wanted: int) -> float:
    """The balance score of a prompt."""
    return right / kept * min(right / wanted, 1.0) if kept else 0.0


def _reads(options: Balance) -> list[Read]:
    return [
        Read("right", options.right, frozenset({"verdicts"})),
        Read("critic", options.critic, frozenset({"scores"})),
    ]


BLOCKS = {"balance": Block(balance, phase="select", reads=_reads)}

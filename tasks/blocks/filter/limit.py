"""Duplicates, the best few, and caps."""

from typing import Literal

import polars as pl
from pydantic import Field

from tasks.blocks.filter.selection import Selection
from tasks.core.block import Block, Options


def deduplicate(state: Selection, options: Options) -> Selection:
    """Keeps one of several equal responses to a prompt: the earliest turn, then the lowest id."""
    ordered = state.kept.sort("prompt_id", "turn", "candidate_id")
    again = pl.int_range(pl.len()).over("prompt_id", pl.col("response").str.strip_chars()) > 0
    reasons = ordered.select("candidate_id", reason=pl.when(again).then(pl.lit("duplicate")))
    return state.narrow("deduplicate", reasons)


class Cap(Options):
    per_prompt: int = Field(ge=1)  # candidates, at most
    first: Literal["id", "shortest", "longest"]  # which stay; id: as good as at random


def cap(state: Selection, options: Cap) -> Selection:
    """Keeps at most `per_prompt` candidates of a prompt."""
    length = {"id": pl.lit(0), "shortest": pl.col("tokens"), "longest": -pl.col("tokens")}[options.first]
    ordered = state.kept.with_columns(_length=length).sort("prompt_id", "_length", "candidate_id").drop("_length")
    over = pl.int_range(pl.len()).over("prompt_id") >= options.per_prompt
    reasons = ordered.select("candidate_id", reason=pl.when(over).then(pl.lit("over the cap")))
    return state.narrow("cap", reasons)


class BestOf(Options):
    critic: str
    per_prompt: int = Field(ge=1)  # candidates, at most


def best_of(state: Selection, options: BestOf) -> Selection:
    """Keeps the `per_prompt` candidates of a prompt that the critic scores highest: best-of-n, which a threshold is not.
    With the model's own summed log-probability as the score it is the SFT form of sharpening (Huang et al. 2024,
    Self-Improvement in Language Models: The Sharpening Mechanism)."""
    opinions = state.opinions(options.critic, "best_of").select("candidate_id", "score")
    ordered = state.kept.join(opinions, on="candidate_id", how="left").sort(
        ["prompt_id", "score", "candidate_id"], descending=[False, True, False], nulls_last=True
    )
    below = pl.int_range(pl.len()).over("prompt_id") >= options.per_prompt
    silent = pl.when(pl.col("score").is_null()).then(pl.lit("no judgement"))
    reasons = ordered.select("candidate_id", reason=silent.when(below).then(pl.lit("not the best")))
    return state.narrow("best_of", reasons)


BLOCKS = {
    "deduplicate": Block(deduplicate, phase="limit"),
    "best_of": Block(best_of, needs=frozenset({"scores"}), phase="limit"),
    "cap": Block(cap, phase="limit"),
}

"""Duplicates and caps."""

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


def cap(state: Selection, options: Cap) -> Selection:
    """Keeps at most `per_prompt` candidates of a prompt, chosen by id, which is as good as at random."""
    ordered = state.kept.sort("prompt_id", "candidate_id")
    over = pl.int_range(pl.len()).over("prompt_id") >= options.per_prompt
    reasons = ordered.select("candidate_id", reason=pl.when(over).then(pl.lit("over the cap")))
    return state.narrow("cap", reasons)


BLOCKS = {"deduplicate": Block(deduplicate, phase="limit"), "cap": Block(cap, phase="limit")}

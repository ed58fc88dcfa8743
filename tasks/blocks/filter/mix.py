"""Earlier rounds and the seed corpus."""

from dataclasses import replace

import polars as pl
from pydantic import Field

from tasks.blocks.filter.selection import Selection
from tasks.core.block import Block, Options
from tasks.core.errors import unknown_name


class Accumulate(Options):
    apart: bool  # false: earlier rows count like new ones; true: they are a part of the training mixture of their own


def accumulate(state: Selection, options: Accumulate) -> Selection:
    """Adds the own rows and pairs of earlier iterations. With `apart`, older rows get the part `earlier`,
    so that the training mixture can hold the newest iteration at a fixed share; in the first iteration, which has
    none, the new rows stand in for them."""
    older = state.earlier_sft.filter(pl.col("part").is_in(["own", "earlier"])).unique(
        "row_id", keep="first", maintain_order=True
    )
    old_pairs = state.earlier_pairs.join(state.pairs, on="row_id", how="anti")
    state = replace(state, pairs=pl.concat([state.pairs, old_pairs]))
    if options.apart:
        older = (state.sft if older.is_empty() else older).with_columns(part=pl.lit("earlier"))
        return replace(state, sft=pl.concat([state.sft, older]))
    older = older.join(state.sft, on="row_id", how="anti")
    return replace(state, sft=pl.concat([state.sft, older]))


class Replay(Options):
    parts: list[str] = Field(min_length=1)  # skills of the seed corpus


def replay(state: Selection, options: Replay) -> Selection:
    """Adds the seed corpus, so that what the base model learned is not forgotten. Raises `BadInput` for a part
    that the corpus does not have."""
    known = state.corpus["part"].unique().to_list()
    for part in options.parts:
        if part not in known:
            raise unknown_name("part", part, known, "filter.replay.parts")
    return replace(state, sft=pl.concat([state.sft, state.corpus.filter(pl.col("part").is_in(options.parts))]))


def _older(options: Accumulate) -> frozenset[str]:
    return frozenset({"rows of earlier"} if options.apart else ())


def _newer(options: Accumulate) -> frozenset[str]:
    return frozenset({"rows of own"} if options.apart else ())  # those of earlier iterations are such rows too


def _replayed(options: Replay) -> frozenset[str]:
    return frozenset(f"rows of {part}" for part in options.parts)


def _replays(options: Replay) -> frozenset[str]:
    return frozenset(f"corpus rows of {part}" for part in options.parts)


BLOCKS = {
    "accumulate": Block(accumulate, gives=_older, needs=_newer, phase="mix"),
    "replay": Block(replay, gives=_replayed, needs=_replays, phase="mix"),
}

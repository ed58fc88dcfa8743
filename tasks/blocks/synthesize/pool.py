"""Prompts of the pool, in its order."""

import polars as pl
from pydantic import Field

from tasks.blocks.synthesize.supply import Supplied, Supply
from tasks.core.block import Block, Options, Taken
from tasks.core.errors import BadInput


class FixedUnlabeled(Options):
    n: int = Field(ge=1)  # prompts an iteration


def fixed_unlabeled(supply: Supply, options: FixedUnlabeled) -> Supplied:
    """The next `n` prompts of the pool, after those of the previous iteration; from the start again when the
    pool is used up. Raises `BadInput` if the pool is smaller than `n`."""
    return following(supply, supply.pool, options.n)


def following(supply: Supply, pool: pl.DataFrame, n: int, kind: str = "") -> Supplied:
    """The next `n` prompts of a part of the pool. `kind` names the part in messages."""
    if pool.height < n:
        raise BadInput(
            f"synthesize.{supply.name}: asks for {n} prompts{kind}, the pool has {pool.height}; lower `n` or make a larger pool in `prepare`"
        )
    before = supply.previous.filter(pl.col("source") == supply.name).select("prompt_id")
    used = set(pool.with_row_index("place").join(before, on="prompt_id", how="semi")["place"])
    ends = [place for place in used if (place + 1) % pool.height not in used]  # one, unless the pool was edited
    start = (min(ends) + 1) % pool.height if ends else 0
    rows = pool.slice(start, n)
    if rows.height < n:
        rows = pl.concat([rows, pool.head(n - rows.height)])
    return Supplied(rows.with_columns(source=pl.lit(supply.name)))


def _takes(options: FixedUnlabeled, first: bool, hardest: int | None) -> Taken:
    return Taken(options.n)


BLOCKS = {"fixed_unlabeled": Block(fixed_unlabeled, takes=_takes)}

"""Prompts of growing difficulty."""

import polars as pl
from pydantic import Field

from tasks.blocks.synthesize.pool import following
from tasks.blocks.synthesize.supply import Supplied, Supply
from tasks.core.block import Block, Options, Taken


class DifficultyCurriculum(Options):
    n: int = Field(ge=1)  # prompts an iteration
    start: int  # difficulty of the first iteration
    step: int = Field(ge=0)  # added each iteration


def difficulty_curriculum(supply: Supply, options: DifficultyCurriculum) -> Supplied:
    """`n` prompts of one difficulty, which grows by `step` each iteration (Self-Improving Transformers Overcome
    Easy-to-Hard and Length Generalization: one unit longer each round). Raises `BadInput` where the pool has none."""
    before = supply.previous["difficulty"].max()
    difficulty = options.start if before is None else int(str(before)) + options.step
    return following(
        supply, supply.pool.filter(pl.col("difficulty") == difficulty), options.n, f" of difficulty {difficulty}"
    )


def _takes(options: DifficultyCurriculum, first: bool, hardest: int | None) -> Taken | None:
    """Where the hardest prompt of the previous iteration cannot be known, neither can this."""
    if first:
        return Taken(options.n, options.start)
    return None if hardest is None else Taken(options.n, hardest + options.step)


BLOCKS = {"difficulty_curriculum": Block(difficulty_curriculum, takes=_takes)}

"""Refiners: candidates in, new candidates with `parent_id` out, judged by the same critics."""

from collections.abc import Sequence
from dataclasses import replace

from tasks.blocks.refine import gated, revise
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Bound

BLOCKS: dict[str, Block] = {**revise.BLOCKS, **gated.BLOCKS}


def asks(bound: Bound, critics: Sequence[Bound], counts: Counts) -> list[Demand]:
    """What a block asks for refinements, and the critics about these, at most: everything is refused."""
    made = bound.asks(counts)
    again = replace(counts, candidates=sum(demand.requests for demand in made))
    return [*made, *(demand for critic in critics for demand in critic.asks(again))]

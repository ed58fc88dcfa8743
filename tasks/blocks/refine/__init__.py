"""Blocks of `refine`: refused candidates in, revised ones out."""

from collections.abc import Sequence
from dataclasses import replace

from tasks.blocks import critics as judging
from tasks.blocks.refine.revise import critique_revise, requested
from tasks.core.asking.demand import Counts, Demand
from tasks.core.blocks import Block, Bound, Requests

BLOCKS: dict[str, Block] = {"critique_revise": critique_revise}


REQUESTS: dict[Block, Requests] = {critique_revise: requested}


def requests(bound: Bound, critics: Sequence[Bound], counts: Counts) -> list[Demand]:
    """What a block asks for refinements, and the critics about these, at most: everything is refused."""
    made = REQUESTS[bound.block](bound.options, counts)
    again = replace(counts, candidates=sum(demand.requests for demand in made))
    return [*made, *judging.requests(critics, again)]

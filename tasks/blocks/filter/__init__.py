"""Filter blocks: candidates with critiques in, training rows out, and every drop with its reason.

A block takes the selection so far and gives the next one. Blocks run by phase, within a phase in the order in which
they stand here: `select` (which candidates are trusted), `limit` (duplicates and caps), `build` (rows and pairs, with
their weights), `mix` (earlier rounds and the seed corpus). What did not parse, ties, equal texts and missing scores never
become a preference; they are counted.
"""

from collections import Counter

import polars as pl

from tasks.blocks.filter import balance, limit, mix, pairs, rows, select
from tasks.core.block import Block, Bound
from tasks.core.errors import BadInput

BLOCKS: dict[str, Block] = {
    **select.BLOCKS,
    **balance.BLOCKS,
    **limit.BLOCKS,
    **rows.BLOCKS,
    **pairs.BLOCKS,
    **mix.BLOCKS,
}


def in_order(bounds: list[Bound]) -> list[Bound]:
    """The blocks by phase, then in the order of BLOCKS, then by name. Raises `BadInput` if nothing builds rows."""
    if bounds and not any(bound.block.phase == "build" for bound in bounds):
        builders = sorted(name for name, block in BLOCKS.items() if block.phase == "build")
        raise BadInput(
            f"filter: no block builds training rows; add one of {', '.join(builders)} "
            f"(given: {', '.join(bound.name for bound in bounds)})"
        )
    place = {name: index for index, name in enumerate(BLOCKS)}
    return sorted(bounds, key=lambda bound: (place[bound.kind], bound.name))


def reasons(dropped: pl.DataFrame) -> list[str]:
    """Lines such as "accepted dropped 120: refused", most frequent first."""
    counts = Counter(dropped.select("block", "reason").iter_rows())
    return [f"{block} dropped {count}: {reason}" for (block, reason), count in counts.most_common()]

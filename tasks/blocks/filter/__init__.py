"""Blocks of `filter`: candidates with critiques in, training rows out, and every drop with its reason."""

from collections import Counter

import polars as pl

from tasks.blocks.filter.limit import cap, deduplicate
from tasks.blocks.filter.mix import accumulate, replay
from tasks.blocks.filter.pairs import pairs_best_worst, pairs_preferred, pairs_vote_margin
from tasks.blocks.filter.rows import positives
from tasks.blocks.filter.select import accepted, keep_all, length, majority, relative_length, threshold, well_formed
from tasks.core.blocks import Block, Bound
from tasks.core.errors import BadInput

PHASES: dict[str, dict[str, Block]] = {
    "select": {
        "accepted": accepted,
        "threshold": threshold,
        "majority": majority,
        "well_formed": well_formed,
        "length": length,
        "relative_length": relative_length,
        "keep_all": keep_all,
    },
    "limit": {"deduplicate": deduplicate, "cap": cap},
    "build": {
        "positives": positives,
        "pairs_best_worst": pairs_best_worst,
        "pairs_vote_margin": pairs_vote_margin,
        "pairs_preferred": pairs_preferred,
    },
    "mix": {"accumulate": accumulate, "replay": replay},
}
BLOCKS: dict[str, Block] = {name: block for blocks in PHASES.values() for name, block in blocks.items()}
BUILDERS = frozenset(PHASES["build"].values())


def in_order(bounds: list[Bound]) -> list[Bound]:
    """The blocks by phase, then in the order of PHASES, then by name. Raises `BadInput` if nothing builds rows."""
    if bounds and not any(bound.block in BUILDERS for bound in bounds):
        raise BadInput(
            f"filter: no block builds training rows; add one of {', '.join(sorted(PHASES['build']))} "
            f"(given: {', '.join(bound.name for bound in bounds)})"
        )
    place = {block: index for index, block in enumerate(BLOCKS.values())}
    return sorted(bounds, key=lambda bound: (place[bound.block], bound.name))


def reasons(dropped: pl.DataFrame) -> list[str]:
    """Lines such as "accepted dropped 120: refused", most frequent first."""
    counts = Counter(dropped.select("block", "reason").iter_rows())
    return [f"{block} dropped {count}: {reason}" for (block, reason), count in counts.most_common()]

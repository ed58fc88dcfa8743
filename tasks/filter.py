"""filter: what the loop trusts, as training rows, and every drop with its reason.

Reads prompts, samples, refinements, their critiques, the previous iteration's dataset and the seed corpus. Writes
`data/iN/dataset/`: `sft.parquet` (SFT), `pairs.parquet` (PAIRS), `rated.parquet` (RATED, where a block rates answers),
`dropped.parquet` (DROPPED), and `README.md`, which
makes the folder a dataset with a configuration for each of them for `datasets.load_dataset`, `trl sft` and `trl dpo`.
Raises `EmptyDataset` where nothing of this iteration is left to train on.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks.blocks.filter import BLOCKS, in_order, reasons
from tasks.blocks.filter.selection import Selection
from tasks.core import tables
from tasks.core.block import Bound, bind
from tasks.core.context import Context
from tasks.core.errors import EmptyDataset


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks in the order in which they run. Raises `BadInput`."""
    return in_order(bind(BLOCKS, section, "filter"))


def run(context: Context) -> None:
    iteration, previous = str(context.iteration), context.row["previous"]
    candidates = pl.concat([context.load("samples"), context.load("refinements")])
    state = Selection(
        iteration=iteration,
        prompts=context.load("prompts"),
        candidates=candidates,
        critiques=pl.concat([context.load("critiques"), context.load("refinement_critiques")]),
        kept=candidates,
        corpus=context.load("corpus"),
        earlier_sft=context.load("sft", previous),
        earlier_pairs=context.load("pairs", previous),
    )
    for block in context.options:
        state = block(state)
    new = state.sft.filter((pl.col("iteration") == iteration) & (pl.col("part") != "earlier"))
    new_pairs = state.pairs.filter(pl.col("iteration") == iteration).height
    context.log(
        candidates=candidates.height,
        kept=state.kept.height,
        dropped=state.dropped.height,
        new_rows=new.height,
        rows=state.sft.height,
        new_pairs=new_pairs,
        pairs=state.pairs.height,
        prompts_with_rows=new["prompt_id"].n_unique(),
        **{
            f"dropped_by_{block}": count
            for block, count in state.dropped.group_by("block", maintain_order=True).len().rows()
        },
    )
    if context.options and new.is_empty() and not new_pairs and state.rated.is_empty():
        lines = reasons(state.dropped) or ["there was no candidate to begin with"]
        raise EmptyDataset(
            f"{context.name}: none of {candidates.height} candidates is left to train on: {'; '.join(lines)}. "
            f"Loosen the filter that drops most, or look at data/{iteration}/critiques.parquet"
        )
    parts = {"sft": state.sft, "pairs": state.pairs, "rated": state.rated, "dropped": state.dropped}
    if state.rated.is_empty():
        del parts["rated"]
    for name, table in parts.items():
        context.save(name, table)
    context.save("dataset_card", tables.dataset_card({name: table.height for name, table in parts.items()}))

"""filter: what the loop trusts, as training rows, and every drop with its reason.

Reads prompts, samples, refinements, their critiques, the previous iteration's dataset and the seed corpus. Writes
`data/iN/dataset/`: `sft.parquet` (SFT), `pairs.parquet` (PAIRS), `dropped.parquet` (DROPPED), and `README.md`, which
makes the folder a dataset with a configuration for each of them for `datasets.load_dataset`, `trl sft` and `trl dpo`.
Raises `EmptyDataset` where nothing of this iteration is left to train on.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks.blocks import filter
from tasks.blocks.filter import selection as selecting
from tasks.core import tables
from tasks.core.blocks import Bound, bind
from tasks.core.context import Context
from tasks.core.errors import EmptyDataset


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks in the order in which they run. Raises `BadInput`."""
    return filter.in_order(bind(filter.BLOCKS, section, "filter"))


def run(context: Context) -> None:
    previous = context.read(context.data("dataset", context.row["previous"]))
    samples = tables.read(context.read(context.data("samples.parquet")), tables.CANDIDATES)
    refinements = tables.read(context.read(context.data("refinements.parquet")), tables.CANDIDATES)
    critiques = tables.read(context.read(context.data("critiques.parquet")), tables.CRITIQUES)
    recritiques = tables.read(context.read(context.data("refinement_critiques.parquet")), tables.CRITIQUES)
    candidates = pl.concat([samples, refinements])
    state = selecting.Selection(
        iteration=str(context.key),
        prompts=tables.read(context.read(context.data("prompts.parquet")), tables.PROMPTS),
        candidates=candidates,
        critiques=pl.concat([critiques, recritiques]),
        kept=candidates,
        corpus=tables.read(context.read("data/tasks/corpus.parquet"), tables.SFT),
        earlier_sft=tables.read(previous / "sft.parquet", tables.SFT),
        earlier_pairs=tables.read(previous / "pairs.parquet", tables.PAIRS),
    )
    for bound in context.options:
        state = bound(state)
    new = state.sft.filter((pl.col("iteration") == context.key) & (pl.col("part") == "own"))
    new_pairs = state.pairs.filter(pl.col("iteration") == context.key).height
    context.log(
        candidates=candidates.height,
        kept=state.kept.height,
        dropped=state.dropped.height,
        new_rows=new.height,
        rows=state.sft.height,
        new_pairs=new_pairs,
        pairs=state.pairs.height,
        prompts_with_rows=new["prompt_id"].n_unique(),
    )
    if context.options and new.is_empty() and not new_pairs:
        lines = filter.reasons(state.dropped) or ["there was no candidate to begin with"]
        raise EmptyDataset(
            f"{context.name}: none of {candidates.height} candidates is left to train on: {'; '.join(lines)}. "
            f"Loosen the filter that drops most, or look at data/{context.key}/critiques.parquet"
        )
    folder = context.data("dataset")
    tables.write(state.sft, context.write(f"{folder}/sft.parquet"), tables.SFT)
    tables.write(state.pairs, context.write(f"{folder}/pairs.parquet"), tables.PAIRS)
    tables.write(state.dropped, context.write(f"{folder}/dropped.parquet"), tables.DROPPED)
    rows = {"sft": state.sft.height, "pairs": state.pairs.height, "dropped": state.dropped.height}
    context.write(f"{folder}/README.md").write_text(tables.dataset_card(rows), encoding="utf-8")

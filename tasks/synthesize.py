"""synthesize: the prompts of an iteration.

Reads the pool, its labels, the fingerprints of held-out problems, the previous policy (blocks that let the model write
prompts ask it), the previous iteration's prompts and what models invented up to then. Writes `data/iN/prompts.parquet`
(PROMPTS) and `data/iN/invented.parquet` (INVENTED: prompts of this and of all earlier iterations that are not of the
pool, so that none is invented twice). What is, or is too much like, a held-out problem is refused (the family's guard).
`answer` is filled only when the recipe declares `labels: true`, so a label-free loop has none to see.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks import families
from tasks.blocks import synthesize
from tasks.blocks.synthesize import supply as synthesize_supply
from tasks.core import tables
from tasks.core.blocks import Bound, bind
from tasks.core.context import Context
from tasks.core.seeds import derive


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks. Raises `BadInput`."""
    return bind(synthesize.BLOCKS, section, "synthesize")


def run(context: Context) -> None:
    family = families.read(context)
    pool = tables.read(context.read("data/tasks/prompts.parquet"), tables.PROMPTS).sort("prompt_id")
    previous = tables.read(context.read(context.data("prompts.parquet", context.row["previous"])), tables.PROMPTS)
    invented = tables.read(context.read(context.data("invented.parquet", context.row["previous"])), tables.INVENTED)
    fingerprints = tables.read(context.read("data/tasks/fingerprints.parquet"), tables.FINGERPRINTS)
    labels = tables.read(context.read("data/tasks/labels.parquet"), tables.LABELS)
    guard = family.guard(fingerprints)
    found = [tables.empty(tables.PROMPTS)]
    for bound in context.options:
        model = (
            context.model(context.pointer(context.row["previous"])) if bound.block in synthesize.USES_MODEL else None
        )
        supply = synthesize_supply.Supply(
            family, pool, previous, invented, guard, model, derive(context.seed, bound.name), bound.name
        )
        found.append(bound(supply))
        context.log(**supply.figures)
    prompts = pl.concat(found).unique("prompt_id", keep="first", maintain_order=True)
    held_out = [guard(messages) is not None for messages in prompts["messages"].to_list()]
    prompts = prompts.filter(~pl.Series(held_out, dtype=pl.Boolean)).with_columns(answer=pl.lit(None, dtype=pl.String))
    if context.labels:
        prompts = prompts.drop("answer").join(labels, on="prompt_id", how="left", maintain_order="left")
    context.log(prompts=prompts.height, held_out_refused=sum(held_out))
    tables.write(prompts, context.write(context.data("prompts.parquet")), tables.PROMPTS)
    invented = synthesize_supply.invented(family, prompts, pool, invented)
    tables.write(invented, context.write(context.data("invented.parquet")), tables.INVENTED)

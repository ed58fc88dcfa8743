"""synthesize: the prompts of an iteration.

Reads the pool, its labels, the fingerprints of held-out problems, the previous policy (blocks that let the model write
prompts ask it), the previous iteration's prompts and what models invented up to then. Writes `prompts` (PROMPTS) and
`invented` (INVENTED: prompts of this and of all earlier iterations that are not of the pool, so that none is invented
twice). What is, or is too much like, a held-out problem is refused (the family's guard).
`answer` is filled only when the recipe declares `labels: true`, so a label-free loop has none to see.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks import families
from tasks.blocks.synthesize import BLOCKS
from tasks.blocks.synthesize.supply import Supply, invented
from tasks.blocks.work import POLICY, Cast
from tasks.core import tables
from tasks.core.block import Bound, bind
from tasks.core.context import Context
from tasks.core.seeds import derive


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks. Raises `BadInput`."""
    return bind(BLOCKS, section, "synthesize")


def run(context: Context) -> None:
    family, previous = families.read(context), context.row["previous"]
    pool, labels = context.load("pool").sort("prompt_id"), context.load("labels")
    before, earlier = context.load("prompts", previous), context.load("invented", previous)
    guard = family.guard(context.load("fingerprints"))
    models = Cast(context.model, context.pointers())
    found = [tables.empty(tables.PROMPTS)]
    for block in context.options:
        seed = derive(context.seed, block.name)
        model = block.model or POLICY
        supplied = block(Supply(family, pool, before, earlier, guard, models, seed, block.name, model))
        found.append(supplied.prompts)
        context.log(**supplied.figures)
    prompts = pl.concat(found).unique("prompt_id", keep="first", maintain_order=True)
    held_out = [guard(messages) is not None for messages in prompts["messages"].to_list()]
    prompts = prompts.filter(~pl.Series(held_out, dtype=pl.Boolean)).with_columns(answer=pl.lit(None, dtype=pl.String))
    if context.labels:
        prompts = prompts.drop("answer").join(labels, on="prompt_id", how="left", maintain_order="left")
    context.log(prompts=prompts.height, held_out_refused=sum(held_out))
    context.save("prompts", prompts)
    context.save("invented", invented(family, prompts, pool, earlier))

"""sample: the policy answers the prompts of the iteration.

Reads `prompts`, the family's templates and the policies that the row names, of which `previous` is asked unless a block
names another. Writes `samples` (CANDIDATES: turn 0, and turn 1 and up of blocks that go on from answers).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from tasks import families
from tasks.blocks.sample import BLOCKS
from tasks.blocks.work import Cast, Work, in_order
from tasks.core.block import Bound, bind
from tasks.core.context import Context


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks in the order in which they run. Raises `BadInput`."""
    return in_order(bind(BLOCKS, section, "sample"), "sample")


def run(context: Context) -> None:
    family = families.read(context)
    work = Work(
        prompts=context.load("prompts"),
        family=family,
        models=Cast(context.model, context.pointers()),
        truth=context.truth(family),
        seed=context.seed,
        name="sample",
    )
    samples = work.candidates
    for maker in context.options:
        made = maker(replace(work, candidates=samples).of(maker))
        samples = pl.concat([samples, made.candidates])
    context.log(
        samples=samples.height,
        tokens=int(samples["tokens"].sum()),
        answered=(samples.height - samples["answer"].null_count()) / max(1, samples.height),
    )
    context.save("samples", samples)

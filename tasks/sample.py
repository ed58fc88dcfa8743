"""sample: the policy answers the prompts of the iteration.

Reads `data/iN/prompts.parquet` and the policy that the previous iteration promoted.
Writes `data/iN/samples.parquet` (CANDIDATES, turn 0).
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks import families
from tasks.blocks import sample
from tasks.core import tables
from tasks.core.blocks import Bound, bind
from tasks.core.context import Context
from tasks.core.seeds import derive


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks. Raises `BadInput`."""
    return bind(sample.BLOCKS, section, "sample")


def run(context: Context) -> None:
    family = families.read(context)
    prompts = tables.read(context.read(context.data("prompts.parquet")), tables.PROMPTS)
    model = context.model(context.pointer(context.row["previous"]))
    found = [tables.empty(tables.CANDIDATES)]
    for bound in context.options:
        found.append(bound.block(prompts, family, model, derive(context.seed, bound.name), bound.name, bound.options))
    samples = pl.concat(found)
    context.log(
        samples=samples.height,
        tokens=int(samples["tokens"].sum()),
        answered=(samples.height - samples["answer"].null_count()) / max(1, samples.height),
    )
    tables.write(samples, context.write(context.data("samples.parquet")), tables.CANDIDATES)

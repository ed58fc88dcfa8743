"""critique: the judge's opinions of the samples.

Reads prompts, samples and the policy of the iteration that the row names as `judge`.
Writes `data/iN/critiques.parquet` (CRITIQUES) and `data/iN/critics.json`: who judged and with which critics,
which `refine` uses to judge refinements in the same way.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tasks import families
from tasks.blocks import critics as blocks
from tasks.core import tables
from tasks.core.blocks import Bound, bind
from tasks.core.context import Context


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's critics. Raises `BadInput`."""
    return bind(blocks.BLOCKS, section, "critique")


def run(context: Context) -> None:
    family = families.read(context)
    prompts = tables.read(context.read(context.data("prompts.parquet")), tables.PROMPTS)
    samples = tables.read(context.read(context.data("samples.parquet")), tables.CANDIDATES)
    pointer = context.pointer(context.row["judge"])
    judge = context.model(pointer)
    critiques = blocks.critique(
        context.options, samples, prompts, family, judge, context.seed, context.stage, context.labels
    )
    context.log(
        critiques=critiques.height,
        unparsed=int((~critiques["parsed"]).sum()),
        tokens=int(critiques["tokens"].sum()),
    )
    for bound in context.options:
        if bound.block in blocks.COMPARING:
            context.log(**blocks.counted(critiques, bound.name))
        verdicts = blocks.aggregate(critiques, bound.name)["verdict"]
        if verdicts.is_not_null().any():
            context.log(**{f"{bound.name}_accepted": verdicts.to_list().count(True) / verdicts.len()})
    tables.write(critiques, context.write(context.data("critiques.parquet")), tables.CRITIQUES)
    record = {
        "judge": asdict(pointer),
        "seed": context.seed,
        "critics": {
            bound.name: {"block": _name(bound), **bound.options.model_dump(mode="json")} for bound in context.options
        },
    }
    context.write(context.data("critics.json")).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _name(bound: Bound) -> str:
    return next(name for name, block in blocks.BLOCKS.items() if block is bound.block)

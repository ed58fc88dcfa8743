"""refine: the policy revises what its critic refused, and the revisions are judged in turn.

Reads prompts, samples, critiques, `critics.json` (who judges, and how) and the previous policy.
Writes `data/iN/refinements.parquet` (CANDIDATES, turn 1 and up, with `parent_id`) and
`data/iN/refinement_critiques.parquet` (CRITIQUES).
"""

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks import families
from tasks.blocks import critics, refine
from tasks.core import tables
from tasks.core.blocks import Bound, bind
from tasks.core.context import Context
from tasks.core.errors import unknown_name
from tasks.core.models.pointer import Pointer
from tasks.core.seeds import derive


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks. Raises `BadInput`."""
    return bind(refine.BLOCKS, section, "refine")


def run(context: Context) -> None:
    family = families.read(context)
    prompts = tables.read(context.read(context.data("prompts.parquet")), tables.PROMPTS)
    samples = tables.read(context.read(context.data("samples.parquet")), tables.CANDIDATES)
    critiques = tables.read(context.read(context.data("critiques.parquet")), tables.CRITIQUES)
    judged_by = json.loads(context.read(context.data("critics.json")).read_text())
    known = bind(critics.BLOCKS, judged_by["critics"], "critique")
    found, judged = [tables.empty(tables.CANDIDATES)], [tables.empty(tables.CRITIQUES)]
    for bound in context.options:
        if bound.options.critic not in judged_by["critics"]:
            raise unknown_name("critic", bound.options.critic, judged_by["critics"], f"refine.{bound.name}.critic")
        model = context.model(context.pointer(context.row["previous"]))
        judge = context.model(Pointer(**judged_by["judge"]))
        seed = derive(context.seed, bound.name)
        new, opinions = bound.block(
            samples, critiques, prompts, family, model, known, judge, seed, bound.name, context.stage,
            context.labels, bound.options,
        )  # fmt: skip
        found.append(new)
        judged.append(opinions)
    refinements, opinions = pl.concat(found), pl.concat(judged)
    context.log(refinements=refinements.height, tokens=int(refinements["tokens"].sum()) + int(opinions["tokens"].sum()))
    tables.write(refinements, context.write(context.data("refinements.parquet")), tables.CANDIDATES)
    tables.write(opinions, context.write(context.data("refinement_critiques.parquet")), tables.CRITIQUES)

"""refine: the policy revises what its critic refused, and the revisions are judged in turn.

Reads `prompts`, `samples`, `critiques`, `critics` (who judges, and how) and the policies that the row names, of which
`previous` revises.
Writes `refinements` (CANDIDATES, turn 1 and up, with `parent_id`) and `refinement_critiques` (CRITIQUES).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tasks import families
from tasks.blocks import critique
from tasks.blocks.refine import BLOCKS
from tasks.blocks.work import JUDGE, Cast, Made, Work, combined, in_order
from tasks.core.block import Bound, bind
from tasks.core.context import Context
from tasks.core.errors import unknown_name
from tasks.core.models.pointer import Pointer


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks in the order in which they run. Raises `BadInput`."""
    return in_order(bind(BLOCKS, section, "refine"), "refine")


def run(context: Context) -> None:
    family, judges = families.read(context), context.load("critics")
    for refiner in context.options:
        for read in refiner.reads:
            if read.critic not in judges["critics"]:
                raise unknown_name("critic", read.critic, judges["critics"], f"refine.{refiner.name}.{read.option}")
    work = Work(
        prompts=context.load("prompts"),
        family=family,
        models=Cast(context.model, {**context.pointers(), JUDGE: Pointer(**judges["judge"])}),
        truth=context.truth(family),
        seed=context.seed,
        name="refine",
        candidates=context.load("samples"),
        opinions=context.load("critiques"),
        critics=bind(critique.BLOCKS, judges["critics"], "critique"),
    )
    made = Made()
    for refiner in context.options:
        given = combined([Made(work.candidates, work.opinions), made]) if hasattr(refiner.options, "of") else None
        told = work if given is None else replace(work, candidates=given.candidates, opinions=given.opinions)
        made = combined([made, refiner(told.of(refiner))])
    tokens = int(made.candidates["tokens"].sum()) + int(made.opinions["tokens"].sum())
    context.log(refinements=made.candidates.height, tokens=tokens)
    context.save("refinements", made.candidates)
    context.save("refinement_critiques", made.opinions)

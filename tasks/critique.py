"""critique: the judge's opinions of the samples.

Reads `prompts`, `samples` and the policies that the row names, of which `judge` is asked unless a critic names another.
Writes `critiques` (CRITIQUES) and `critics`: who judged and with which critics, so that `refine` judges refinements in
the same way.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tasks import families
from tasks.blocks.critique import BLOCKS, opinions
from tasks.blocks.critique.judging import in_order, judged
from tasks.blocks.work import JUDGE, Cast, Work
from tasks.core.block import Bound, bind
from tasks.core.context import Context


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's critics. Raises `BadInput`, for a circle of critics that read one another too."""
    critics = bind(BLOCKS, section, "critique")
    in_order(critics)
    return critics


def run(context: Context) -> None:
    family = families.read(context)
    pointers = context.pointers()
    work = Work(
        prompts=context.load("prompts"),
        family=family,
        models=Cast(context.model, pointers),
        truth=context.truth(family),
        seed=context.seed,
        name="critique",
        candidates=context.load("samples"),
    )
    critiques = judged(work, context.options)
    context.log(
        critiques=critiques.height,
        unparsed=int((~critiques["parsed"]).sum()),
        tokens=int(critiques["tokens"].sum()),
    )
    for critic in context.options:
        if "comparisons" in critic.gives:
            context.log(**opinions.counted(critiques, critic.name))
        verdicts = opinions.aggregate(critiques, critic.name)["verdict"]
        if verdicts.is_not_null().any():
            context.log(**{f"{critic.name}_accepted": verdicts.to_list().count(True) / verdicts.len()})
    context.save("critiques", critiques)
    critics = {critic.name: critic.entry() for critic in context.options}
    context.save("critics", {"judge": asdict(pointers[JUDGE]), "critics": critics})

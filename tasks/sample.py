"""sample: the policy answers the prompts of the iteration.

Reads `prompts` and the policy that the previous iteration promoted.
Writes `samples` (CANDIDATES, turn 0).
"""

from collections.abc import Mapping
from typing import Any

from tasks import families
from tasks.blocks.sample import BLOCKS
from tasks.blocks.work import Cast, Work, combined
from tasks.core.block import Bound, bind
from tasks.core.context import Context


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks. Raises `BadInput`."""
    return bind(BLOCKS, section, "sample")


def run(context: Context) -> None:
    family = families.read(context)
    models = Cast(context.model, context.pointers())
    work = Work(context.load("prompts"), family, models, context.truth(family), context.seed, "sample")
    samples = combined([maker(work.of(maker)) for maker in context.options]).candidates
    context.log(
        samples=samples.height,
        tokens=int(samples["tokens"].sum()),
        answered=(samples.height - samples["answer"].null_count()) / max(1, samples.height),
    )
    context.save("samples", samples)

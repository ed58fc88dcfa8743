"""Training blocks: the dataset in, a model folder out. They run in the order in which they stand here, each from the
model of the one before."""

from tasks.blocks.train import dpo, kto, sft
from tasks.core.block import Block, Bound
from tasks.core.training.options import AnchoredOptions, DpoOptions, KtoOptions, Mixed

BLOCKS: dict[str, Block] = {**sft.BLOCKS, **dpo.BLOCKS, **kto.BLOCKS}


def in_order(bounds: list[Bound]) -> list[Bound]:
    """The blocks by kind in the order of BLOCKS, then by name."""
    place = {name: index for index, name in enumerate(BLOCKS)}
    return sorted(bounds, key=lambda bound: (place[bound.kind], bound.name))


def rows(options: Mixed) -> int:
    """Rows that a whole training reads: steps times the rows of a step; a pair is two rows, and so is a rated row, which is
    read once more with another prompt's answer."""
    both = 2 if isinstance(options, DpoOptions | KtoOptions) else 1
    step = both * sum(options.mixture.values())
    if isinstance(options, AnchoredOptions):
        step += sum(options.replay.values())
    return options.steps * step

"""Training blocks: the dataset in, a model folder out. They run in the order in which they stand here, each from the
model of the one before."""

from tasks.blocks.train import dpo, sft
from tasks.core.block import Block, Bound
from tasks.core.training.options import DpoOptions, SftOptions, TrainingOptions

BLOCKS: dict[str, Block] = {**sft.BLOCKS, **dpo.BLOCKS}


def in_order(bounds: list[Bound]) -> list[Bound]:
    """The blocks by kind in the order of BLOCKS, then by name."""
    place = {name: index for index, name in enumerate(BLOCKS)}
    return sorted(bounds, key=lambda bound: (place[bound.kind], bound.name))


def rows(options: TrainingOptions) -> int:
    """Rows that a whole training reads: steps times the rows of a step; a pair is two rows."""
    step = sum(options.mixture.values()) if isinstance(options, SftOptions) else 0
    if isinstance(options, DpoOptions):
        step = 2 * options.batch_size + sum(options.replay.values())
    return options.steps * step

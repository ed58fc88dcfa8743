"""Blocks of `train`."""

from tasks.blocks.train import dpo, sft
from tasks.core.blocks import Block
from tasks.core.training.options import DpoOptions, SftOptions, TrainingOptions

BLOCKS: dict[str, Block] = {"sft": sft.sft, "dpo": dpo.dpo}
PHASE = {sft.sft: 0, dpo.dpo: 1}  # blocks of one stage run in this order, each from the one before


def rows(options: TrainingOptions) -> int:
    """Rows that a whole training reads: steps times the rows of a step; a pair is two rows."""
    step = sum(options.mixture.values()) if isinstance(options, SftOptions) else 0
    if isinstance(options, DpoOptions):
        step = 2 * options.batch_size + sum(options.replay.values())
    return options.steps * step

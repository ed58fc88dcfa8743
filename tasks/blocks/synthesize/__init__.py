"""Prompt blocks: which prompts an iteration works on."""

from tasks.blocks.synthesize import curriculum, pool, self_instruct
from tasks.core.block import Block

BLOCKS: dict[str, Block] = {**pool.BLOCKS, **curriculum.BLOCKS, **self_instruct.BLOCKS}

"""Samplers: prompts in, candidate answers out."""

from tasks.blocks.sample import iid
from tasks.core.block import Block

BLOCKS: dict[str, Block] = iid.BLOCKS

"""Samplers: prompts in, candidate answers out."""

from tasks.blocks.sample import iid, respond
from tasks.core.block import Block

BLOCKS: dict[str, Block] = {**iid.BLOCKS, **respond.BLOCKS}

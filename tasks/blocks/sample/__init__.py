"""Blocks of `sample`: prompts in, candidate answers out."""

from tasks.blocks.sample.iid import answered, iid_k, requested, single
from tasks.core.blocks import Block, Requests

BLOCKS: dict[str, Block] = {"iid_k": iid_k, "single": single}


REQUESTS: dict[Block, Requests] = {iid_k: requested, single: answered}

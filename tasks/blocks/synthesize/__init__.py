"""Blocks of `synthesize`: which prompts an iteration works on."""

from tasks.blocks.synthesize import curriculum, pool, self_instruct
from tasks.core.blocks import Block, Requests

BLOCKS: dict[str, Block] = {
    "fixed_unlabeled": pool.fixed_unlabeled,
    "difficulty_curriculum": curriculum.difficulty_curriculum,
    "self_instruct": self_instruct.self_instruct,
}
USES_MODEL = {self_instruct.self_instruct}


REQUESTS: dict[Block, Requests] = {self_instruct.self_instruct: self_instruct.requested}

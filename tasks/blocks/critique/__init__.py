"""Critics: candidates in, critiques out. A file holds one question that a critic puts, however it puts it.

To add one, write a function `(work, options) -> CRITIQUES` and declare it as a `Block` in a file of its own (docs:
*write a block*); several critics, several draws and several judges fit one table.
"""

from tasks.blocks.critique import certainty, checklist, consensus, factored, holistic, pairwise, points, truth, vote
from tasks.core.block import Block

BLOCKS: dict[str, Block] = {
    **factored.BLOCKS,
    **holistic.BLOCKS,
    **vote.BLOCKS,
    **truth.BLOCKS,
    **points.BLOCKS,
    **pairwise.BLOCKS,
    **checklist.BLOCKS,
    **certainty.BLOCKS,
    **consensus.BLOCKS,
}

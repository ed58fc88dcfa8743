"""SFT: weighted cross-entropy on completions.

A step draws `mixture[part]` rows of each part, so the share of own data and of replayed skills does not depend on how
many rows there are.
"""

from tasks.blocks.train.job import Job, Trained, counts, fit, sft_batches, wanted
from tasks.core.block import Block
from tasks.core.errors import EmptyDataset, StageFailed
from tasks.core.training.options import SftOptions


def sft(job: Job, options: SftOptions) -> Trained:
    """Weighted cross-entropy on the completions of the dataset's SFT rows. Raises `EmptyDataset`, and `StageFailed` where mixture and data do not name the
    same parts."""
    if job.sft.is_empty():
        raise EmptyDataset("sft: the dataset has no rows to train on; dropped.parquet beside it says why")
    unnamed = sorted(set(job.sft["part"]) - set(options.mixture))
    if unnamed:
        raise StageFailed(
            f"sft.mixture does not say how many rows of {', '.join(repr(p) for p in unnamed)} a step takes; "
            "name every part of the data, with 0 for one that is not to be used"
        )
    source = sft_batches(job, options, options.mixture, 1.0, "sft.mixture", options.packing)
    return fit("sft", job, options, [source], counts(job.sft, options.mixture))


def _needs(options: SftOptions) -> frozenset[str]:
    return wanted(options.mixture, "rows of ")


BLOCKS = {"sft": Block(sft, needs=_needs, phase="sft")}

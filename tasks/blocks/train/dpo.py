"""DPO: weighted, smoothed preferences against a reference model.

A step draws `batch_size` pairs, and `replay[part]` rows of SFT data beside them, because a small model forgets the
skills that the pairs do not exercise.
"""

import numpy as np

from tasks.blocks.train.job import (
    Job,
    Trained,
    advising,
    counts,
    encode,
    fit,
    runs_apart,
    sft_batches,
    use_threads,
    weights_of,
)
from tasks.core import digests
from tasks.core.block import Block
from tasks.core.errors import EmptyDataset, StageFailed
from tasks.core.models import folders
from tasks.core.training import batches
from tasks.core.training.options import DpoOptions
from tasks.core.training.request import Reference


def dpo(job: Job, options: DpoOptions) -> Trained:
    """Preferences of the dataset's pairs, against the reference model (Direct Preference Optimization, Rafailov et al.
    2023). Raises `EmptyDataset` without pairs."""
    if job.pairs.is_empty():
        raise EmptyDataset("dpo: the dataset has no pairs to train on; dropped.parquet beside it says why")
    sources: list[batches.Batches] = [_pair_batches(job, options)]
    rows = {"pairs": job.pairs.height}
    if sum(options.replay.values()):
        sources.append(sft_batches(job, options, options.replay, options.replay_coefficient, "dpo.replay", False))
        rows = counts(job.sft, options.replay) | rows
    return fit("dpo", job, options, sources, rows)


def _pair_batches(job: Job, options: DpoOptions) -> batches.PairBatches:
    table = job.pairs.sort("row_id", "iteration", "part", nulls_last=True)
    weights = weights_of(table["weight"], "pairs")
    smoothing = table["smoothing"].to_numpy()
    if not ((smoothing >= 0) & (smoothing <= 0.5)).all():
        raise StageFailed("pairs: a smoothing is not between 0 and 0.5")
    plan = batches.plan(["pairs"] * table.height, {"pairs": options.batch_size}, options.steps, job.seed, "dpo")
    drawn, plan = np.unique(plan, return_inverse=True)
    used = table[drawn.tolist()]
    ids, prompts = used["row_id"].to_list(), used["prompt"].to_list()
    rows = encode(job, prompts * 2, used["chosen"].to_list() + used["rejected"].to_list(), ids * 2)
    reference = _reference(job, options, rows)
    plan = plan.reshape(options.steps, -1)
    return batches.PairBatches(rows, weights[drawn], smoothing[drawn], reference, plan, options.pass_tokens)


def _reference(job: Job, options: DpoOptions, rows: batches.Rows) -> np.ndarray:
    """Summed log-probabilities of the rows under the reference model. Raises `OutOfMemory`."""
    request = Reference(job.reference, rows, options.precision, options.pass_tokens, options.threads)

    def progress(done: int, total: int) -> None:
        job.progress("reference", done, total)

    less = f"lower {job.section or 'dpo'}.pass_tokens (given {options.pass_tokens}), or use a smaller model"
    with advising("the reference model", lambda: less):
        if runs_apart(job, options):
            from tasks.core.training import apart

            name = digests.of_value([folders.digest(job.reference), job.seed])
            return apart.reference_logps(request, progress, job.scratch / "training" / f"reference-{name}")
        use_threads(options.threads)
        from tasks.core.training.losses import reference_logps

        return reference_logps(request, progress)


def _needs(options: DpoOptions) -> frozenset[str]:
    return frozenset({"pairs", *(f"rows of {part}" for part, rows in options.replay.items() if rows)})


BLOCKS = {"dpo": Block(dpo, needs=_needs, phase="dpo")}

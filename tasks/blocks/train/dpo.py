"""Weighted, smoothed preferences."""

import numpy as np

from tasks.blocks.train.job import Job, advising, counts, encode, fit, runs_apart, sft_batches, use_threads, weights_of
from tasks.core import digests
from tasks.core.errors import EmptyDataset, StageFailed
from tasks.core.models import folders
from tasks.core.training import batches
from tasks.core.training.options import DpoOptions


def dpo(job: Job, options: DpoOptions) -> None:
    """Preferences of the dataset's pairs, against the reference model. Raises `EmptyDataset` without pairs."""
    if job.pairs.is_empty():
        raise EmptyDataset("dpo: the dataset has no pairs to train on; dropped.parquet beside it says why")
    sources: list[batches.Batches] = [_pair_batches(job, options)]
    if sum(options.replay.values()):
        sources.append(sft_batches(job, options, options.replay, options.replay_coefficient, "dpo.replay", False))
        job.rows.update(counts(job.sft, options.replay))
    job.rows["pairs"] = job.pairs.height
    fit("dpo", job, options, sources)


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

    def progress(done: int, total: int) -> None:
        job.progress("reference", done, total)

    less = f"lower {job.section or 'dpo'}.pass_tokens (given {options.pass_tokens}), or use a smaller model"
    with advising("the reference model", lambda: less):
        if runs_apart(job, options):
            from tasks.core.training import apart as process

            place = (
                job.scratch / "training" / f"reference-{digests.of_value([folders.digest(job.reference), job.seed])}"
            )
            return process.reference_logps(
                job.reference, rows, options.precision, progress, options.pass_tokens, options.threads, place
            )
        use_threads(options.threads)
        from tasks.core.training.losses import reference_logps

        return reference_logps(job.reference, rows, options.precision, progress, options.pass_tokens)

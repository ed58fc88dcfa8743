"""KTO: answers that are good or bad by themselves, against a reference model.

A step draws `mixture[part]` rated rows of each part, and `replay[part]` rows of SFT data beside them.
"""

import numpy as np

from tasks.blocks.train.job import (
    Job,
    Trained,
    counts,
    encode,
    fit,
    reference_logps,
    replayed,
    replays,
    wanted,
    weights_of,
)
from tasks.core.block import Block
from tasks.core.errors import EmptyDataset
from tasks.core.training import batches
from tasks.core.training.options import KtoOptions


def kto(job: Job, options: KtoOptions) -> Trained:
    """The dataset's rated rows, against the reference model (KTO: Model Alignment as Prospect Theoretic Optimization,
    Ethayarajh et al. 2024). Raises `EmptyDataset` without such rows."""
    if job.rated.is_empty():
        raise EmptyDataset("kto: the dataset has no rated rows to train on; dropped.parquet beside it says why")
    rows = {f"rated {part}": found for part, found in counts(job.rated, options.mixture).items()}
    return fit(
        "kto", job, options, [_batches(job, options), *replayed(job, options, "kto")], replays(job, options) | rows
    )


def _batches(job: Job, options: KtoOptions) -> batches.RatedBatches:
    table = job.rated.sort("row_id", "iteration", "part", nulls_last=True)
    plan = batches.plan(table["part"].to_list(), options.mixture, options.steps, job.seed, "kto.mixture")
    drawn, plan = np.unique(plan, return_inverse=True)
    plan = plan.reshape(options.steps, -1)
    used = table[drawn.tolist()]
    labels = used["label"].to_numpy()
    weights = weights_of(used["weight"], "rated") * np.where(labels, options.desirable, options.undesirable)
    prompts, replies, ids = (used[column].to_list() for column in ("prompt", "completion", "row_id"))
    others = np.roll(plan, 1, axis=1)
    rows = encode(job, prompts, replies, ids)
    strangers = encode(
        job,
        [prompts[i] for i in plan.ravel()],
        [replies[i] for i in others.ravel()],
        [ids[i] for i in plan.ravel()],
    )
    known, strange = (reference_logps(job, options, several) for several in (rows, strangers))
    return batches.RatedBatches(rows, labels, weights, known, plan, strangers, strange, options.pass_tokens)


def _needs(options: KtoOptions) -> frozenset[str]:
    return wanted(options.mixture, "rated rows of ") | wanted(options.replay, "rows of ")


BLOCKS = {"kto": Block(kto, needs=_needs, phase="kto")}

"""DPO: weighted, smoothed preferences against a reference model.

A step draws `mixture[part]` pairs of each part, and `replay[part]` rows of SFT data beside them, because a small model
forgets the skills that the pairs do not exercise.
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
from tasks.core.errors import EmptyDataset, StageFailed
from tasks.core.training import batches
from tasks.core.training.options import DpoOptions

OWN, PAIRS = "own", "pairs"  # the model's own pairs are planned under a name of their own, not that of its own rows


def dpo(job: Job, options: DpoOptions) -> Trained:
    """Preferences of the dataset's pairs, against the reference model (Direct Preference Optimization, Rafailov et al.
    2023). Raises `EmptyDataset` without pairs."""
    if job.pairs.is_empty():
        raise EmptyDataset("dpo: the dataset has no pairs to train on; dropped.parquet beside it says why")
    rows = {PAIRS if part == OWN else part: found for part, found in counts(job.pairs, options.mixture).items()}
    return fit(
        "dpo", job, options, [_pair_batches(job, options), *replayed(job, options, "dpo")], replays(job, options) | rows
    )


def _pair_batches(job: Job, options: DpoOptions) -> batches.PairBatches:
    table = job.pairs.sort("row_id", "iteration", "part", nulls_last=True)
    weights = weights_of(table["weight"], "pairs")
    smoothing = table["smoothing"].to_numpy()
    if not ((smoothing >= 0) & (smoothing <= 1)).all():
        raise StageFailed("pairs: a smoothing is not between 0 and 1")
    parts, mixture = table["part"].replace(OWN, PAIRS).to_list(), dict(options.mixture)
    if OWN in mixture:
        mixture[PAIRS] = mixture.pop(OWN)
    plan = batches.plan(parts, mixture, options.steps, job.seed, "dpo.mixture")
    drawn, plan = np.unique(plan, return_inverse=True)
    used = table[drawn.tolist()]
    ids, prompts = used["row_id"].to_list(), used["prompt"].to_list()
    rows = encode(job, prompts * 2, used["chosen"].to_list() + used["rejected"].to_list(), ids * 2)
    reference = reference_logps(job, options, rows)
    plan, margins = plan.reshape(options.steps, -1), used["margin"].to_numpy()
    return batches.PairBatches(rows, weights[drawn], smoothing[drawn], margins, reference, plan, options.pass_tokens)


def _needs(options: DpoOptions) -> frozenset[str]:
    return wanted(options.mixture, "pairs of ") | wanted(options.replay, "rows of ")


BLOCKS = {"dpo": Block(dpo, needs=_needs, phase="dpo")}

"""Training blocks: `sft` (weighted cross-entropy on completions) and `dpo` (weighted, smoothed preferences).

Both read tables of the dataset (`SFT`, `PAIRS`; see tasks/core/tables.py) and turn one model folder into
another. The formulas are in tasks/core/training/trainers.py. `sft` draws `mixture[part]` rows of each part in every
step, so the share of own data and of replayed skills does not depend on how many rows there are; `dpo`
draws `batch_size` pairs, and `replay[part]` rows of SFT data beside them, because a small model forgets
the skills that the pairs do not exercise. Options of both:

steps, learning_rate, warmup_steps, schedule (cosine, linear, constant, or wsd: decay over the last 30 %), final_share
(of the learning rate), betas, weight_decay, clip (gradient norm), precision, threads, checkpoint_steps, pass_tokens
(what a forward pass holds: a step of any size is cut into as many passes as it needs, whose gradients add up),
gradient_checkpointing, accelerate (null, or the configuration file that `accelerate launch` trains with, on several
GPUs or machines), lora (null, or an adapter: kept alone, or merged into the weights). `sft` also has packing: rows end
to end instead of side by side.

A training that was killed continues from its last checkpoint, and ends in the same bytes. Where bytes are not promised
(on a GPU, or with accelerate), it also does with other `pass_tokens` and `gradient_checkpointing`, which are what one
changes when memory runs out.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from tasks.core import digests, memory
from tasks.core.blocks import Block, Options
from tasks.core.errors import BadInput, EmptyDataset, OutOfMemory, StageFailed
from tasks.core.models import folders, tokenizers
from tasks.core.models.pointer import Pointer
from tasks.core.training import batches, checkpoints

VERSION = 1  # of the loss and the plan: a checkpoint of another version is not continued
Mixture = dict[str, Annotated[int, Field(ge=0)]]


class LoraOptions(Options):
    """Low-rank adapters (Hu et al. 2021) on the linear layers named in `targets`. `adapter`: keep writes the adapter
    alone, merge a whole model; `load_in_4bit`: on a base in 4 bits (QLoRA)."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)  # the adapter counts alpha / rank times
    dropout: float = Field(ge=0, lt=1)  # of the adapter's input
    targets: list[str] = Field(min_length=1)  # names of layers, such as q_proj
    adapter: Literal["keep", "merge"]  # the adapter alone, or a whole model
    load_in_4bit: bool  # the base in 4 bits (QLoRA)

    @field_validator("targets")
    @classmethod
    def _no_head(cls, targets: list[str]) -> list[str]:
        for name in ("lm_head", "embed_tokens", "wte", "word_embeddings", "embed_in"):  # maybe one matrix, tied
            if name in {target.rpartition(".")[2] for target in targets}:
                raise ValueError(f"{name} takes no adapter; name layers such as q_proj and v_proj")
        return targets


class TrainingOptions(Options):
    """What both blocks share."""

    steps: int = Field(ge=1)  # of the optimizer (AdamW)
    learning_rate: float = Field(gt=0)  # the highest
    warmup_steps: int = Field(ge=0)  # in which it rises linearly
    schedule: Literal[
        "cosine", "linear", "constant", "wsd"
    ]  # how it falls; wsd: linearly in the last 30 % of the steps
    final_share: float = Field(ge=0, le=1)  # what is left of it in the end
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(min_length=2, max_length=2)  # of AdamW
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)  # largest norm of a step's gradient
    precision: Literal["float32", "bfloat16"]  # bfloat16: mixed
    threads: int = Field(ge=1)  # of a CPU
    checkpoint_steps: int = Field(ge=1)  # between two checkpoints
    pass_tokens: int = Field(ge=1)  # tokens that go through the model at once; gradients of a step add up
    gradient_checkpointing: bool  # activations are computed again instead of kept
    accelerate: str | None  # file for `accelerate launch`; null: one process
    lora: LoraOptions | None  # null: all weights are trained


class SftOptions(TrainingOptions):
    """`mixture`: rows of each part in every step. A part of 0 rows may be in the data and is not used."""

    mixture: Mixture = Field(min_length=1)  # part -> rows in every step
    packing: bool  # rows end to end

    @field_validator("mixture")
    @classmethod
    def _some_rows(cls, mixture: dict[str, int]) -> dict[str, int]:
        if not sum(mixture.values()):
            raise ValueError("a step needs at least one row")
        return mixture


class DpoOptions(TrainingOptions):
    """`nll`: coefficient of the chosen response's cross-entropy per token; `replay`: SFT rows of each part in
    every step, {} for none, their loss taken `replay_coefficient` times."""

    batch_size: int = Field(ge=1)  # pairs in every step
    loss: Literal["sigmoid", "ipo"]  # DPO's, or IPO's
    beta: float = Field(gt=0)  # how closely the reference model is kept to
    nll: float = Field(ge=0)  # coefficient of the chosen response's cross-entropy a token
    replay: Mixture  # part -> SFT rows in every step beside the pairs; {} for none
    replay_coefficient: float = Field(ge=0)  # of their loss


@dataclass(frozen=True)
class Job:
    """One training: model folders in and out, tables, and where progress and figures go."""

    initial: Path
    reference: Path
    sft: pl.DataFrame  # table SFT
    pairs: pl.DataFrame  # table PAIRS
    output: Path
    scratch: Path  # checkpoints are kept below it
    seed: int
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    base: Pointer | None = None  # what an adapter that is kept names as its base; None: the initial model's own folder
    apart: Literal["auto", "always", "never"] = "never"  # whether in a process of its own; auto: where there is a GPU
    section: str = ""  # of params.yaml, for messages, such as train.sft; "" if of none
    release: Callable[[], None] = lambda: None  # gives the memory of loaded engines back, called before such a process
    curves: list[dict[str, float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)  # figures that add up over trainings
    rows: dict[str, int] = field(default_factory=dict)  # part -> rows of the data that a step can draw


def sft(job: Job, options: SftOptions) -> None:
    """Weighted cross-entropy on the completions of the dataset's SFT rows. Raises `EmptyDataset`, and `StageFailed` where
    mixture and data do not name the same parts."""
    if job.sft.is_empty():
        raise EmptyDataset("sft: the dataset has no rows to train on; dropped.parquet beside it says why")
    unnamed = sorted(set(job.sft["part"]) - set(options.mixture))
    if unnamed:
        raise StageFailed(
            f"sft.mixture does not say how many rows of {', '.join(repr(p) for p in unnamed)} a step takes; "
            "name every part of the data, with 0 for one that is not to be used"
        )
    source = sft_batches(job, options, options.mixture, 1.0, "sft.mixture", options.packing)
    job.rows.update(_counts(job.sft, options.mixture))
    _fit("sft", job, options, [source])


def dpo(job: Job, options: DpoOptions) -> None:
    """Preferences of the dataset's pairs, against the reference model. Raises `EmptyDataset` without pairs."""
    if job.pairs.is_empty():
        raise EmptyDataset("dpo: the dataset has no pairs to train on; dropped.parquet beside it says why")
    sources: list[batches.Batches] = [_pair_batches(job, options)]
    if sum(options.replay.values()):
        sources.append(sft_batches(job, options, options.replay, options.replay_coefficient, "dpo.replay", False))
        job.rows.update(_counts(job.sft, options.replay))
    job.rows["pairs"] = job.pairs.height
    _fit("dpo", job, options, sources)


BLOCKS: dict[str, Block] = {"sft": sft, "dpo": dpo}
PHASE = {sft: 0, dpo: 1}  # blocks of one stage run in this order, each from the one before


def rows(options: TrainingOptions) -> int:
    """Rows that a whole training reads: steps times the rows of a step; a pair is two rows."""
    step = sum(options.mixture.values()) if isinstance(options, SftOptions) else 0
    if isinstance(options, DpoOptions):
        step = 2 * options.batch_size + sum(options.replay.values())
    return options.steps * step


def use_threads(threads: int) -> None:
    """Sets the threads that torch computes with. Bytes depend on their number."""
    if "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _counts(table: pl.DataFrame, mixture: dict[str, int]) -> dict[str, int]:
    return {part: int((table["part"] == part).sum()) for part, wanted in mixture.items() if wanted}


def sft_batches(
    job: Job, options: TrainingOptions, mixture: dict[str, int], scale: float, what: str, packed: bool
) -> batches.SftBatches:
    """The plan over `job.sft`; only rows that it draws are tokenised."""
    table = job.sft.sort("row_id", "iteration", "part", nulls_last=True)
    weights = _weights(table["weight"], "sft")
    plan = batches.plan(table["part"].to_list(), mixture, options.steps, job.seed, what)
    drawn, plan = np.unique(plan, return_inverse=True)
    used = table[drawn.tolist()]
    rows = _encode(job, used["prompt"].to_list(), used["completion"].to_list(), used["row_id"].to_list())
    plan = plan.reshape(options.steps, -1)
    return batches.SftBatches(rows, weights[drawn], plan, scale, options.pass_tokens, packed)


def _pair_batches(job: Job, options: DpoOptions) -> batches.PairBatches:
    table = job.pairs.sort("row_id", "iteration", "part", nulls_last=True)
    weights = _weights(table["weight"], "pairs")
    smoothing = table["smoothing"].to_numpy()
    if not ((smoothing >= 0) & (smoothing <= 0.5)).all():
        raise StageFailed("pairs: a smoothing is not between 0 and 0.5")
    plan = batches.plan(["pairs"] * table.height, {"pairs": options.batch_size}, options.steps, job.seed, "dpo")
    drawn, plan = np.unique(plan, return_inverse=True)
    used = table[drawn.tolist()]
    ids, prompts = used["row_id"].to_list(), used["prompt"].to_list()
    rows = _encode(job, prompts * 2, used["chosen"].to_list() + used["rejected"].to_list(), ids * 2)
    reference = _reference(job, options, rows)
    plan = plan.reshape(options.steps, -1)
    return batches.PairBatches(rows, weights[drawn], smoothing[drawn], reference, plan, options.pass_tokens)


def _reference(job: Job, options: DpoOptions, rows: batches.Rows) -> np.ndarray:
    """Summed log-probabilities of the rows under the reference model. Raises `OutOfMemory`."""

    def progress(done: int, total: int) -> None:
        job.progress("reference", done, total)

    less = f"lower {job.section or 'dpo'}.pass_tokens (given {options.pass_tokens}), or use a smaller model"
    with _advising("the reference model", lambda: less):
        if _apart(job, options):
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


def _apart(job: Job, options: TrainingOptions) -> bool:
    """Whether to train in a process of its own; then engines give their memory back first. Raises `BadInput` where the
    file for accelerate is not there."""
    if options.accelerate is not None and not Path(options.accelerate).is_file():
        raise BadInput(
            f"accelerate: given {options.accelerate!r}: there is no such file; `accelerate config` makes one"
        )
    apart = job.apart == "always" or options.accelerate is not None
    if not apart and job.apart == "auto":
        use_threads(options.threads)
        import torch

        apart = torch.cuda.is_available()
    if apart:
        job.release()
    return apart


def _weights(column: pl.Series, name: str) -> np.ndarray:
    weights = column.to_numpy()
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise StageFailed(f"{name}: a weight is negative or no number")
    if not weights.sum():
        raise StageFailed(f"{name}: every weight is 0, so there is nothing to learn")
    return weights


def _encode(job: Job, prompts: list[Any], completions: list[Any], ids: list[str]) -> batches.Rows:
    limit = folders.read_config(job.initial).get("max_position_embeddings") or sys.maxsize
    return batches.encode(tokenizers.load_tokenizer(job.initial), prompts, completions, ids, int(limit))


def _fit(kind: str, job: Job, options: TrainingOptions, sources: list[batches.Batches]) -> None:
    """Trains, here or in a process of its own, and reports tokens, rows and speed."""
    apart = _apart(job, options)
    place = job.scratch / "training" / _key(kind, job, options, sources)

    def progress(done: int, total: int) -> None:
        job.progress(kind, done, total)

    with _advising("training", lambda: _less(job.section or kind, options, place)):
        if apart:
            from tasks.core.training import apart as process

            asked = options.model_dump()
            fitted = process.fit(kind, job.initial, job.output, place, sources, asked, job.seed, progress, job.base)
        else:
            use_threads(options.threads)
            from tasks.core.training import trainers

            fitted = trainers.fit(kind, job.initial, job.output, place, sources, options, job.seed, progress, job.base)
    before = max((int(entry["step"]) for entry in job.curves), default=0)
    for entry in fitted.history:
        kept: dict[str, float] = {
            name: float(entry[name]) for name in ("loss", "grad_norm", "learning_rate") if name in entry
        }
        job.curves.append(kept | {"step": before + entry["step"]})
    tokens = np.sum([source.step_tokens() for source in sources], axis=0)
    timed = int(tokens[options.steps - fitted.steps :].sum())
    job.spent["training_tokens"] = timed
    job.figures.update(
        {
            f"{kind}_tokens": int(tokens.sum()),
            f"{kind}_rows": sum(source.plan.size for source in sources),
            f"{kind}_tokens_per_second": timed / fitted.seconds if fitted.seconds else 0.0,
            f"{kind}_loss": fitted.history[-1]["loss"] if fitted.history else float("nan"),
        }
    )


@contextlib.contextmanager
def _advising(what: str, advice: Callable[[], str]) -> Iterator[None]:
    """Says what takes less memory where it does not suffice."""
    try:
        with memory.told(f"{what} ran out of memory"):
            yield
    except OutOfMemory as error:
        raise OutOfMemory(f"{error}; {advice()}") from error


def _exact(options: TrainingOptions) -> bool:
    """Whether equal arguments give equal bytes: in one process and without a GPU."""
    use_threads(options.threads)
    import torch

    return options.accelerate is None and not torch.cuda.is_available()


def _key(kind: str, job: Job, options: TrainingOptions, sources: list[batches.Batches]) -> str:
    """Of the checkpoints: what decides what is learnt. Numbers of the reference model do through the model that they are
    of: on a GPU they are not the same from run to run."""
    known = job.scratch / digests.KNOWN
    rounding = set() if _exact(options) else {"pass_tokens", "gradient_checkpointing"}
    settings = options.model_dump(exclude={"checkpoint_steps", *rounding})
    content = [
        replace(source, reference=np.zeros(0)).digest() if isinstance(source, batches.PairBatches) else source.digest()
        for source in sources
    ]
    launch = digests.of_file(Path(options.accelerate)) if options.accelerate else None
    given = [folders.digest(folder, known) for folder in (job.initial, job.reference)[: 1 + (kind == "dpo")]]
    return digests.of_value([VERSION, kind, given, settings, job.seed, content, launch])


def _less(section: str, options: TrainingOptions, place: Path) -> str:
    """What takes less memory, and what is kept of a training that had not enough."""
    ways = [f"lower {section}.pass_tokens (given {options.pass_tokens})"]
    ways += [] if options.gradient_checkpointing else [f"set {section}.gradient_checkpointing"]
    ways += [] if options.lora else [f"use {section}.lora"]
    advice = " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
    last = checkpoints.latest(place)
    if last is None:
        return f"{advice}; it begins anew, no checkpoint was written yet ({section}.checkpoint_steps: {options.checkpoint_steps})"
    kept = f"it goes on from its last checkpoint (step {checkpoints.step(last)})"
    if _exact(options):
        return f"{advice}; {kept} if it is run again as it is, and begins anew with other options"
    return f"{advice}; {kept}{'' if options.lora else ', with lora anew'}"

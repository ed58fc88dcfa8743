"""One training of a stage: from model folder to model folder, here or in a process of its own.

A training block is a function `(job, options) -> Trained`. It reads tables of the dataset (SFT, PAIRS, RATED) and plans what
every step is fed (`tasks.core.training.batches`). The formulas are in `tasks.core.training.trainers`.

A training that was killed continues from its last checkpoint, and ends in the same bytes. Where bytes are not promised
(on a GPU, or with accelerate), it also does with other `pass_tokens` and `gradient_checkpointing`, which are what one
changes when memory runs out.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from tasks.core import digests, memory, tables
from tasks.core.errors import BadInput, OutOfMemory, StageFailed
from tasks.core.models import folders, tokenizers
from tasks.core.models.pointer import Pointer
from tasks.core.training import batches, checkpoints, encoding
from tasks.core.training.options import AnchoredOptions, TrainingOptions
from tasks.core.training.request import Fit, Fitted, Kind, Reference

VERSION = 1  # of the loss and the plan: a checkpoint of another version is not continued
CURVES = ("loss", "grad_norm", "learning_rate")  # that are kept of every logged step


@dataclass(frozen=True)
class Job:
    """One training: model folders in and out, and the tables of the dataset."""

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
    rated: pl.DataFrame = tables.nothing(tables.RATED)  # table RATED
    release: Callable[[], None] = lambda: None  # gives the memory of loaded engines back, called before such a process


@dataclass(frozen=True)
class Trained:
    """What a training was like. `rows`: part -> rows of the data that a step could draw; `curve`: one mapping for each
    logged step, with `step` counted from 1; `spent`: figures that add up over trainings."""

    rows: Mapping[str, int]
    curve: Sequence[Mapping[str, float]] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)


def use_threads(threads: int) -> None:
    """Sets the threads that torch computes with. Bytes depend on their number."""
    if "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def counts(table: pl.DataFrame, mixture: Mapping[str, int]) -> dict[str, int]:
    """Rows of every part that the mixture draws from."""
    return {part: int((table["part"] == part).sum()) for part, wanted in mixture.items() if wanted}


def sft_batches(
    job: Job, options: TrainingOptions, mixture: dict[str, int], scale: float, what: str, packed: bool
) -> batches.SftBatches:
    """The plan over `job.sft`; only rows that it draws are tokenised."""
    table = job.sft.sort("row_id", "iteration", "part", nulls_last=True)
    weights = weights_of(table["weight"], "sft")
    plan = batches.plan(table["part"].to_list(), mixture, options.steps, job.seed, what)
    drawn, plan = np.unique(plan, return_inverse=True)
    used = table[drawn.tolist()]
    told = used["message_weights"].to_list()
    rows = encode(job, used["prompt"].to_list(), used["completion"].to_list(), used["row_id"].to_list(), told)
    plan = plan.reshape(options.steps, -1)
    return batches.SftBatches(rows, weights[drawn], plan, scale, options.pass_tokens, packed)


def replayed(job: Job, options: AnchoredOptions, what: str) -> list[batches.Batches]:
    """The SFT rows that ride along in every step, [] for none."""
    if not sum(options.replay.values()):
        return []
    return [sft_batches(job, options, options.replay, options.replay_coefficient, f"{what}.replay", False)]


def replays(job: Job, options: AnchoredOptions) -> dict[str, int]:
    """Rows of every part that is replayed."""
    return counts(job.sft, options.replay)


def wanted(mixture: Mapping[str, int], what: str) -> frozenset[str]:
    """What a mixture needs, in the words of `tasks.core.block`. `what`: such as "rows of "."""
    return frozenset(f"{what}{part}" for part, rows in mixture.items() if rows)


def reference_logps(job: Job, options: TrainingOptions, rows: encoding.Rows) -> np.ndarray:
    """Summed log-probabilities of the rows under the reference model. Raises `OutOfMemory`."""
    request = Reference(job.reference, rows, options.precision, options.pass_tokens, options.threads)

    def progress(done: int, total: int) -> None:
        job.progress("reference", done, total)

    less = f"lower {job.section or 'training'}.pass_tokens (given {options.pass_tokens}), or use a smaller model"
    with advising("the reference model", lambda: less):
        if runs_apart(job, options):
            from tasks.core.training import apart

            name = digests.of_value([folders.digest(job.reference), job.seed])
            return apart.reference_logps(request, progress, job.scratch / "training" / f"reference-{name}")
        use_threads(options.threads)
        from tasks.core.training import losses

        return losses.reference_logps(request, progress)


def runs_apart(job: Job, options: TrainingOptions) -> bool:
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


def weights_of(column: pl.Series, name: str) -> np.ndarray:
    weights = column.to_numpy()
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise StageFailed(f"{name}: a weight is negative or no number")
    if not weights.sum():
        raise StageFailed(f"{name}: every weight is 0, so there is nothing to learn")
    return weights


def encode(
    job: Job,
    prompts: list[Any],
    completions: list[Any],
    ids: list[str],
    weights: Sequence[Sequence[float] | None] = (),
) -> encoding.Rows:
    """Token rows for the job's model. `weights`: of the messages of each completion, None or nothing: each 1."""
    limit = folders.read_config(job.initial).get("max_position_embeddings") or sys.maxsize
    return encoding.encode(tokenizers.load_tokenizer(job.initial), prompts, completions, ids, int(limit), weights)


def fit(
    kind: Kind, job: Job, options: TrainingOptions, sources: Sequence[batches.Batches], rows: Mapping[str, int]
) -> Trained:
    """Trains, here or in a process of its own; `rows`: as in `Trained`."""
    place = job.scratch / "training" / _key(kind, job, options, sources)
    request = Fit(kind, job.initial, job.output, place, tuple(sources), options, job.seed, job.base)

    def progress(done: int, total: int) -> None:
        job.progress(kind, done, total)

    with advising("training", lambda: _less(job.section or kind, options, place)):
        if runs_apart(job, options):
            from tasks.core.training import apart

            fitted = apart.fit(request, progress)
        else:
            use_threads(options.threads)
            from tasks.core.training import trainers

            fitted = trainers.fit(request, progress)
    return _told(request, fitted, rows)


def _told(request: Fit, fitted: Fitted, rows: Mapping[str, int]) -> Trained:
    """The training's tokens, rows, speed and curve."""
    kind, tokens = request.kind, np.sum([source.step_tokens() for source in request.sources], axis=0)
    timed = int(tokens[request.options.steps - fitted.steps :].sum())
    curve = [
        {name: float(entry[name]) for name in CURVES if name in entry} | {"step": entry["step"]}
        for entry in fitted.history
    ]
    figures = {
        f"{kind}_tokens": int(tokens.sum()),
        f"{kind}_rows": sum(source.plan.size for source in request.sources),
        f"{kind}_tokens_per_second": timed / fitted.seconds if fitted.seconds else 0.0,
        f"{kind}_loss": fitted.history[-1]["loss"] if fitted.history else float("nan"),
    }
    return Trained(rows, curve, figures, {"training_tokens": timed})


@contextlib.contextmanager
def advising(what: str, advice: Callable[[], str]) -> Iterator[None]:
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


def _key(kind: str, job: Job, options: TrainingOptions, sources: Sequence[batches.Batches]) -> str:
    """Of the checkpoints: what decides what is learnt. Numbers of the reference model do through the model that they are
    of: on a GPU they are not the same from run to run."""
    known = job.scratch / digests.KNOWN
    rounding = set() if _exact(options) else {"pass_tokens", "gradient_checkpointing"}
    settings = options.model_dump(exclude={"checkpoint_steps", *rounding})
    content = [
        source.digest() if isinstance(source, batches.SftBatches) else source.without_reference().digest()
        for source in sources
    ]
    launch = digests.of_file(Path(options.accelerate)) if options.accelerate else None
    given = [folders.digest(folder, known) for folder in (job.initial, job.reference)[: 1 + (kind != "sft")]]
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

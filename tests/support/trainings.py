"""Trainings of a tiny model, for tests: its data and options, what comes out, and a file for accelerate."""

import functools
import random
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import psutil
import pytest
import torch
from safetensors.torch import load_file

from tasks.blocks.train import BLOCKS
from tasks.blocks.train.job import Job, Trained
from tasks.core import tables
from tasks.core.models import tokenizers
from tasks.core.models import weights as models_weights
from tasks.core.training.options import OPTIONS
from tests.support import tiny

TOKENIZER = tokenizers.make_tokenizer(["copy", ":", *(str(n) for n in range(10))], [], 300)
ARCHITECTURE = {**tiny.ARCHITECTURE, "max_position_embeddings": 32}
SHORT = {"steps": 12, "warmup_steps": 2, "checkpoint_steps": 5}
SFT = {**tiny.SFT, **SHORT, "mixture": {"own": 4, "skill": 2}}
DPO = {**tiny.DPO, **SHORT, "mixture": {"own": 3}, "nll": 0.2, "replay": {"skill": 2}, "replay_coefficient": 0.5}
KTO = {**tiny.KTO, **SHORT, "mixture": {"own": 4}, "replay": {"skill": 2}, "replay_coefficient": 0.5}
LORA = {**tiny.LORA, "dropout": 0.1, "adapter": "merge"}
KEPT = {**LORA, "adapter": "keep"}


class Done(NamedTuple):
    """A training that is over."""

    job: Job
    trained: Trained

    @property
    def output(self) -> Path:
        return self.job.output


def sft_rows(count: int = 20, **changes: Any) -> pl.DataFrame:
    drawn = random.Random(0)
    texts = [" ".join(str(drawn.randrange(10)) for _ in range(1 + i % 5)) for i in range(count)]
    number = pl.int_range(pl.len())
    own = (number % 2).cast(bool)
    table = tiny.sft_rows([(f"copy {digits} :", digits) for digits in texts]).with_columns(
        part=pl.when(own).then(pl.lit("own")).otherwise(pl.lit("skill")),
        weight=1.0 + number % 3,
        iteration=pl.when(own).then(pl.lit("i01")),
    )
    return tables.frame([{**row, **changes} for row in table.iter_rows(named=True)], tables.SFT)


def pair_rows(count: int = 7, **changes: Any) -> pl.DataFrame:
    table = tiny.pair_rows([(f"copy {i} {i} :", f"{i} {i}", str(9 - i)) for i in range(count)])
    smoothing = 0.1 * (pl.int_range(pl.len()) % 2)
    rows = table.with_columns(smoothing=smoothing).iter_rows(named=True)
    return tables.frame([{**row, **changes} for row in rows], tables.PAIRS)


def rated_rows(count: int = 9, **changes: Any) -> pl.DataFrame:
    return tiny.rated_rows(
        [(f"copy {i} {i} :", f"{i} {i}" if i % 3 else "9", i % 3 > 0) for i in range(count)], **changes
    )


def build(folder: Path, **changes: Any) -> Path:
    """The model that trainings start from; `changes` to its architecture."""
    models_weights.build({**ARCHITECTURE, **changes}, TOKENIZER, 0, folder)
    return folder


def run(
    place: Path,
    options: dict[str, Any],
    name: str = "out",
    *,
    initial: Path,
    kill_at: int | None = None,
    seed: int = 0,
    **changes: Any,
) -> Done:
    """Trains into `place / name`, interrupted at step `kill_at`; `changes` to what a `Job` is."""

    def progress(what: str, done: int, total: int) -> None:
        if kill_at is not None and what in BLOCKS and done == kill_at:
            raise KeyboardInterrupt

    given = {
        "sft": sft_rows(),
        "pairs": pair_rows(),
        "rated": rated_rows(),
        "initial": initial,
        "reference": initial,
        **changes,
    }
    job = Job(output=place / name, scratch=place / "scratch", seed=seed, progress=progress, **given)
    kind = "sft" if "packing" in options else "dpo" if "loss" in options else "kto"
    return Done(job, BLOCKS[kind].run(job, OPTIONS[kind](**options)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses_of(done: Done) -> list[float]:
    return [point["loss"] for point in done.trained.curve]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_learns_what_one_process_does(train: functools.partial[Done], options: dict[str, Any], file: Path) -> None:
    """Several processes, killed between two checkpoints and started again, against one that is left alone. `train`:
    `run`, its place and initial model given; `file`: for accelerate."""
    asked = {**options, "accelerate": str(file)}
    with pytest.raises(KeyboardInterrupt):
        train(asked, "several", kill_at=8)
    place = str(train.args[0])
    assert not [one for one in psutil.process_iter(["cmdline"]) if place in " ".join(one.info["cmdline"] or ())]
    several, one = train(asked, "several"), train(options, "one")
    assert several.trained.spent["training_tokens"] < one.trained.spent["training_tokens"]  # steps 6 to 12 only
    assert losses_of(several) == pytest.approx(losses_of(one), rel=1e-3)
    assert set(files(several.output)) == set(files(one.output))
    name = "adapter_model.safetensors" if options["lora"] else "model.safetensors"
    there, here = (load_file(done.output / name) for done in (several, one))
    assert there.keys() == here.keys()
    assert all(torch.allclose(there[name], tensor, atol=2e-3) for name, tensor in here.items())


# Two processes on this machine's CPUs.
ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 1
machine_rank: 0
num_processes: 2
main_process_port: 0
mixed_precision: 'no'
use_cpu: true
"""

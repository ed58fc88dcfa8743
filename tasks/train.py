"""train: the candidate of this iteration, trained on its dataset.

Reads `data/iN/dataset/{sft,pairs}.parquet` (tables SFT, PAIRS) and, through `pointer.json` of the row's
`initial` and `reference` iterations, two models. Writes `data/iN/candidate/`: a model folder, or, with `lora` and
`adapter: keep`, a PEFT adapter whose `base.json` names the whole model that it belongs to; and in it
`lineage.json`: the initial and the reference model (path, digest), the dataset's digest, the iteration,
and how many rows of each part were there to be drawn. Blocks run in the order sft, dpo, by name within a
kind, each from the model of the one before. Without blocks the candidate points at the initial model.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.blocks import train
from tasks.blocks.train import job as train_job
from tasks.core import digests, tables
from tasks.core.blocks import Bound, bind
from tasks.core.context import Context
from tasks.core.errors import BadInput
from tasks.core.models import folders
from tasks.core.models.pointer import Pointer
from tasks.core.seeds import derive


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks in the order in which they run. Raises `BadInput`."""
    blocks = sorted(bind(train.BLOCKS, section, "train"), key=lambda bound: (train.PHASE[bound.block], bound.name))
    whole = None
    for bound in blocks:
        keeps = bound.options.lora is not None and bound.options.lora.adapter == "keep"
        if keeps and whole:
            raise BadInput(
                f"train.{bound.name}.lora.adapter: given 'keep', but {whole} before it writes a whole model, which is kept "
                f"nowhere; let {whole} train an adapter that is kept too, or give merge"
            )
        whole = whole if keeps else bound.name
    return blocks


def run(context: Context) -> None:
    dataset = context.read(context.data("dataset"))
    sft = tables.read(dataset / "sft.parquet", tables.SFT)
    pairs = tables.read(dataset / "pairs.parquet", tables.PAIRS)
    initial = context.pointer(context.row["initial"])
    reference = context.pointer(context.row["reference"])
    start, anchor = _open(context, initial), _open(context, reference)
    base = folders.base_pointer(context.root, initial)
    absolute = Pointer(str(folders.parts(start).weights.resolve()), base.digest)  # for what lies outside the repository
    folder = context.write(context.data("candidate/lineage.json")).parent
    rows: dict[str, dict[str, int]] = {}
    source = digests.of_value([digests.of_path(dataset), initial.digest, reference.digest, context.seed])
    between = context.scratch / "training" / "between" / source
    so_far: list[Any] = [train_job.VERSION]
    for bound in context.options:
        last = bound is context.options[-1]
        so_far.append([bound.name, bound.block.__name__, bound.options.model_dump()])
        kept = between / digests.of_value(so_far)
        job = train_job.Job(
            initial=start,
            reference=anchor,
            sft=sft,
            pairs=pairs,
            output=folder if last else kept,
            base=base if last else absolute,
            section=f"train.{bound.name}",
            apart=context.apart,
            release=context.release,
            scratch=context.scratch,
            seed=derive(context.seed, bound.name),
            progress=context.progress,
            curves=context.curves,
        )
        if last:
            bound(job)
        else:
            _once(bound, job)
        context.log(**job.figures)
        context.spend(**job.spent)
        rows[bound.name] = job.rows
        start = job.output
    if not context.options:
        folders.write_pointer(folder, initial)
    lineage = {
        "initial": asdict(initial),
        "reference": asdict(reference),
        "dataset": digests.of_path(dataset),
        "iteration": context.key,
        "rows": rows,
    }
    (folder / "lineage.json").write_text(json.dumps(lineage, sort_keys=True, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(between, ignore_errors=True)
    context.tags.update(initial=initial.digest, reference=reference.digest)


def _once(bound: Bound, job: train_job.Job) -> None:
    """Trains what a later block starts from, or takes it up where that block failed the last time."""
    note = job.output.with_suffix(".json")
    if note.is_file() and job.output.is_dir():
        told = json.loads(note.read_text(encoding="utf-8"))
        job.curves.extend(told["curves"])
        job.figures.update(told["figures"])
        job.rows.update(told["rows"])
        print(f"{bound.name} was trained before, and is taken up", flush=True)
        return
    before = len(job.curves)
    bound(job)
    part = note.with_suffix(".part")
    told = {"curves": job.curves[before:], "figures": job.figures, "rows": job.rows}
    part.write_text(json.dumps(told), encoding="utf-8")
    part.replace(note)


def _open(context: Context, pointer: Pointer) -> Path:
    """The model's folder. Raises `MissingArtifact`, or `BadInput` if it is not what was promoted."""
    folder = folders.resolve(context.root, pointer)
    folders.verify(folder, pointer, context.scratch / digests.KNOWN)
    return folder

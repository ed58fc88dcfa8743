"""train: the candidate of this iteration, trained on its dataset.

Reads the dataset's `sft`, `pairs` and `rated` (tables SFT, PAIRS, RATED) and, through `pointer` of the row's
`initial` and `reference` iterations, two models. Writes `data/iN/candidate/`: a model folder, or, with `lora` and
`adapter: keep`, a PEFT adapter whose `base.json` names the whole model that it belongs to; and in it
`lineage.json`: the initial and the reference model (path, digest), the dataset's digest, the iteration,
and how many rows of each part were there to be drawn. Blocks run in the order sft, dpo, kto, by name within a
kind, each from the model of the one before. Without blocks the candidate points at the initial model.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tasks.blocks.train import BLOCKS, in_order
from tasks.blocks.train.job import VERSION, Job, Trained
from tasks.core import digests
from tasks.core.block import Bound, bind
from tasks.core.context import Context
from tasks.core.errors import BadInput
from tasks.core.models import folders
from tasks.core.models.pointer import Pointer
from tasks.core.seeds import derive

log = logging.getLogger(__name__)


def parse(section: Mapping[str, Any]) -> list[Bound]:
    """The section's blocks in the order in which they run. Raises `BadInput`."""
    blocks = in_order(bind(BLOCKS, section, "train"))
    whole = None
    for block in blocks:
        keeps = block.options.lora is not None and block.options.lora.adapter == "keep"
        if keeps and whole:
            raise BadInput(
                f"train.{block.name}.lora.adapter: given 'keep', but {whole} before it writes a whole model, which is kept "
                f"nowhere; let {whole} train an adapter that is kept too, or give merge"
            )
        whole = whole if keeps else block.name
    return blocks


def run(context: Context) -> None:
    initial, reference = context.pointer(context.row["initial"]), context.pointer(context.row["reference"])
    start, anchor = _open(context, initial), _open(context, reference)
    dataset = digests.of_path(context.path("dataset"))
    folder = context.folder("candidate")
    job = Job(
        initial=start,
        reference=anchor,
        sft=context.load("sft"),
        pairs=context.load("pairs"),
        rated=context.load("rated"),
        output=folder,
        base=folders.base_pointer(context.root, initial),
        apart=context.apart,
        release=context.release,
        scratch=context.scratch,
        seed=context.seed,
        progress=context.progress,
    )
    between = context.scratch / "training" / "between"
    between /= digests.of_value([dataset, initial.digest, reference.digest, context.seed])
    rows = {}
    for name, trained in chain(job, context.options, between):
        _report(context, trained)
        rows[name] = trained.rows
    if not context.options:
        folders.write_pointer(folder, initial)
    lineage = {
        "initial": asdict(initial),
        "reference": asdict(reference),
        "dataset": dataset,
        "iteration": context.iteration,
        "rows": rows,
    }
    context.save("lineage", lineage)
    shutil.rmtree(between, ignore_errors=True)
    context.tags.update(initial=initial.digest, reference=reference.digest)


def chain(job: Job, blocks: Sequence[Bound], between: Path) -> Iterator[tuple[str, Trained]]:
    """Trains block after block, each from the model of the one before, and gives each one's name and what it was like.
    The last one writes the job's output, the others into the folder `between`, where they are taken up if a later block
    failed."""
    absolute = job.base  # for what lies outside the repository
    if absolute is not None:
        absolute = Pointer(str(folders.parts(job.initial).weights.resolve()), absolute.digest)
    so_far: list[Any] = [VERSION]
    for block in blocks:
        own = replace(job, seed=derive(job.seed, block.name), section=f"train.{block.name}")
        so_far.append([block.name, block.kind, block.options.model_dump()])
        if block is blocks[-1]:
            yield block.name, block(own)
        else:
            own = replace(own, output=between / digests.of_value(so_far), base=absolute)
            yield block.name, _once(block, own)
        job = replace(job, initial=own.output)


def _once(block: Bound, job: Job) -> Trained:
    """Trains what a later block starts from, or takes it up where that block failed the last time."""
    note = job.output.with_suffix(".json")
    if note.is_file() and job.output.is_dir():
        log.info("%s was trained before, and is taken up", block.name)
        return Trained(**json.loads(note.read_text(encoding="utf-8")))
    trained: Trained = block(job)
    part = note.with_suffix(".part")
    part.write_text(json.dumps(asdict(replace(trained, spent={}))), encoding="utf-8")  # what was spent is counted once
    part.replace(note)
    return trained


def _report(context: Context, trained: Trained) -> None:
    """Figures, and the curve behind those of the trainings before."""
    before = max((int(entry["step"]) for entry in context.curves), default=0)
    context.curves.extend({**entry, "step": before + entry["step"]} for entry in trained.curve)
    context.log(**trained.figures)
    context.spend(**trained.spent)


def _open(context: Context, pointer: Pointer) -> Path:
    """The model's folder. Raises `MissingArtifact`, or `BadInput` if it is not what was promoted."""
    folder = folders.resolve(context.root, pointer)
    folders.verify(folder, pointer, context.scratch / digests.KNOWN)
    return folder

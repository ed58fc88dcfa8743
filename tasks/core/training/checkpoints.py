"""Checkpoints of a training, in a folder of their own in scratch: `checkpoint-STEP`, with a marker in those that are whole."""

import shutil
from pathlib import Path

COMPLETE = "complete"  # marker of a checkpoint that was written to its end


def step(checkpoint: Path) -> int:
    """The steps that were done when it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint; those that were cut off while they were written are removed."""
    found: list[Path] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).is_file():
            found.append(checkpoint)
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)  # of several processes each tries
    return max(found, key=step, default=None)

"""What a stage is given, and all that it is given: its row, its validated options, its inputs and outputs.

A stage is a function `run(context) -> None`. It reads input artifacts through `context.read(...)`,
writes every output through `context.write(...)`, which names a place in a staging folder, asks models
through `context.model(pointer)`, and reports figures with `context.log(...)`. The runner moves the
outputs into place, all of them, when the stage has returned.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.core.asking.model import Progress
from tasks.core.errors import missing
from tasks.core.models.pointer import Pointer

if TYPE_CHECKING:
    from tasks.core.asking.local import Asker


@dataclass
class Context:
    """One execution of one stage. `key` is the iteration ("i02"), or None for prepare and report."""

    stage: str
    key: str | None
    row: Mapping[str, str]  # previous, initial, reference, judge of this iteration
    options: Any  # the stage's validated section, overrides of the row applied
    seed: int  # already specific to stage and iteration
    labels: bool  # whether the recipe may use labels inside the loop
    engine: Mapping[str, Any]  # the validated `engine` section
    root: Path  # the repository, where input artifacts are
    staging: Path  # outputs are written below it, at the same relative path
    scratch: Path  # resumable work: shards, training checkpoints; safe to delete
    open_model: "Callable[[Pointer], Asker]"
    progress: Progress = lambda what, done, total: None
    apart: Literal["auto", "always", "never"] = "never"  # whether training runs in a process of its own
    release: Callable[[], None] = lambda: None  # gives the memory of loaded engines back
    iterations: tuple[str, ...] = ()  # all that are evaluated: i00 and those in params.yaml
    figures: dict[str, float] = field(default_factory=dict)  # logged to MLflow
    curves: list[dict[str, float]] = field(default_factory=list)  # one mapping per training step logged
    tags: dict[str, str] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)  # every input artifact asked for, for tests and messages
    writes: list[str] = field(default_factory=list)

    def read(self, relative: str) -> Path:
        """Absolute path of an input artifact. Raises `MissingArtifact`."""
        self.reads.append(relative)
        path = self.root / relative
        if not path.exists():
            raise missing(f"{self.name}: {relative}")
        return path

    def write(self, relative: str) -> Path:
        """Where to write an output artifact; its folder exists."""
        self.writes.append(relative)
        path = self.staging / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def data(self, file: str, key: str | None = None) -> str:
        """Relative path of an artifact of this (or another) iteration: data("samples.parquet")."""
        return f"data/{key or self.key}/{file}"

    def pointer(self, key: str) -> Pointer:
        """The policy that iteration `key` promoted."""
        record = json.loads(self.read(self.data("pointer.json", key)).read_text())
        return Pointer(record["path"], record["digest"])

    def point(self, pointer: Pointer, key: str | None = None) -> None:
        """Writes which model is the policy now, and nothing else: stages depend on this file, so that what a gate
        measured and said (`policy.json`) can change without rerunning the next iteration."""
        self.write(self.data("pointer.json", key)).write_text(pointer.text(), encoding="utf-8")

    def model(self, pointer: Pointer) -> "Asker":
        """A model to ask; it is loaded when the first request has no stored reply."""
        return self.open_model(pointer)

    def log(self, **figures: float) -> None:
        """Figures for MLflow: counts, shares, token counts. Never part of an artifact."""
        self.figures.update(figures)

    def spend(self, **figures: float) -> None:
        """Figures of what was used up, such as tokens and seconds: given twice, they add up."""
        self.figures.update({name: self.figures.get(name, 0) + value for name, value in figures.items()})

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.key}" if self.key else self.stage

"""What a stage is given, and all that it is given: its row, its validated options, its inputs and outputs.

A stage is a function `run(context) -> None`. It loads and saves artifacts by their names in the catalog
(`tasks.core.catalog`): `context.load("samples")`, `context.save("samples", frame)`, `context.folder("candidate")`. It
asks models through `context.model(pointer)`, sees the truth through `context.truth(family)`, the only door to it, and
reports figures with `context.log(...)`. Outputs lie in a staging folder until the stage has returned; then the runner
moves all of them into place.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from tasks.core import tables
from tasks.core.asking.model import Model, Progress
from tasks.core.catalog import ARTIFACTS
from tasks.core.errors import BadInput, missing
from tasks.core.family import Family
from tasks.core.labels import Truth
from tasks.core.models.pointer import Pointer


@dataclass
class Context:
    """One execution of one stage. `iteration` is like "i02", and None for prepare and report."""

    stage: str
    iteration: str | None
    row: Mapping[str, str]  # previous, initial, reference, judge and past of this iteration
    options: Any  # the stage's validated section, overrides of the row applied
    seed: int  # already specific to stage and iteration
    labels: bool  # whether the recipe may use labels inside the loop
    engine: Mapping[str, Any]  # the validated `engine` section
    root: Path  # the repository, where input artifacts are
    staging: Path  # outputs are written below it, at the same relative path
    scratch: Path  # resumable work: shards, training checkpoints; safe to delete
    open_model: Callable[[Pointer], Model]
    progress: Progress = lambda what, done, total: None
    apart: Literal["auto", "always", "never"] = "never"  # whether training runs in a process of its own
    release: Callable[[], None] = lambda: None  # gives the memory of loaded engines back
    iterations: tuple[str, ...] = ()  # all that are evaluated: i00 and those in params.yaml
    figures: dict[str, float] = field(default_factory=dict)  # logged to MLflow
    curves: list[dict[str, float]] = field(default_factory=list)  # one mapping per training step logged
    tags: dict[str, str] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)  # every input artifact asked for, for tests and messages
    writes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.iteration}" if self.iteration else self.stage

    # --- artifacts by name ---------------------------------------------------------------------------
    def load(self, name: str, iteration: str | None = None) -> Any:
        """An input artifact of this iteration, or of another one: a table as a frame, JSON as a mapping. Raises
        `MissingArtifact`, `TableMismatch`, or `BadInput` for what is no JSON."""
        artifact = ARTIFACTS[name]
        if artifact.sparse and artifact.schema and not (self.root / self.where(name, iteration)).exists():
            return tables.empty(artifact.schema)
        path = self.path(name, iteration)
        if artifact.schema is not None:
            return tables.read(path, artifact.schema)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{path} is no JSON ({error}); restore it with `dvc checkout`") from error

    def path(self, name: str, iteration: str | None = None) -> Path:
        """Where an input artifact lies. Raises `MissingArtifact`."""
        return self.read(self.where(name, iteration))

    def where(self, name: str, iteration: str | None = None) -> str:
        """The path of an artifact relative to the repository."""
        return ARTIFACTS[name].at(iteration or self.iteration)

    def save(self, name: str, value: pl.DataFrame | Mapping[str, Any] | str, iteration: str | None = None) -> None:
        """Writes an output artifact: a frame as canonical Parquet, a mapping as JSON (a figure that is no number is an
        error here, not in whoever reads it), a text as it stands."""
        artifact = ARTIFACTS[name]
        if artifact.sparse and isinstance(value, pl.DataFrame) and value.is_empty():
            return
        path = self.write(self.where(name, iteration))
        if isinstance(value, pl.DataFrame):
            assert artifact.schema is not None, f"{name} is no table"
            tables.write(value, path, artifact.schema, artifact.order)
        elif isinstance(value, str):
            path.write_text(value, encoding="utf-8")
        else:
            text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")

    def folder(self, name: str, iteration: str | None = None) -> Path:
        """Where to write an output folder; it exists and is empty."""
        path = self.write(self.where(name, iteration))
        path.mkdir(exist_ok=True)
        return path

    # --- files by their paths -----------------------------------------------------------------------
    def read(self, relative: str) -> Path:
        """Absolute path of an input, such as a folder of the user's. Raises `MissingArtifact`."""
        self.reads.append(relative)
        path = self.root / relative
        if not path.exists():
            raise missing(f"{self.name}: {relative}")
        return path

    def write(self, relative: str) -> Path:
        """Where to write an output; the folder around it exists."""
        self.writes.append(relative)
        path = self.staging / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # --- models and truth ---------------------------------------------------------------------------
    def pointer(self, iteration: str) -> Pointer:
        """The policy that an iteration promoted."""
        return Pointer(**self.load("pointer", iteration))

    def pointers(self) -> dict[str, Pointer]:
        """The policies that the row names, by its columns."""
        return {column: self.pointer(iteration) for column, iteration in self.row.items()}

    def point(self, pointer: Pointer, iteration: str | None = None) -> None:
        """Writes which model is the policy now, and nothing else: stages depend on this file, so that what a gate
        measured and said (`policy.json`) can change without rerunning the next iteration."""
        self.save("pointer", asdict(pointer), iteration)

    def model(self, pointer: Pointer) -> Model:
        """A model to ask; it is loaded when the first request has no stored reply."""
        return self.open_model(pointer)

    def truth(self, family: Family) -> Truth:
        """Who says what is right. In a stage of a label-free loop it refuses to."""
        return Truth(family, self.stage, self.labels or self.stage == "evaluate")

    # --- figures ------------------------------------------------------------------------------------
    def log(self, **figures: float) -> None:
        """Figures for MLflow: counts, shares, token counts. Never part of an artifact."""
        self.figures.update(figures)

    def spend(self, **figures: float) -> None:
        """Figures of what was used up, such as tokens and seconds: given twice, they add up."""
        self.figures.update({name: self.figures.get(name, 0) + value for name, value in figures.items()})

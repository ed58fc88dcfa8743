"""What is asked of a training, and what it gives back: one value each way, for this process and for one of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.core.models.pointer import Pointer
from tasks.core.training.batches import PASS_TOKENS, Batches
from tasks.core.training.encoding import Rows
from tasks.core.training.options import TrainingOptions

Kind = Literal["sft", "dpo", "kto"]
Steps = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Fit:
    """Train the model of a folder on planned batches, and write the model to another folder."""

    kind: Kind
    initial: Path
    output: Path
    checkpoints: Path  # kept here until the model is written
    sources: tuple[Batches, ...]
    options: TrainingOptions  # of the kind
    seed: int
    base: Pointer | None = None  # what an adapter that is kept names as its base; None: the initial model's own folder


@dataclass(frozen=True)
class Fitted:
    """`history`: one mapping per logged step; `seconds` for `steps` steps, those before an interruption left out."""

    history: list[dict[str, float]]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Reference:
    """Read the log-probabilities of rows under a model."""

    model: Path
    rows: Rows
    precision: str
    limit: int = PASS_TOKENS  # tokens of one forward pass
    threads: int = 1  # of a CPU

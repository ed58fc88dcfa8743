"""What an engine is: rendered prompts in, completions out. Engines know nothing of tasks.

An engine is loaded from a model folder (`tasks.core.engines.load`). The chat template is applied
before it, by `Asker` (`tasks/core/asking.py`), which also cuts requests into content-keyed shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy. `seed` and the sample number decide the draw."""

    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


class Completion(NamedTuple):
    """One reply. `logprob`: sum over the new tokens (end of text included) in nats at temperature 1,
    rounded to 4 decimals; `tokens`: new tokens, end of text included; `prompt_tokens`: tokens of the prompt."""

    text: str
    prompt_tokens: int
    tokens: int
    logprob: float
    finish_reason: str  # stop | length


class Engine(Protocol):
    """Everything the blocks may ask of a language model."""

    def generate(self, prompts: Sequence[str], sampling: Sampling, first_draw: int = 0) -> list[list[Completion]]:
        """`sampling.n` completions per prompt, numbered from `first_draw`. Deterministic on CPU for the same
        prompts in the same call, sampling and thread count."""
        ...

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[float]]:
        """Log-probability in nats at temperature 1 of every token of each response given its prompt,
        end of text included, rounded to 4 decimals."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


@runtime_checkable
class Taking(Engine, Protocol):
    """An engine so large that a process has one at a time, and that can serve another model without being built anew."""

    def take(self, folder: Path) -> bool:
        """Serves the model of `folder` from now on, if it can; otherwise False, and it has to be closed for another.
        After an error it must be closed."""
        ...

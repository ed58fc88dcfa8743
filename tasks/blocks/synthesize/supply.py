"""What prompt blocks are given and make, and what they leave behind.

A prompt block is a function `(supply, options) -> Supplied`. It sees the pool that `prepare` made (in its fixed order),
the prompts of the previous iteration, all that models wrote in earlier ones and the guard that knows held-out problems.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from tasks.blocks.work import POLICY
from tasks.core import tables
from tasks.core.asking.model import Model
from tasks.core.family import Family, FreeText, Guard, Messages


@dataclass(frozen=True)
class Supply:
    """What a prompt block may draw on."""

    family: Family
    pool: pl.DataFrame  # PROMPTS, in the pool's order
    previous: pl.DataFrame  # PROMPTS of the previous iteration, empty for the first
    invented: pl.DataFrame  # INVENTED: what models wrote in all earlier iterations
    guard: Guard  # keeps held-out and probe problems out
    models: Mapping[str, Model]  # by the columns of the row; opened when first asked
    seed: int
    name: str  # the block's name in params.yaml
    asked: str = POLICY  # the column of the model that the block asks

    @property
    def model(self) -> Model:
        """The model that the block asks."""
        return self.models[self.asked]

    def row(self, messages: Messages, parents: list[str]) -> dict[str, object]:
        """A row of PROMPTS for a prompt that was not in the pool."""
        return {
            "prompt_id": tables.prompt_id(self.family.name, messages),
            "messages": messages,
            "family": self.family.name,
            "difficulty": self.family.difficulty(messages),
            "source": self.name,
            "parent_ids": parents,
            "answer": None,
        }


@dataclass(frozen=True)
class Supplied:
    """What a prompt block made: PROMPTS without answers, and figures to log, such as refusals by reason."""

    prompts: pl.DataFrame
    figures: Mapping[str, float] = field(default_factory=dict)


def invented(family: Family, prompts: pl.DataFrame, pool: pl.DataFrame, earlier: pl.DataFrame) -> pl.DataFrame:
    """INVENTED after an iteration: what was there, and those of its prompts that are not of the pool."""
    new = prompts.join(pool, on="prompt_id", how="anti").join(earlier, on="prompt_id", how="anti")
    rows = [
        {"prompt_id": name, "fingerprint": family.fingerprint(messages), "text": text_of(family, messages) or None}
        for name, messages in new.select("prompt_id", "messages").iter_rows()
    ]
    return pl.concat([earlier, tables.frame(rows, tables.INVENTED)])


def text_of(family: Family, messages: Messages) -> str:
    """The prompt's own words; nothing for a family whose prompts are not free text."""
    return family.question(messages) if isinstance(family, FreeText) else ""

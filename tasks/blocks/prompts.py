"""Prompt blocks: which prompts an iteration works on.

A block sees the pool that `prepare` made (in its fixed order), the prompts of the previous iteration and
the guard that knows held-out problems by their fingerprints, and returns rows of the PROMPTS table without answers.
"""

from dataclasses import dataclass, field

import polars as pl
from pydantic import Field

from tasks.core import tables
from tasks.core.asking import Asker
from tasks.core.blocks import Block, Options, Requests
from tasks.core.demand import Counts, Demand
from tasks.core.engine import Sampling
from tasks.core.errors import BadInput, StageFailed
from tasks.core.family import Family, Guard, Invented, Messages


@dataclass(frozen=True)
class Supply:
    """What a prompt block may draw on."""

    family: Family
    pool: pl.DataFrame  # PROMPTS, in the pool's order
    previous: pl.DataFrame  # PROMPTS of the previous iteration, empty for the first
    guard: Guard  # keeps held-out and probe problems out
    model: Asker | None
    seed: int
    name: str  # the block's name in params.yaml
    figures: dict[str, float] = field(default_factory=dict)

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


class FixedUnlabeled(Options):
    n: int = Field(ge=1)  # prompts an iteration


def fixed_unlabeled(supply: Supply, options: FixedUnlabeled) -> pl.DataFrame:
    """The next `n` prompts of the pool, after those of the previous iteration; from the start again when the
    pool is used up. Raises `BadInput` if the pool is smaller than `n`."""
    return _next(supply, supply.pool, options.n)


class DifficultyCurriculum(Options):
    n: int = Field(ge=1)  # prompts an iteration
    start: int  # difficulty of the first iteration
    step: int = Field(ge=0)  # added each iteration


def difficulty_curriculum(supply: Supply, options: DifficultyCurriculum) -> pl.DataFrame:
    """`n` prompts of one difficulty, which grows by `step` each iteration (Self-Improving Transformers Overcome
    Easy-to-Hard and Length Generalization: one unit longer each round). Raises `BadInput` where the pool has none."""
    before = supply.previous["difficulty"].max()
    difficulty = options.start if before is None else int(str(before)) + options.step
    return _next(
        supply, supply.pool.filter(pl.col("difficulty") == difficulty), options.n, f" of difficulty {difficulty}"
    )


def _next(supply: Supply, pool: pl.DataFrame, n: int, kind: str = "") -> pl.DataFrame:
    if pool.height < n:
        raise BadInput(
            f"synthesize.{supply.name}: asks for {n} prompts{kind}, the pool has {pool.height}; lower `n` or make a larger pool in `prepare`"
        )
    before = supply.previous.filter(pl.col("source") == supply.name).select("prompt_id")
    used = set(pool.with_row_index("place").join(before, on="prompt_id", how="semi")["place"])
    ends = [place for place in used if (place + 1) % pool.height not in used]  # one, unless the pool was edited
    start = (min(ends) + 1) % pool.height if ends else 0
    rows = pool.slice(start, n)
    if rows.height < n:
        rows = pl.concat([rows, pool.head(n - rows.height)])
    return rows.with_columns(source=pl.lit(supply.name))


class SelfInstruct(Options):
    n: int = Field(ge=1)  # new prompts wanted
    shots: int = Field(ge=0)  # prompts of the pool shown as examples
    attempts: int = Field(ge=1)  # replies asked for, at most, for each prompt wanted
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


def self_instruct(supply: Supply, options: SelfInstruct) -> pl.DataFrame:
    """New prompts written by the model (Self-Instruct, Wang et al. 2022): `n * attempts` replies, parsed by the family;
    what does not parse, repeats a known prompt or is too much like a held-out problem is left out and counted.
    Raises `StageFailed` if nothing is left."""
    assert supply.model is not None
    examples = supply.pool.sample(n=min(supply.pool.height, options.shots * options.n), shuffle=True, seed=supply.seed)
    shown = examples["messages"].to_list()
    wanted = options.n
    asked = [supply.family.invent_messages(shown[i * options.shots : (i + 1) * options.shots]) for i in range(wanted)]
    distinct = {str(messages) for messages in asked}
    draws = options.attempts if len(distinct) > 1 else options.attempts * wanted
    sampling = Sampling(draws, options.temperature, options.top_p, options.max_new_tokens, supply.seed)
    replies = supply.model.generate(asked if len(distinct) > 1 else asked[:1], sampling, "prompts")
    seen = set(supply.pool["prompt_id"]) | set(supply.previous["prompt_id"])
    rows: list[dict[str, object]] = []
    refused: dict[str, int] = {}
    for index, several in enumerate(replies):
        parents = examples["prompt_id"].to_list()[index * options.shots : (index + 1) * options.shots]
        for reply in several:
            invented = Invented(None, "no reply") if reply.failed else supply.family.parse_invented(reply.text)
            reason = invented.why
            if invented.messages is not None:
                row = supply.row(invented.messages, parents)
                if row["prompt_id"] in seen:
                    reason = "repeated"
                elif why := supply.guard(invented.messages):
                    reason = why
                elif len(rows) < wanted:
                    seen.add(str(row["prompt_id"]))
                    rows.append(row)
            if reason:
                refused[reason] = refused.get(reason, 0) + 1
    supply.figures.update(
        {f"{supply.name}_{reason.replace(' ', '_')}": count for reason, count in sorted(refused.items())}
    )
    if not rows:
        raise StageFailed(f"synthesize.{supply.name}: no usable prompt in {sum(refused.values())} replies: {refused}")
    return tables.frame(rows, tables.PROMPTS)


BLOCKS: dict[str, Block] = {
    "fixed_unlabeled": fixed_unlabeled,
    "difficulty_curriculum": difficulty_curriculum,
    "self_instruct": self_instruct,
}
USES_MODEL = {self_instruct}


def _invented(options: SelfInstruct, counts: Counts) -> list[Demand]:
    return [Demand("invent", options.n * options.attempts, options.max_new_tokens, options.attempts)]


REQUESTS: dict[Block, Requests] = {self_instruct: _invented}

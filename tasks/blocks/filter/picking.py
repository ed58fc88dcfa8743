"""Which of a group's candidates stand for it, and in which order: what both sides of a pair are picked by."""

from typing import Literal

import polars as pl
from pydantic import Field, model_validator

from tasks.blocks.filter.selection import Selection
from tasks.core.block import Options, Read

Pick = Literal["best", "worst", "most", "least", "accepted", "refused", "any"]
NEEDS = {
    "best": "scores",
    "worst": "scores",
    "most": "votes",
    "least": "votes",
    "accepted": "verdicts",
    "refused": "verdicts",
}
RANKED = frozenset({"best", "worst", "most", "least"})
FROM_THE_END = frozenset({"worst", "least"})


class Picker(Options):
    """How candidates are picked. `most` and `least` are `best` and `worst` among different answers, by their votes."""

    of: list[str]  # names of the blocks of sample and refine that made them; []: all
    pick: Pick  # by the critic's score, votes or verdict; any: as good as at random
    critic: str | None  # null only for any
    at_least: float | None  # the lowest score that counts; null: every score does
    tier: float = Field(ge=0, le=1)  # share of the range of scores, from its end, that counts as equal
    tie: Literal["id", "shortest", "longest"]  # which of equal ones comes first; id: as good as at random

    @model_validator(mode="after")
    def _has_critic(self) -> "Picker":
        if self.critic is None and (self.pick != "any" or self.at_least is not None):
            raise ValueError(f"pick: {self.pick} goes by a critic; name it in `critic`")
        return self

    @property
    def lack(self) -> str:
        """What there is none of, where nothing is picked."""
        if self.at_least is not None:
            return f"no score of at least {self.at_least:g}"
        return (
            "no candidate with a score"
            if self.pick in RANKED
            else f"nothing {self.pick}".replace("nothing any", "no candidate")
        )

    def reads(self, option: str) -> list[Read]:
        """The critic, as `tasks.core.block.Block.reads` tells it."""
        if self.critic is None:
            return []
        word = NEEDS.get(self.pick, "scores")
        return [Read(f"{option}.critic", self.critic, frozenset({word}))]


def picked(state: Selection, picker: Picker, group: pl.DataFrame, block: str) -> pl.DataFrame:
    """The kept candidates that the picker takes, by group and then first things first: `group`, `candidate_id`,
    `prompt_id`, `response`, `score` (null where there is no critic, or it gave none). `group`: `candidate_id` and
    `group`."""
    rows = state.kept.join(group, on="candidate_id", how="inner")
    if picker.of:
        rows = rows.filter(pl.col("source").is_in(picker.of))
    if picker.critic is None:
        rows = rows.with_columns(score=pl.lit(None, dtype=pl.Float64), verdict=pl.lit(None, dtype=pl.Boolean))
    else:
        opinions = state.opinions(picker.critic, block).select("candidate_id", "score", "verdict")
        rows = rows.join(opinions, on="candidate_id", how="inner")
    rows = rows.sort("group", "candidate_id")
    if picker.pick in RANKED:
        rows = rows.filter(pl.col("score").is_not_null())
    elif picker.pick != "any":
        rows = rows.filter(pl.col("verdict") == (picker.pick == "accepted"))
    if picker.at_least is not None:
        rows = rows.filter(pl.col("score") >= picker.at_least)
    if picker.pick in ("most", "least"):
        known = rows.filter(pl.col("answer").is_not_null())
        rows = known.unique(["group", "answer"], keep="first", maintain_order=True)
    return _ordered(rows, picker).select("group", "candidate_id", "prompt_id", "response", "score")


def _ordered(rows: pl.DataFrame, picker: Picker) -> pl.DataFrame:
    """Rows by group, first things first; what is worst comes in the reverse of the order of what is best."""
    last = picker.pick in FROM_THE_END
    score = pl.col("score") if picker.pick in RANKED else pl.lit(0.0)
    if picker.pick in RANKED and picker.tier:
        top, low = pl.col("score").max().over("group"), pl.col("score").min().over("group")
        room = picker.tier * (top - low) + 1e-9
        score = (
            pl.when(score <= low + room).then(low).otherwise(score)
            if last
            else pl.when(score >= top - room).then(top).otherwise(score)
        )
    length = {"id": pl.lit(0), "shortest": pl.col("tokens"), "longest": -pl.col("tokens")}[picker.tie]
    backwards = last or picker.pick == "refused"
    return rows.with_columns(_score=score, _length=length).sort(
        ["group", "_score", "_length", "candidate_id"], descending=[False, not last, False, backwards]
    )

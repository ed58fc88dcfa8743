"""What all filter blocks share: the state that they pass on, and the forms of rows."""

from dataclasses import dataclass, replace

import polars as pl

from tasks.blocks.critique.opinions import aggregate, outcomes
from tasks.core import tables
from tasks.core.errors import unknown_name


@dataclass(frozen=True)
class Selection:
    """The state that filter blocks pass on. `kept` is a part of `candidates`; both are CANDIDATES."""

    iteration: str
    prompts: pl.DataFrame  # PROMPTS
    candidates: pl.DataFrame  # all samples and refinements
    critiques: pl.DataFrame  # CRITIQUES of all candidates
    kept: pl.DataFrame
    corpus: pl.DataFrame = tables.nothing(tables.SFT)  # SFT rows of the seed corpus
    earlier_sft: pl.DataFrame = tables.nothing(tables.SFT)  # SFT rows of the previous iteration's dataset
    earlier_pairs: pl.DataFrame = tables.nothing(tables.PAIRS)
    sft: pl.DataFrame = tables.nothing(tables.SFT)  # SFT rows made so far
    pairs: pl.DataFrame = tables.nothing(tables.PAIRS)  # PAIRS made so far
    rated: pl.DataFrame = tables.nothing(tables.RATED)  # RATED rows made so far
    dropped: pl.DataFrame = tables.nothing(tables.DROPPED)  # DROPPED

    def opinions(self, critic: str, block: str) -> pl.DataFrame:
        """`aggregate` of a critic. Raises `UnknownName` for one that never judged."""
        return aggregate(self._of(critic, block), critic)

    def outcomes(self, critic: str, block: str) -> pl.DataFrame:
        """`outcomes` of a critic that compares: one row per pair. Raises `UnknownName`."""
        return outcomes(self._of(critic, block))

    def _of(self, critic: str, block: str) -> pl.DataFrame:
        known = self.critiques["critic"].unique().to_list()
        if critic not in known and self.candidates.height:
            raise unknown_name("critic", critic, known, f"filter.{block}.critic")
        return self.critiques.filter(pl.col("critic") == critic)

    def narrow(self, block: str, reasons: pl.DataFrame) -> "Selection":
        """Drops candidates. `reasons`: `candidate_id` and `reason`; a null reason keeps the candidate."""
        judged = self.kept.join(reasons, on="candidate_id", how="left", maintain_order="left")
        gone = judged.filter(pl.col("reason").is_not_null()).select(
            row_id="candidate_id", prompt_id="prompt_id", block=pl.lit(block), reason="reason"
        )
        kept = judged.filter(pl.col("reason").is_null()).drop("reason")
        return replace(self, kept=kept, dropped=pl.concat([self.dropped, gone]))

    def note(self, block: str, rows: list[tuple[str, str, str]]) -> pl.DataFrame:
        """`dropped` with rows (id, prompt, reason) added."""
        frame = pl.DataFrame([(i, p, block, r) for i, p, r in rows], schema=tables.DROPPED, orient="row")
        return pl.concat([self.dropped, frame])


def reply_of(response: str) -> list[dict[str, str]]:
    """The response as the messages of a completion."""
    return [{"role": "assistant", "content": response}]


def row_id(question: object, *responses: str) -> str:
    """Id of a training row: rows with one content are one row."""
    return tables.content_id(question, *responses)

"""The truth as a critic: for evaluation, and for recipes that declare `labels: true`; the upper bound of any critic."""

import polars as pl

from tasks.blocks.critique.judging import NoOptions, table
from tasks.blocks.work import Work
from tasks.core.block import Block
from tasks.core.errors import LabelsForbidden
from tasks.core.family import Verdict


def verifier(work: Work, options: NoOptions) -> pl.DataFrame:
    """Whether the answer is right, for evaluation and for recipes that declare `labels: true`: the upper bound of any
    critic. Raises `LabelsForbidden` in a label-free run."""
    if not work.truth.known:
        raise LabelsForbidden(
            f"{work.truth.stage}: the data of family '{work.family.name}' has no answers to verify with"
        )
    rights = [work.truth.verify(answer.question, answer.gold, answer.response) for answer in work.answers]
    return table(work, [[Verdict(True, right, float(right))] for right in rights], [[0] for _ in rights], asked=False)


BLOCKS = {"verifier": Block(verifier, gives=frozenset({"verdicts", "scores"}), needs=frozenset({"labels"}))}

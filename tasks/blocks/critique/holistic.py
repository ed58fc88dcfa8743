"""The holistic critic: the model reads the whole candidate, comments on it, and ends in a verdict or a score."""

import polars as pl

from tasks.blocks.critique.judging import MALFORMED, Drawn, ask, drawn, table, unread
from tasks.blocks.work import Answer, Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block
from tasks.core.engines.contract import Completion
from tasks.core.family import Family, Verdict


def nl_critique(work: Work, options: Drawn) -> pl.DataFrame:
    """The model reads the whole candidate, comments on it and ends in a verdict: `draws` critiques of each candidate.
    Equal candidates of a prompt share theirs."""
    asked = [work.family.critique_messages(answer.question, answer.response) for answer in work.answers]
    put = [(messages, answer.draw) for messages, answer in zip(asked, work.answers, strict=True) if messages]
    replies = iter(ask(work, options, put))
    verdicts: list[list[Verdict]] = []
    tokens: list[list[int]] = []
    for answer, messages in zip(work.answers, asked, strict=True):
        if messages is None:
            verdicts.append([MALFORMED])
            tokens.append([0])
            continue
        several = next(replies)
        verdicts.append([_read(work.family, answer, reply) for reply in several])
        tokens.append([reply.tokens for reply in several])
    return table(work, verdicts, tokens)


def judge_pointwise(work: Work, options: Drawn) -> pl.DataFrame:
    """A score in [0, 1] per draw by the family's additive scale (Self-Rewarding Language Models, Yuan et al. 2024:
    several draws, whose mean counts). It gives no verdict."""
    return nl_critique(work, options).with_columns(verdict=pl.lit(None, dtype=pl.Boolean))


def _read(family: Family, answer: Answer, reply: Completion) -> Verdict:
    why = unread(reply)
    return Verdict(False, why=why) if why else family.parse_critique(answer.question, answer.response, reply.text)


def _asks(options: Drawn, counts: Counts) -> list[Demand]:
    return drawn(options, counts.candidates)


BLOCKS = {
    "nl_critique": Block(nl_critique, _asks, gives=frozenset({"verdicts", "scores"}), needs=frozenset({"critiques"})),
    "judge_pointwise": Block(judge_pointwise, _asks, gives=frozenset({"scores"}), needs=frozenset({"critiques"})),
}

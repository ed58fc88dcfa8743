"""Points for one answer of free text, without parsing: a reply out of a list, or the probabilities of all of them.

Both put the question in brief and take the family's additive scale (`family.FreeText.points_replies`). `..._structured`
restricts the reply to the allowed ones (`Sampling.choices`), so that also servers that tell no log-probabilities of given
texts can be asked. `..._logprobs` takes the expected score (G-Eval, Liu and others 2023). Neither gives a verdict.
Points that are written at the end of a comment: `holistic.judge_pointwise`.
"""

from collections.abc import Mapping
from math import fsum

import polars as pl

from tasks.blocks.critique.judging import (
    DECIMALS,
    MALFORMED,
    OUTSIDE,
    NoOptions,
    Repeated,
    choose,
    drawn,
    free_text,
    probabilities,
    scored,
    table,
    unread,
)
from tasks.blocks.work import Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block
from tasks.core.engines.contract import Completion
from tasks.core.family import Messages, Verdict

REPLIES = 6  # between which a pointwise judge chooses: 0 to 5 points


def judge_pointwise_structured(work: Work, options: Repeated) -> pl.DataFrame:
    """A score in [0, 1] per draw: the model chooses one of the scale's replies. It gives no verdict."""
    scores = free_text(work).points_replies()
    asked = _asked(work)
    put = [(messages, answer.draw) for messages, answer in zip(asked, work.answers, strict=True) if messages]
    replies = iter(choose(work, options, put, list(scores)))
    several: list[list[Completion]] = [[] if messages is None else next(replies) for messages in asked]
    verdicts = [[_points(scores, reply) for reply in draws] or [MALFORMED] for draws in several]
    return table(work, verdicts, [[reply.tokens for reply in draws] or [0] for draws in several])


def _asked(work: Work) -> list[Messages | None]:
    family = free_text(work)
    return [family.points_messages(answer.question, answer.response) for answer in work.answers]


def _points(scores: Mapping[str, float], reply: Completion) -> Verdict:
    why = unread(reply) or (None if reply.text in scores else OUTSIDE)
    return Verdict(False, why=why) if why else Verdict(True, None, scores[reply.text], reply.text)


def judge_pointwise_logprobs(work: Work, options: NoOptions) -> pl.DataFrame:
    """The expected score over the family's points, in [0, 1]: sum of score times probability. It gives no
    verdict."""
    told = free_text(work).points_replies()
    asked = _asked(work)
    found = iter(probabilities(work, [messages for messages in asked if messages is not None], list(told)))
    verdicts = []
    for messages in asked:
        if messages is None:
            verdicts.append([MALFORMED])
            continue
        chances = next(found)
        expected = fsum(chance * score for chance, score in zip(chances, told.values(), strict=True))
        text = ", ".join(f"{reply}: {chance:.3f}" for reply, chance in zip(told, chances, strict=True))
        verdicts.append([Verdict(True, None, round(expected, DECIMALS), text)])
    return table(work, verdicts, [[0] for _ in verdicts])


def _asks_draws(options: Repeated, counts: Counts) -> list[Demand]:
    return drawn(options, counts.candidates)


def _asks_scores(options: NoOptions, counts: Counts) -> list[Demand]:
    return scored(counts.candidates * REPLIES)


BLOCKS = {
    "judge_pointwise_structured": Block(
        judge_pointwise_structured, _asks_draws, gives=frozenset({"scores"}), needs=frozenset({"free text"})
    ),
    "judge_pointwise_logprobs": Block(
        judge_pointwise_logprobs,
        _asks_scores,
        gives=frozenset({"scores"}),
        needs=frozenset({"free text", "likelihoods"}),
    ),
}

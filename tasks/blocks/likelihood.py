"""Critics that read the engine's scores and generate nothing.

`judge_..._logprobs` put the questions of `tasks.blocks.judges` in brief: the verdict is the probability of each allowed reply
(`family.FreeText`), exp(sum of its tokens' log-probabilities), normalised over the allowed ones. Points are their expected value
(G-Eval, Liu and others 2023), a criterion the probability of yes, a comparison that of the first answer, averaged
over both orders.

`intrinsic_score` asks nothing: it is how sure the model is of the answer itself, by a statistic of its tokens
(`tasks.core.engines.base`): their mean log-probability, their mean self-certainty (Kang and others 2025, Scalable Best-of-N
Selection for Large Language Models via Self-Certainty), or minus their mean entropy. Higher is surer; the scale is in nats.
"""

from collections.abc import Sequence
from math import exp, fsum

import polars as pl
from pydantic import Field

from tasks.blocks import judges
from tasks.blocks.judging import MALFORMED, Judging, table
from tasks.core.asking.demand import Demand
from tasks.core.blocks import Block, Options, Requests
from tasks.core.engines.base import Statistic
from tasks.core.family import Choice, Messages, Verdict

POINTS_REPLIES = 6  # between which a pointwise judge chooses: 0 to 5 points


class IntrinsicScore(Options):
    statistic: Statistic  # the last two take the whole vocabulary; entropy counts negatively


def intrinsic_score(judging: Judging, options: IntrinsicScore) -> pl.DataFrame:
    """The statistic's mean over each response's tokens and its end, as the score; no verdict."""
    told = judging.judge.score(judging.questions, judging.responses, judging.name, options.statistic)
    sign = -1.0 if options.statistic == "entropy" else 1.0
    means = [round(sign * fsum(values) / len(values), judges.DECIMALS) for values in told]
    verdicts = [[Verdict(True, None, mean, f"{options.statistic} {mean:.4f}")] for mean in means]
    return table(judging, verdicts, [[0] for _ in verdicts])


class NoOptions(Options):
    pass


def judge_pointwise_logprobs(judging: Judging, options: NoOptions) -> pl.DataFrame:
    """The expected score over the family's points, in [0, 1], without a verdict: sum of score times probability."""
    family = judges.free_text(judging)
    told = family.points_replies()
    asked = [family.points_messages(q, r) for q, r in zip(judging.questions, judging.responses, strict=True)]
    found = iter(_probabilities(judging, [messages for messages in asked if messages is not None], list(told)))
    verdicts = []
    for messages in asked:
        if messages is None:
            verdicts.append([MALFORMED])
            continue
        chances = next(found)
        expected = fsum(chance * score for chance, score in zip(chances, told.values(), strict=True))
        text = ", ".join(f"{reply}: {chance:.3f}" for reply, chance in zip(told, chances, strict=True))
        verdicts.append([Verdict(True, None, round(expected, judges.DECIMALS), text)])
    return table(judging, verdicts, [[0] for _ in verdicts])


class ChecklistLogprobs(Options):
    criteria: list[str] = Field(min_length=1)


def judge_checklist_logprobs(judging: Judging, options: ChecklistLogprobs) -> pl.DataFrame:
    """Mean probability of yes over the criteria; verdict: each is more likely met than not."""
    family = judges.free_text(judging)
    asked = judges.by_criterion(judging, family, options.criteria, brief=True)
    put = [messages for several in asked for messages in several]
    found = iter(_probabilities(judging, put, family.criterion_replies()))
    verdicts = []
    for several in asked:
        chances = [Choice(round(next(found)[0], judges.DECIMALS)) for _ in several]
        texts = [f"probability of yes {choice.worth:.3f}" for choice in chances]
        verdicts.append([judges.of_checklist(options.criteria, chances, texts)] if several else [MALFORMED])
    return table(judging, verdicts, [[0] for _ in verdicts])


class PairwiseLogprobs(Options):
    pairs: int | None = Field(ge=1)


def judge_pairwise_logprobs(judging: Judging, options: PairwiseLogprobs) -> pl.DataFrame:
    """The probability that the first answer is better, averaged over both orders. A verdict only where both orders
    prefer the same answer."""
    family = judges.free_text(judging)
    played = judges.games(judging, family, options.pairs, brief=True)
    chances = _probabilities(judging, [order for game in played for order in game.orders], family.pair_replies())
    verdicts = []
    for as_a, as_b in zip(chances[::2], chances[1::2], strict=True):
        one, two = as_a[0], as_b[1]
        agreed = (one > 0.5) if (one - 0.5) * (two - 0.5) > 0 else None
        text = f"better as A: {one:.3f}, as B: {two:.3f}"
        verdicts.append([Verdict(True, agreed, round((one + two) / 2, judges.DECIMALS), text)])
    return judges.compared(judging, played, verdicts, [[0] for _ in played])


def _probabilities(judging: Judging, asked: Sequence[Messages], replies: Sequence[str]) -> list[list[float]]:
    """For each conversation the probability of each of the replies, given that it is one of them."""
    told = list(replies) * len(asked)
    scores = judging.judge.score([messages for messages in asked for _ in replies], told, judging.name)
    sums = [fsum(row) for row in scores]
    found = []
    for start in range(0, len(sums), len(replies)):
        several = sums[start : start + len(replies)]
        weights = [exp(value - max(several)) for value in several]
        found.append([weight / fsum(weights) for weight in weights])
    return found


def _scored(requests: int) -> list[Demand]:
    return [Demand("critique", requests, 0)]


COMPARING: set[Block] = {judge_pairwise_logprobs}
BLOCKS: dict[str, Block] = {
    "intrinsic_score": intrinsic_score,
    "judge_pointwise_logprobs": judge_pointwise_logprobs,
    "judge_checklist_logprobs": judge_checklist_logprobs,
    "judge_pairwise_logprobs": judge_pairwise_logprobs,
}
REQUESTS: dict[Block, Requests] = {
    intrinsic_score: lambda options, counts: _scored(counts.candidates),
    judge_pointwise_logprobs: lambda options, counts: _scored(counts.candidates * POINTS_REPLIES),
    judge_checklist_logprobs: lambda options, counts: _scored(counts.candidates * 2 * len(options.criteria)),
    judge_pairwise_logprobs: lambda options, counts: _scored(2 * judges.orders(options.pairs, counts)),
}

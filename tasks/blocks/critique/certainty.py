"""How sure the model itself is of an answer: a statistic of the answer's tokens; nothing is generated.

`tasks.core.engines.contract` defines the statistics: mean log-probability, mean self-certainty (Kang and others 2025,
Scalable Best-of-N Selection for Large Language Models via Self-Certainty), or minus the mean entropy. Higher is surer;
the scale is in nats.
"""

from math import fsum

import polars as pl

from tasks.blocks.critique.judging import DECIMALS, scored, table
from tasks.blocks.work import JUDGE, Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Statistic
from tasks.core.family import Verdict


class IntrinsicScore(Options):
    statistic: Statistic  # the last two take the whole vocabulary; entropy counts negatively


def intrinsic_score(work: Work, options: IntrinsicScore) -> pl.DataFrame:
    """The statistic's mean over each response's tokens and its end, as the score; no verdict."""
    questions = [answer.question for answer in work.answers]
    responses = [answer.response for answer in work.answers]
    told = work.models[JUDGE].score(questions, responses, work.name, options.statistic)
    sign = -1.0 if options.statistic == "entropy" else 1.0
    means = [round(sign * fsum(values) / len(values), DECIMALS) for values in told]
    verdicts = [[Verdict(True, None, mean, f"{options.statistic} {mean:.4f}")] for mean in means]
    return table(work, verdicts, [[0] for _ in verdicts])


def _asks(options: IntrinsicScore, counts: Counts) -> list[Demand]:
    return scored(counts.candidates)


def _needs(options: IntrinsicScore) -> frozenset[str]:
    return frozenset({"likelihoods"} if options.statistic == "logprob" else {"likelihoods", "vocabulary"})


BLOCKS = {"intrinsic_score": Block(intrinsic_score, _asks, gives=frozenset({"scores"}), needs=_needs)}

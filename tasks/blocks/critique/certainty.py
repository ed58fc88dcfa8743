"""How sure a model is of an answer: a statistic of the answer's tokens; nothing is generated.

`tasks.core.engines.contract` defines the statistics. Higher is surer; entropy counts negatively. A few methods by their
options:

    statistic logprob, reduce sum                     self-reward of sharpening (Huang et al. 2024)
    statistic self_certainty, reduce mean             self-certainty (Kang et al. 2025)
    statistic margin, span answer, reduce mean        confidence in the answer (RLSF, van Niekerk et al. 2025)
    statistic logprob, reduce sum, minus reference    the implicit reward of DPO, without its factor beta
"""

from collections.abc import Callable
from math import exp, fsum
from statistics import fmean
from typing import Literal

import polars as pl
from pydantic import Field

from tasks.blocks.critique.judging import DECIMALS, MALFORMED, scored, table
from tasks.blocks.critique.opinions import aggregate
from tasks.blocks.work import Answer, Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.asking.model import Model
from tasks.core.block import Block, Options, Read
from tasks.core.engines.contract import Statistic
from tasks.core.family import Parts, Verdict

VOCABULARY = frozenset({"self_certainty", "entropy", "margin"})  # statistics of all of it
REDUCED: dict[str, Callable[[list[float]], float]] = {"sum": fsum, "mean": fmean, "min": min}


class Likelihood(Options):
    statistic: Statistic  # all but logprob take the whole vocabulary
    span: Literal["all", "answer"]  # which tokens: the response and its end, or where it states its answer
    reduce: Literal["sum", "mean", "min"]  # over those tokens
    minus: str | None  # column of the row whose model's figure is taken off; null: none


def likelihood(work: Work, options: Likelihood) -> pl.DataFrame:
    """The statistic over each response's tokens, as the score; no verdict. With `span: answer` the tokens of the last place
    where the response has its answer, and the whole of a response that has none."""
    figures = _figures(work, work.model, options)
    if options.minus is not None:
        anchor = _figures(work, work.models[options.minus], options)
        figures = [round(own - other, DECIMALS) for own, other in zip(figures, anchor, strict=True)]
    verdicts = [[Verdict(True, None, value, f"{options.statistic} {value:.4f}")] for value in figures]
    return table(work, verdicts, [[0] for _ in verdicts])


def _figures(work: Work, model: Model, options: Likelihood) -> list[float]:
    """One for each answer, under one model."""
    questions = [answer.question for answer in work.answers]
    responses = [answer.response for answer in work.answers]
    told = model.score(questions, responses, work.name, options.statistic)
    if options.span == "answer":
        spans = _spans(work.answers, model)
        told = [row[begin:end] or row for row, (begin, end) in zip(told, spans, strict=True)]
    sign = -1.0 if options.statistic == "entropy" else 1.0
    return [round(sign * REDUCED[options.reduce](values), DECIMALS) for values in told]


def _spans(answers: list[Answer], model: Model) -> list[tuple[int, int]]:
    """The tokens, from and to, of the last place where each response has its answer; (0, 0) where it has it nowhere."""
    places = [answer.response.rfind(answer.answer) if answer.answer else -1 for answer in answers]
    before = [answer.response[: max(0, place)].rstrip() for answer, place in zip(answers, places, strict=True)]
    until = [
        answer.response[: place + len(answer.answer or "")] if place >= 0 else ""
        for answer, place in zip(answers, places, strict=True)
    ]
    return list(zip(model.lengths(before), model.lengths(until), strict=True))


class Continuation(Options):
    template: str = Field(min_length=1)  # the family's use that asks about an answer
    critic: str | None  # whose words about the answer are shown, where the template shows a critique
    texts: list[str] = Field(min_length=2)  # possible replies, the first for a good answer
    contrast: Literal["probability", "difference"]  # of the first among them, or log-likelihood of it less the second's


def continuation(work: Work, options: Continuation) -> pl.DataFrame:
    """How likely a reply to a question about the answer is: P(True) (Kadavath et al. 2022, Language Models (Mostly) Know What
    They Know) with yes and no after "is it right?", follow-up likelihood (Zhang et al. 2024) with what a content and a
    discontent reader would say. Verdict: the first text is the likeliest."""
    told_before: dict[str, str] = {}
    if options.critic is not None:
        opinions = aggregate(work.opinions, options.critic).select("candidate_id", "text")
        told_before = {candidate: text or "" for candidate, text in opinions.iter_rows()}
    asked = [
        work.family.ask(
            options.template, Parts(answer.question, (answer.response,), told_before.get(answer.candidate_id, ""))
        )
        for answer in work.answers
    ]
    put = [messages for messages in asked if messages is not None]
    told = [messages for messages in put for _ in options.texts]
    scores = work.model.score(told, options.texts * len(put), work.name)
    count, sums = len(options.texts), [fsum(row) for row in scores]
    found = iter([sums[start : start + count] for start in range(0, len(sums), count)])
    verdicts = [[MALFORMED] if messages is None else [_contrasted(next(found), options)] for messages in asked]
    return table(work, verdicts, [[0] for _ in verdicts])


def _contrasted(logprobs: list[float], options: Continuation) -> Verdict:
    """What the log-probabilities of the texts say of the answer."""
    shares = [exp(value - max(logprobs)) for value in logprobs]
    probability = shares[0] / fsum(shares)
    score = probability if options.contrast == "probability" else logprobs[0] - logprobs[1]
    text = f"probability of {options.texts[0]!r} {probability:.3f}"
    return Verdict(True, logprobs[0] > max(logprobs[1:]), round(score, DECIMALS), text)


def _reads(options: Continuation) -> list[Read]:
    return [] if options.critic is None else [Read("critic", options.critic, frozenset())]


def _asks_texts(options: Continuation, counts: Counts) -> list[Demand]:
    return scored(counts.candidates * len(options.texts))


def _asks(options: Likelihood, counts: Counts) -> list[Demand]:
    return scored(counts.candidates * (1 + (options.minus is not None)))


def _needs(options: Likelihood) -> frozenset[str]:
    return frozenset({"likelihoods", "vocabulary"} if options.statistic in VOCABULARY else {"likelihoods"})


BLOCKS = {
    "likelihood": Block(likelihood, _asks, gives=frozenset({"scores"}), needs=_needs),
    "continuation": Block(
        continuation,
        _asks_texts,
        gives=frozenset({"verdicts", "scores"}),
        needs=frozenset({"likelihoods"}),
        reads=_reads,
    ),
}

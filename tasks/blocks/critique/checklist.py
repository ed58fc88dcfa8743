"""The checklist: the model is asked criterion by criterion whether the answer meets it.

Source: TICK (Cook and others 2024); checklists as rewards: RLCF (Viswanathan and others 2025). Score: share of the
criteria that are met; verdict: all are. The reply is written and read (`judge_checklist`), taken out of a list
(`..._structured`), or its probability is read (`..._logprobs`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import fsum

import polars as pl
from pydantic import Field

from tasks.blocks.critique.judging import (
    DECIMALS,
    MALFORMED,
    Drawn,
    Put,
    Repeated,
    ask,
    choose,
    chosen,
    drawn,
    free_text,
    probabilities,
    scored,
    table,
    unread,
)
from tasks.blocks.work import Answer, Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Completion
from tasks.core.family import Choice, Messages, Verdict


class Checklist(Drawn):
    criteria: list[str] = Field(min_length=1)  # each a statement about the response, true or not


class ChecklistStructured(Repeated):
    criteria: list[str] = Field(min_length=1)


class ChecklistLogprobs(Options):
    criteria: list[str] = Field(min_length=1)


def judge_checklist(work: Work, options: Checklist) -> pl.DataFrame:
    """Share of the criteria that the model says are met; not parsed if a single reply is not."""
    family = free_text(work)
    asked = _by_criterion(work, options.criteria, brief=False)

    def read(answer: Answer, reply: Completion) -> Choice:
        return family.parse_criterion(answer.question, answer.response, reply.text)

    return _checklist(work, options.criteria, asked, partial(ask, work, options), read)


def judge_checklist_structured(work: Work, options: ChecklistStructured) -> pl.DataFrame:
    """Share of the criteria for which the model takes yes."""
    replies = free_text(work).criterion_replies()
    asked = _by_criterion(work, options.criteria, brief=True)

    def read(answer: Answer, reply: Completion) -> Choice:
        return chosen(replies, reply)

    return _checklist(work, options.criteria, asked, partial(choose, work, options, choices=replies), read)


def judge_checklist_logprobs(work: Work, options: ChecklistLogprobs) -> pl.DataFrame:
    """Mean probability of yes over the criteria; verdict: each is more likely met than not."""
    asked = _by_criterion(work, options.criteria, brief=True)
    put = [messages for several in asked for messages in several]
    found = iter(probabilities(work, put, free_text(work).criterion_replies()))
    verdicts = []
    for several in asked:
        chances = [Choice(round(next(found)[0], DECIMALS)) for _ in several]
        texts = [f"probability of yes {choice.worth:.3f}" for choice in chances]
        verdicts.append([_together(options.criteria, chances, texts)] if several else [MALFORMED])
    return table(work, verdicts, [[0] for _ in verdicts])


def _by_criterion(work: Work, criteria: Sequence[str], brief: bool) -> list[list[Messages]]:
    """For each answer a conversation for each criterion; none where it cannot be shown."""
    family, asked = free_text(work), []
    for answer in work.answers:
        several = [family.criterion_messages(answer.question, answer.response, c, brief) for c in criteria]
        asked.append([messages for messages in several if messages is not None])
    return asked


def _checklist(
    work: Work,
    criteria: Sequence[str],
    asked: Sequence[Sequence[Messages]],
    ask: Callable[[Sequence[Put]], list[list[Completion]]],
    read: Callable[[Answer, Completion], Choice],
) -> pl.DataFrame:
    put = [(messages, answer.draw) for several, answer in zip(asked, work.answers, strict=True) for messages in several]
    replies = iter(ask(put))
    verdicts, tokens = [], []
    for answer, several in zip(work.answers, asked, strict=True):
        draws = list(zip(*(next(replies) for _ in several), strict=True))  # of each, the replies to all criteria
        choices = [[_read(reply, partial(read, answer)) for reply in draw] for draw in draws]
        texts = [[reply.text.strip() for reply in draw] for draw in draws]
        told = [_together(criteria, *both) for both in zip(choices, texts, strict=True)]
        verdicts.append(told or [MALFORMED])
        tokens.append([sum(reply.tokens for reply in draw) for draw in draws] or [0])
    return table(work, verdicts, tokens)


def _read(reply: Completion, read: Callable[[Completion], Choice]) -> Choice:
    why = unread(reply)
    return Choice(None, why) if why else read(reply)


def _together(criteria: Sequence[str], choices: Sequence[Choice], texts: Sequence[str]) -> Verdict:
    """What the judgements of all criteria say together; `texts`: what the model said to each."""
    text = "\n".join(f"{number}. {c}\n{t}" for number, (c, t) in enumerate(zip(criteria, texts, strict=True), start=1))
    worths = [choice.worth for choice in choices if choice.worth is not None]
    if len(worths) < len(choices):
        why = next(f"criterion {number}: {choice.why}" for number, choice in enumerate(choices, 1) if choice.why)
        return Verdict(False, text=text, why=why)
    return Verdict(True, min(worths) > 0.5, round(fsum(worths) / len(worths), DECIMALS), text)


def _asks_draws(options: Checklist | ChecklistStructured, counts: Counts) -> list[Demand]:
    return drawn(options, counts.candidates * len(options.criteria))


def _asks_scores(options: ChecklistLogprobs, counts: Counts) -> list[Demand]:
    return scored(counts.candidates * 2 * len(options.criteria))


GIVES = frozenset({"verdicts", "scores"})
BLOCKS = {
    "judge_checklist": Block(judge_checklist, _asks_draws, GIVES, frozenset({"free text"})),
    "judge_checklist_structured": Block(judge_checklist_structured, _asks_draws, GIVES, frozenset({"free text"})),
    "judge_checklist_logprobs": Block(
        judge_checklist_logprobs, _asks_scores, GIVES, frozenset({"free text", "likelihoods"})
    ),
}

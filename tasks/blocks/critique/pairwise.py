"""Which of two answers is better: each pair is shown in both orders, because models prefer a place.

Source: Zheng and others 2023, Judging LLM-as-a-Judge. Only what both orders say counts; a tie, orders that disagree and
replies that do not parse give no preference, each with its reason. A row of CRITIQUES is one pair and draw: `candidate_id`
against `other_id`, verdict true if the first is better, score 1, 0.5 or 0. The reply is written and read
(`judge_pairwise`), taken out of a list (`..._structured`), or its probability is read (`..._logprobs`).
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from math import ceil
from typing import NamedTuple

import polars as pl
from pydantic import Field

from tasks.blocks.critique.judging import (
    DECIMALS,
    Drawn,
    Put,
    Repeated,
    ask,
    choose,
    chosen,
    critiques,
    drawn,
    free_text,
    probabilities,
    scored,
    unread,
)
from tasks.blocks.critique.opinions import DISAGREE
from tasks.blocks.work import Answer, Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Completion
from tasks.core.family import Choice, FreeText, Messages, Verdict

AS_B = "\n\nas B:\n"
SAID = re.compile(rf"as A:\n(.*){AS_B}(.*)", re.DOTALL)
LIKELY = re.compile(r"better as A: ([\d.]+), as B: ([\d.]+)")


class Pairwise(Drawn):
    pairs: int | None = Field(ge=1)  # of a prompt, compared at most; null: every pair


class PairwiseStructured(Repeated):
    pairs: int | None = Field(ge=1)


class PairwiseLogprobs(Options):
    pairs: int | None = Field(ge=1)


class Game(NamedTuple):
    """Two answers to a prompt, and the two conversations about them: first as A, first as B."""

    first: Answer
    second: Answer
    orders: tuple[Messages, Messages]


Read = Callable[[Answer, Answer, Completion], Choice]  # (as A, as B, reply) -> worth of A


def judge_pairwise(work: Work, options: Pairwise) -> pl.DataFrame:
    """Pairs of a prompt's candidates, each in both orders. Equal responses are one candidate, the first of them."""
    family = free_text(work)

    def read(first: Answer, second: Answer, reply: Completion) -> Choice:
        return family.parse_pair(first.question, first.response, second.response, reply.text)

    return _pairwise(work, games(work, options.pairs, brief=False), partial(ask, work, options), read)


def judge_pairwise_structured(work: Work, options: PairwiseStructured) -> pl.DataFrame:
    """As `judge_pairwise`, but the model takes A or B, and no tie."""
    replies = free_text(work).pair_replies()

    def read(first: Answer, second: Answer, reply: Completion) -> Choice:
        return chosen(replies, reply)

    played = games(work, options.pairs, brief=True)
    return _pairwise(work, played, partial(choose, work, options, choices=replies), read)


def judge_pairwise_logprobs(work: Work, options: PairwiseLogprobs) -> pl.DataFrame:
    """The probability that the first answer is better, averaged over both orders. A verdict only where both orders
    prefer the same answer."""
    played = games(work, options.pairs, brief=True)
    replies = free_text(work).pair_replies()
    chances = probabilities(work, [order for game in played for order in game.orders], replies)
    verdicts = []
    for as_a, as_b in zip(chances[::2], chances[1::2], strict=True):
        one, two = as_a[0], as_b[1]
        agreed = (one > 0.5) if (one - 0.5) * (two - 0.5) > 0 else None
        text = f"better as A: {one:.3f}, as B: {two:.3f}"
        verdicts.append([Verdict(True, agreed, round((one + two) / 2, DECIMALS), text)])
    return _table(work, played, verdicts, [[0] for _ in played])


def _pairwise(
    work: Work, played: Sequence[Game], ask: Callable[[Sequence[Put]], list[list[Completion]]], read: Read
) -> pl.DataFrame:
    put = [(order, max(game.first.draw, game.second.draw)) for game in played for order in game.orders]
    replies = ask(put)
    verdicts, tokens = [], []
    for game, as_a, as_b in zip(played, replies[::2], replies[1::2], strict=True):
        several = list(zip(as_a, as_b, strict=True))
        verdicts.append([_agreed(read, game, *both) for both in several])
        tokens.append([one.tokens + two.tokens for one, two in several])
    return _table(work, played, verdicts, tokens)


def games(work: Work, wanted: int | None, brief: bool) -> list[Game]:
    """Who is compared with whom: of each prompt's different answers `wanted` pairs, None for all."""
    family, found = free_text(work), []
    ordered = sorted(work.answers, key=lambda answer: (answer.prompt_id, answer.draw))
    for _, group in groupby(ordered, key=lambda answer: answer.prompt_id):
        players: dict[str, Answer] = {}
        for answer in group:
            players.setdefault(answer.response.strip(), answer)
        known = [answer for text, answer in players.items() if text]
        for one, two in round_robin(len(known))[:wanted]:
            first, second = known[one], known[two]
            texts = first.response, second.response
            orders = [family.pair_messages(first.question, *shown, brief) for shown in (texts, texts[::-1])]
            if orders[0] is not None and orders[1] is not None:
                found.append(Game(first, second, (orders[0], orders[1])))
    return found


def round_robin(players: int) -> list[tuple[int, int]]:
    """Every pair of so many players, in an order whose beginnings let each play about equally often: neighbours on
    a circle, then those two apart, and so on."""
    pairs = []
    for apart in range(1, players // 2 + 1):
        starts = range(players // 2 if 2 * apart == players else players)
        for start in sorted(starts, key=lambda i: (i // apart % 2, i)):
            one, two = start, (start + apart) % players
            pairs.append((min(one, two), max(one, two)))
    return pairs


def _agreed(read: Read, game: Game, as_a: Completion, as_b: Completion) -> Verdict:
    """What both replies say of the first answer, shown as A and then as B."""
    text = f"as A:\n{as_a.text.strip()}{AS_B}{as_b.text.strip()}"
    if why := unread(as_a) or unread(as_b):
        return Verdict(False, text=text, why=why)
    one, two = read(game.first, game.second, as_a), read(game.second, game.first, as_b)
    if one.worth is None or two.worth is None:
        return Verdict(False, text=text, why=one.why or two.why)
    if one.worth + two.worth != 1:
        return Verdict(False, text=text, why=DISAGREE)
    return Verdict(True, None if one.worth == 0.5 else one.worth == 1, one.worth, text)


def in_both_orders(
    kind: str, family: FreeText, question: Messages, responses: tuple[str, str], text: str
) -> list[float]:
    """The worth of what was shown first, in each of both orders, out of the text of a comparison of two responses by a
    block of this file: 1, 0, or 0.5 for a tie. Empty where it cannot be read."""
    if kind == "judge_pairwise_logprobs":
        found = LIKELY.fullmatch(text)
        chances = [float(found[1]), 1 - float(found[2])] if found else []
        return [0.5 if chance == 0.5 else float(chance > 0.5) for chance in chances]
    found = SAID.fullmatch(text)
    if found is None or text.count(AS_B) > 1:
        return []
    worths: list[float | None] = []
    for reply, shown in zip(found.groups(), (responses, responses[::-1]), strict=True):
        if kind == "judge_pairwise_structured":
            worths.append(dict(zip(family.pair_replies(), (1.0, 0.0), strict=True)).get(reply))
        else:
            worths.append(family.parse_pair(question, *shown, reply).worth)
    return [worth for worth in worths if worth is not None] if None not in worths else []


def _table(
    work: Work, played: Sequence[Game], verdicts: Sequence[Sequence[Verdict]], tokens: Sequence[Sequence[int]]
) -> pl.DataFrame:
    """CRITIQUES of the games: for each its draws' verdicts and tokens."""
    about = [(game.first.candidate_id, game.second.candidate_id) for game in played]
    return critiques(work, about, verdicts, tokens)


def _orders(pairs: int | None, counts: Counts) -> int:
    """Conversations about both orders of every pair that is compared, at most."""
    players = ceil(counts.candidates / max(1, counts.prompts))
    every = players * (players - 1) // 2
    return 2 * counts.prompts * (every if pairs is None else min(every, pairs))


def _asks_draws(options: Pairwise | PairwiseStructured, counts: Counts) -> list[Demand]:
    return drawn(options, _orders(options.pairs, counts))


def _asks_scores(options: PairwiseLogprobs, counts: Counts) -> list[Demand]:
    return scored(2 * _orders(options.pairs, counts))


GIVES = frozenset({"scores", "comparisons"})
BLOCKS = {
    "judge_pairwise": Block(judge_pairwise, _asks_draws, GIVES, frozenset({"free text", "siblings"})),
    "judge_pairwise_structured": Block(
        judge_pairwise_structured, _asks_draws, GIVES, frozenset({"free text", "siblings"})
    ),
    "judge_pairwise_logprobs": Block(
        judge_pairwise_logprobs, _asks_scores, GIVES, frozenset({"free text", "siblings", "likelihoods"})
    ),
}

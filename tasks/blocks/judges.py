"""Judges of free text: which of two answers is better, which criteria are met, and verdicts without parsing.

A pairwise judge sees two answers to a prompt as A and B, and once more in the other order: models prefer a place
(Zheng and others 2023, Judging LLM-as-a-Judge). Only what both orders say counts; a tie, orders that disagree and
replies that do not parse give no preference, each with its reason. A row of CRITIQUES is one pair and draw: `candidate_id`
against `other_id`, verdict true if the first is better, score 1, 0.5 or 0.

A checklist judge is asked criterion by criterion (TICK, Cook and others 2024; checklists as rewards: RLCF, Viswanathan
and others 2025). Score: share of criteria met; verdict: all are.

`..._logprobs` put the same questions and generate nothing: the verdict is the probability of each allowed reply
(`family.FreeText`), exp(sum of its tokens' log-probabilities), normalised over the allowed ones. Points are their expected value
(G-Eval, Liu and others 2023), a criterion the probability of yes, a comparison that of the first answer, averaged
over both orders. They need an engine that scores, and cost no new tokens.
"""

from collections.abc import Sequence
from itertools import groupby
from math import ceil, exp, fsum
from typing import NamedTuple

import polars as pl
from pydantic import Field

from tasks.blocks.judging import MALFORMED, Drawn, Judging, table, unread
from tasks.core import tables
from tasks.core.blocks import Block, Options, Requests
from tasks.core.demand import Counts, Demand
from tasks.core.engine import Completion
from tasks.core.errors import BadInput
from tasks.core.family import Choice, FreeText, Messages, Verdict

DISAGREE = "the orders disagree"
DECIMALS = 6  # of probabilities
POINTS_REPLIES = 6  # between which a pointwise judge chooses: 0 to 5 points


# --- one answer ------------------------------------------------------------------------------------------


class NoOptions(Options):
    pass


def judge_pointwise_logprobs(judging: Judging, options: NoOptions) -> pl.DataFrame:
    """The expected score over the family's points, in [0, 1], without a verdict: sum of score times probability."""
    family = _free_text(judging)
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
        verdicts.append([Verdict(True, None, round(expected, DECIMALS), text)])
    return table(judging, verdicts, [[0] for _ in verdicts])


class Checklist(Drawn):
    criteria: list[str] = Field(min_length=1)  # each a statement about the response, true or not


def judge_checklist(judging: Judging, options: Checklist) -> pl.DataFrame:
    """Share of the criteria that the model says are met; not parsed if a single reply is not."""
    family = _free_text(judging)
    asked = _by_criterion(judging, family, options.criteria)
    put = [(messages, draw) for several, draw in zip(asked, judging.draws, strict=True) for messages in several]
    replies = iter(judging.ask(options, put))
    verdicts, tokens = [], []
    for question, response, several in zip(judging.questions, judging.responses, asked, strict=True):
        by_criterion = [next(replies) for _ in several]
        draws = list(zip(*by_criterion, strict=True))
        read = [[_criterion(family, question, response, reply) for reply in draw] for draw in draws]
        verdicts.append(
            [
                _of_checklist(options.criteria, choices, [reply.text.strip() for reply in draw])
                for choices, draw in zip(read, draws, strict=True)
            ]
            or [MALFORMED]
        )
        tokens.append([sum(reply.tokens for reply in draw) for draw in draws] or [0])
    return table(judging, verdicts, tokens)


class ChecklistLogprobs(Options):
    criteria: list[str] = Field(min_length=1)


def judge_checklist_logprobs(judging: Judging, options: ChecklistLogprobs) -> pl.DataFrame:
    """Mean probability of yes over the criteria; verdict: each is more likely met than not."""
    family = _free_text(judging)
    asked = _by_criterion(judging, family, options.criteria, brief=True)
    put = [messages for several in asked for messages in several]
    found = iter(_probabilities(judging, put, family.criterion_replies()))
    verdicts = []
    for several in asked:
        chances = [Choice(round(next(found)[0], DECIMALS)) for _ in several]
        texts = [f"probability of yes {choice.worth:.3f}" for choice in chances]
        verdicts.append([_of_checklist(options.criteria, chances, texts)] if several else [MALFORMED])
    return table(judging, verdicts, [[0] for _ in verdicts])


def _by_criterion(
    judging: Judging, family: FreeText, criteria: Sequence[str], brief: bool = False
) -> list[list[Messages]]:
    """For each candidate a conversation for each criterion; none where it cannot be shown."""
    asked = []
    for question, response in zip(judging.questions, judging.responses, strict=True):
        several = [family.criterion_messages(question, response, criterion, brief) for criterion in criteria]
        asked.append([messages for messages in several if messages is not None])
    return asked


def _criterion(family: FreeText, question: Messages, response: str, reply: Completion) -> Choice:
    if why := unread(reply):
        return Choice(None, why)
    return family.parse_criterion(question, response, reply.text)


def _of_checklist(criteria: Sequence[str], choices: Sequence[Choice], texts: Sequence[str]) -> Verdict:
    text = "\n".join(f"{number}. {c}\n{t}" for number, (c, t) in enumerate(zip(criteria, texts, strict=True), start=1))
    worths = [choice.worth for choice in choices if choice.worth is not None]
    if len(worths) < len(choices):
        why = next(f"criterion {number}: {choice.why}" for number, choice in enumerate(choices, 1) if choice.why)
        return Verdict(False, text=text, why=why)
    return Verdict(True, min(worths) > 0.5, round(fsum(worths) / len(worths), DECIMALS), text)


# --- two answers -----------------------------------------------------------------------------------------


class Pairwise(Drawn):
    pairs: int | None = Field(ge=1)  # of a prompt, compared at most; null: every pair


class PairwiseLogprobs(Options):
    pairs: int | None = Field(ge=1)


class Game(NamedTuple):
    """Two candidates, by their places in `Judging`, and the two conversations about them: first as A, first as B."""

    first: int
    second: int
    orders: tuple[Messages, Messages]


def judge_pairwise(judging: Judging, options: Pairwise) -> pl.DataFrame:
    """Pairs of a prompt's candidates, each in both orders. Equal responses are one candidate, the first of them."""
    family = _free_text(judging)
    games = _games(judging, family, options.pairs, brief=False)
    put = [(order, _latest(judging, game)) for game in games for order in game.orders]
    replies = judging.ask(options, put)
    verdicts, tokens = [], []
    for game, as_a, as_b in zip(games, replies[::2], replies[1::2], strict=True):
        several = list(zip(as_a, as_b, strict=True))
        verdicts.append([_agreed(judging, family, game, *both) for both in several])
        tokens.append([one.tokens + two.tokens for one, two in several])
    return _compared(judging, games, verdicts, tokens)


def judge_pairwise_logprobs(judging: Judging, options: PairwiseLogprobs) -> pl.DataFrame:
    """The probability that the first answer is better, averaged over both orders. A verdict only where both orders
    prefer the same answer."""
    family = _free_text(judging)
    games = _games(judging, family, options.pairs, brief=True)
    chances = _probabilities(judging, [order for game in games for order in game.orders], family.pair_replies())
    verdicts = []
    for as_a, as_b in zip(chances[::2], chances[1::2], strict=True):
        one, two = as_a[0], as_b[1]
        agreed = (one > 0.5) if (one - 0.5) * (two - 0.5) > 0 else None
        text = f"better as A: {one:.3f}, as B: {two:.3f}"
        verdicts.append([Verdict(True, agreed, round((one + two) / 2, DECIMALS), text)])
    return _compared(judging, games, verdicts, [[0] for _ in games])


def _games(judging: Judging, family: FreeText, wanted: int | None, brief: bool) -> list[Game]:
    places = sorted(range(len(judging.prompt_ids)), key=lambda i: (judging.prompt_ids[i], judging.draws[i], i))
    games = []
    for _, group in groupby(places, key=lambda i: judging.prompt_ids[i]):
        players: dict[str, int] = {}
        for place in group:
            players.setdefault(judging.responses[place].strip(), place)
        known = [place for text, place in players.items() if text]
        for one, two in round_robin(len(known))[:wanted]:
            first, second = known[one], known[two]
            texts = judging.responses[first], judging.responses[second]
            orders = [
                family.pair_messages(judging.questions[first], *shown, brief) for shown in (texts, (texts[1], texts[0]))
            ]
            if orders[0] is not None and orders[1] is not None:
                games.append(Game(first, second, (orders[0], orders[1])))
    return games


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


def _latest(judging: Judging, game: Game) -> int:
    return max(judging.draws[game.first], judging.draws[game.second])


def _agreed(judging: Judging, family: FreeText, game: Game, as_a: Completion, as_b: Completion) -> Verdict:
    """What both replies say of the first candidate, shown as A and then as B."""
    question, first, second = (
        judging.questions[game.first],
        judging.responses[game.first],
        judging.responses[game.second],
    )
    text = f"as A:\n{as_a.text.strip()}\n\nas B:\n{as_b.text.strip()}"
    if why := unread(as_a) or unread(as_b):
        return Verdict(False, text=text, why=why)
    one = family.parse_pair(question, first, second, as_a.text)
    two = family.parse_pair(question, second, first, as_b.text)
    if one.worth is None or two.worth is None:
        return Verdict(False, text=text, why=one.why or two.why)
    if one.worth + two.worth != 1:
        return Verdict(False, text=text, why=DISAGREE)
    return Verdict(True, None if one.worth == 0.5 else one.worth == 1, one.worth, text)


def _compared(
    judging: Judging, games: Sequence[Game], verdicts: Sequence[Sequence[Verdict]], tokens: Sequence[Sequence[int]]
) -> pl.DataFrame:
    ids = judging.candidate_ids
    rows = [
        (ids[game.first], ids[game.second], judging.name, draw, v.text, v.verdict, v.score, v.parsed, v.why, count,
         judging.judge.digest)
        for game, several, counts in zip(games, verdicts, tokens, strict=True)
        for draw, (v, count) in enumerate(zip(several, counts, strict=True))
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=tables.CRITIQUES, orient="row")


# --- rankings --------------------------------------------------------------------------------------------


def outcomes(critiques: pl.DataFrame) -> pl.DataFrame:
    """One row per pair of one critic: `candidate_id`, `other_id`, `better` (whether most parsed draws prefer the first;
    null where none does), `score` (mean of the parsed draws, null where none parsed), `text`, `why` (of the first draw that
    did not parse). Sorted by both ids."""
    rows = critiques.filter(pl.col("other_id").is_not_null()).sort("candidate_id", "other_id", "draw")
    yes = (pl.col("parsed") & pl.col("verdict").fill_null(False)).sum()
    no = (pl.col("parsed") & ~pl.col("verdict").fill_null(True)).sum()
    return rows.group_by("candidate_id", "other_id", maintain_order=True).agg(
        better=pl.when(yes > no).then(True).when(no > yes).then(False).otherwise(None),
        score=pl.col("score").filter(pl.col("parsed")).mean(),
        text=pl.col("text").filter(pl.col("parsed")).first(),
        why=pl.col("why").drop_nulls().first(),
    )


def undecided(verdict: str, score: str) -> pl.Expr:
    """Why a parsed comparison decides nothing; null for one that does."""
    tie = pl.when(pl.col(score) == 0.5).then(pl.lit("tie")).otherwise(pl.lit(DISAGREE))
    return pl.when(pl.col(verdict).is_null()).then(tie)


def win_rates(critiques: pl.DataFrame) -> pl.DataFrame:
    """One row per compared candidate of one critic, as `critics.aggregate` gives them: `score` is the mean outcome of
    its pairs that parsed (win 1, tie 0.5, loss 0). Where all pairs were compared that is Copeland's ranking: win rate =
    (1 + (wins - losses) / pairs) / 2."""
    pairs = outcomes(critiques)
    mirrored = pairs.with_columns(candidate_id="other_id", other_id="candidate_id", score=1 - pl.col("score"))
    return (
        pl.concat([pairs, mirrored])
        .sort("candidate_id", "other_id")
        .group_by("candidate_id", maintain_order=True)
        .agg(
            verdict=pl.lit(None, dtype=pl.Boolean),
            score=pl.col("score").mean(),
            text=pl.col("text").drop_nulls().first(),
            why=pl.col("why").drop_nulls().first(),
        )
    )


# --- log-probabilities -----------------------------------------------------------------------------------


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


def _free_text(judging: Judging) -> FreeText:
    if not isinstance(judging.family, FreeText):
        raise BadInput(
            f"{judging.labels_for}.{judging.name}: family '{judging.family.name}' has no templates for judges of free "
            "text; use another critic"
        )
    return judging.family


COMPARING: set[Block] = {judge_pairwise, judge_pairwise_logprobs}
BLOCKS: dict[str, Block] = {
    "judge_pointwise_logprobs": judge_pointwise_logprobs,
    "judge_pairwise": judge_pairwise,
    "judge_pairwise_logprobs": judge_pairwise_logprobs,
    "judge_checklist": judge_checklist,
    "judge_checklist_logprobs": judge_checklist_logprobs,
}


# --- requests --------------------------------------------------------------------------------------------


def _drawn(options: Drawn) -> int:
    return options.draws if options.temperature else 1


def _pairs(options: Pairwise | PairwiseLogprobs, counts: Counts) -> int:
    """Both orders of every pair that is compared, at most."""
    players = ceil(counts.candidates / max(1, counts.prompts))
    every = players * (players - 1) // 2
    return 2 * counts.prompts * (every if options.pairs is None else min(every, options.pairs))


def _scored(requests: int) -> list[Demand]:
    return [Demand("critique", requests, 0)]


REQUESTS: dict[Block, Requests] = {
    judge_pointwise_logprobs: lambda options, counts: _scored(counts.candidates * POINTS_REPLIES),
    judge_checklist_logprobs: lambda options, counts: _scored(counts.candidates * 2 * len(options.criteria)),
    judge_pairwise_logprobs: lambda options, counts: _scored(2 * _pairs(options, counts)),
    judge_checklist: lambda options, counts: [
        Demand(
            "critique",
            counts.candidates * len(options.criteria) * _drawn(options),
            options.max_new_tokens,
            _drawn(options),
        )
    ],
    judge_pairwise: lambda options, counts: [
        Demand("critique", _pairs(options, counts) * _drawn(options), options.max_new_tokens, _drawn(options))
    ],
}

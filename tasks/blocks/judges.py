"""Judges of free text: which of two answers is better, which criteria are met, and verdicts without parsing.

A pairwise judge sees two answers to a prompt as A and B, and once more in the other order: models prefer a place
(Zheng and others 2023, Judging LLM-as-a-Judge). Only what both orders say counts; a tie, orders that disagree and
replies that do not parse give no preference, each with its reason. A row of CRITIQUES is one pair and draw: `candidate_id`
against `other_id`, verdict true if the first is better, score 1, 0.5 or 0.

A checklist judge is asked criterion by criterion (TICK, Cook and others 2024; checklists as rewards: RLCF, Viswanathan
and others 2025). Score: share of criteria met; verdict: all are.

`..._structured` put the same questions in brief and take one of the allowed replies (`family.FreeText`) as the engine
restricts it to them (`Sampling.choices`): there is nothing to parse, and also servers that tell no log-probabilities of given
texts can be asked. The judge gives no reasons. Verdicts from log-probabilities: `tasks.blocks.likelihood`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import ceil, fsum
from typing import NamedTuple

import polars as pl
from pydantic import Field

from tasks.blocks.judging import MALFORMED, Drawn, Judging, Repeated, table, unread
from tasks.core import tables
from tasks.core.asking.demand import Counts, Demand
from tasks.core.blocks import Block, Requests
from tasks.core.engines.base import Completion
from tasks.core.errors import BadInput
from tasks.core.family import Choice, FreeText, Messages, Verdict

DISAGREE = "the orders disagree"
DECIMALS = 6  # of probabilities
CHOSEN = 16  # tokens of a reply out of the allowed ones, at most
OUTSIDE = "a reply outside of the choices"

Ask = Callable[[Sequence[tuple[Messages, int]]], list[list[Completion]]]  # conversations, each with a draw


# --- one answer ------------------------------------------------------------------------------------------


def judge_pointwise_structured(judging: Judging, options: Repeated) -> pl.DataFrame:
    """A score in [0, 1] per draw by the family's additive scale, without a verdict."""
    family = free_text(judging)
    scores = family.points_replies()
    asked = [family.points_messages(q, r) for q, r in zip(judging.questions, judging.responses, strict=True)]
    put = [(messages, draw) for messages, draw in zip(asked, judging.draws, strict=True) if messages is not None]
    replies = iter(judging.choose(options, put, list(scores)))
    drawn: list[list[Completion]] = [[] if messages is None else next(replies) for messages in asked]
    verdicts = [[_points(scores, reply) for reply in several] or [MALFORMED] for several in drawn]
    return table(judging, verdicts, [[reply.tokens for reply in several] or [0] for several in drawn])


def _points(scores: Mapping[str, float], reply: Completion) -> Verdict:
    why = unread(reply) or (None if reply.text in scores else OUTSIDE)
    return Verdict(False, why=why) if why else Verdict(True, None, scores[reply.text], reply.text)


class Checklist(Drawn):
    criteria: list[str] = Field(min_length=1)  # each a statement about the response, true or not


class ChecklistStructured(Repeated):
    criteria: list[str] = Field(min_length=1)


def judge_checklist(judging: Judging, options: Checklist) -> pl.DataFrame:
    """Share of the criteria that the model says are met; not parsed if a single reply is not."""
    family = free_text(judging)
    asked = by_criterion(judging, family, options.criteria)
    return _checklist(
        judging, options.criteria, asked, partial(judging.ask, options),
        lambda question, response, reply: family.parse_criterion(question, response, reply.text),
    )  # fmt: skip


def judge_checklist_structured(judging: Judging, options: ChecklistStructured) -> pl.DataFrame:
    """Share of the criteria for which the model takes yes."""
    family = free_text(judging)
    replies = family.criterion_replies()
    asked = by_criterion(judging, family, options.criteria, brief=True)
    return _checklist(
        judging, options.criteria, asked, partial(judging.choose, options, choices=replies),
        lambda question, response, reply: _chosen(replies, reply),
    )  # fmt: skip


def _checklist(
    judging: Judging,
    criteria: Sequence[str],
    asked: Sequence[Sequence[Messages]],
    ask: Ask,
    read: Callable[[Messages, str, Completion], Choice],
) -> pl.DataFrame:
    put = [(messages, draw) for several, draw in zip(asked, judging.draws, strict=True) for messages in several]
    replies = iter(ask(put))
    verdicts, tokens = [], []
    for question, response, several in zip(judging.questions, judging.responses, asked, strict=True):
        draws = list(zip(*(next(replies) for _ in several), strict=True))  # of each, the replies to all criteria
        choices = [[_unless_unread(reply, partial(read, question, response)) for reply in draw] for draw in draws]
        texts = [[reply.text.strip() for reply in draw] for draw in draws]
        told = [of_checklist(criteria, *both) for both in zip(choices, texts, strict=True)]
        verdicts.append(told or [MALFORMED])
        tokens.append([sum(reply.tokens for reply in draw) for draw in draws] or [0])
    return table(judging, verdicts, tokens)


def _unless_unread(reply: Completion, read: Callable[[Completion], Choice]) -> Choice:
    why = unread(reply)
    return Choice(None, why) if why else read(reply)


def _chosen(replies: tuple[str, str], reply: Completion) -> Choice:
    """The worth of the first of two replies, where the reply is one of them."""
    return Choice(float(reply.text == replies[0])) if reply.text in replies else Choice(None, OUTSIDE)


def by_criterion(
    judging: Judging, family: FreeText, criteria: Sequence[str], brief: bool = False
) -> list[list[Messages]]:
    """For each candidate a conversation for each criterion; none where it cannot be shown."""
    asked = []
    for question, response in zip(judging.questions, judging.responses, strict=True):
        several = [family.criterion_messages(question, response, criterion, brief) for criterion in criteria]
        asked.append([messages for messages in several if messages is not None])
    return asked


def of_checklist(criteria: Sequence[str], choices: Sequence[Choice], texts: Sequence[str]) -> Verdict:
    """What the judgements of all criteria say together; `texts`: what the model said to each."""
    text = "\n".join(f"{number}. {c}\n{t}" for number, (c, t) in enumerate(zip(criteria, texts, strict=True), start=1))
    worths = [choice.worth for choice in choices if choice.worth is not None]
    if len(worths) < len(choices):
        why = next(f"criterion {number}: {choice.why}" for number, choice in enumerate(choices, 1) if choice.why)
        return Verdict(False, text=text, why=why)
    return Verdict(True, min(worths) > 0.5, round(fsum(worths) / len(worths), DECIMALS), text)


# --- two answers -----------------------------------------------------------------------------------------


class Pairwise(Drawn):
    pairs: int | None = Field(ge=1)  # of a prompt, compared at most; null: every pair


class PairwiseStructured(Repeated):
    pairs: int | None = Field(ge=1)


class Game(NamedTuple):
    """Two candidates, by their places in `Judging`, and the two conversations about them: first as A, first as B."""

    first: int
    second: int
    orders: tuple[Messages, Messages]


def judge_pairwise(judging: Judging, options: Pairwise) -> pl.DataFrame:
    """Pairs of a prompt's candidates, each in both orders. Equal responses are one candidate, the first of them."""
    family = free_text(judging)
    return _pairwise(
        judging, games(judging, family, options.pairs, brief=False), partial(judging.ask, options),
        lambda question, first, second, reply: family.parse_pair(question, first, second, reply.text),
    )  # fmt: skip


def judge_pairwise_structured(judging: Judging, options: PairwiseStructured) -> pl.DataFrame:
    """As `judge_pairwise`, but the model takes A or B, and no tie."""
    family = free_text(judging)
    replies = family.pair_replies()
    return _pairwise(
        judging, games(judging, family, options.pairs, brief=True), partial(judging.choose, options, choices=replies),
        lambda question, first, second, reply: _chosen(replies, reply),
    )  # fmt: skip


ReadPair = Callable[[Messages, str, str, Completion], Choice]


def _pairwise(judging: Judging, played: Sequence[Game], ask: Ask, read: ReadPair) -> pl.DataFrame:
    replies = ask([(order, _latest(judging, game)) for game in played for order in game.orders])
    verdicts, tokens = [], []
    for game, as_a, as_b in zip(played, replies[::2], replies[1::2], strict=True):
        several = list(zip(as_a, as_b, strict=True))
        verdicts.append([_agreed(judging, read, game, *both) for both in several])
        tokens.append([one.tokens + two.tokens for one, two in several])
    return compared(judging, played, verdicts, tokens)


def games(judging: Judging, family: FreeText, wanted: int | None, brief: bool) -> list[Game]:
    """Who is compared with whom: of each prompt's different candidates `wanted` pairs, None for all."""
    places = sorted(range(len(judging.prompt_ids)), key=lambda i: (judging.prompt_ids[i], judging.draws[i], i))
    found = []
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


def _latest(judging: Judging, game: Game) -> int:
    return max(judging.draws[game.first], judging.draws[game.second])


def _agreed(judging: Judging, read: ReadPair, game: Game, as_a: Completion, as_b: Completion) -> Verdict:
    """What both replies say of the first candidate, shown as A and then as B."""
    question, first, second = (
        judging.questions[game.first],
        judging.responses[game.first],
        judging.responses[game.second],
    )
    text = f"as A:\n{as_a.text.strip()}\n\nas B:\n{as_b.text.strip()}"
    if why := unread(as_a) or unread(as_b):
        return Verdict(False, text=text, why=why)
    one, two = read(question, first, second, as_a), read(question, second, first, as_b)
    if one.worth is None or two.worth is None:
        return Verdict(False, text=text, why=one.why or two.why)
    if one.worth + two.worth != 1:
        return Verdict(False, text=text, why=DISAGREE)
    return Verdict(True, None if one.worth == 0.5 else one.worth == 1, one.worth, text)


def compared(
    judging: Judging, played: Sequence[Game], verdicts: Sequence[Sequence[Verdict]], tokens: Sequence[Sequence[int]]
) -> pl.DataFrame:
    """CRITIQUES of the games: for each its draws' verdicts and tokens."""
    ids = judging.candidate_ids
    rows = [
        (ids[game.first], ids[game.second], judging.name, draw, v.text, v.verdict, v.score, v.parsed, v.why, count,
         judging.judge.digest)
        for game, several, counts in zip(played, verdicts, tokens, strict=True)
        for draw, (v, count) in enumerate(zip(several, counts, strict=True))
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=tables.CRITIQUES, orient="row")


# --- rankings --------------------------------------------------------------------------------------------


def outcomes(critiques: pl.DataFrame) -> pl.DataFrame:
    """One row per pair of one critic: `candidate_id`, `other_id`, `better` (whether most parsed draws prefer the first;
    null where none does), `score` (mean of the parsed draws, null where none parsed), `text`, `why` (of the first draw that
    did not parse). Sorted by both ids."""
    rows = critiques.filter(pl.col("other_id").is_not_null()).sort("candidate_id", "other_id", "draw")
    return by_draws(rows, "candidate_id", "other_id").rename({"verdict": "better"})


def by_draws(rows: pl.DataFrame, *what: str) -> pl.DataFrame:
    """The draws of an opinion on `what` put together: `verdict` (of most that parsed, null on a tie or where none did),
    `score` (their mean), `text` (of the first), `why` (of the first that did not parse). In the order of `rows`."""
    parsed = pl.col("parsed")
    yes = (parsed & pl.col("verdict").fill_null(False)).sum()
    no = (parsed & ~pl.col("verdict").fill_null(True)).sum()
    return rows.group_by(*what, maintain_order=True).agg(
        verdict=pl.when(yes > no).then(True).when(no > yes).then(False).otherwise(None),
        score=pl.col("score").filter(parsed).mean(),
        text=pl.col("text").filter(parsed).first(),
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


def free_text(judging: Judging) -> FreeText:
    if not isinstance(judging.family, FreeText):
        raise BadInput(
            f"{judging.labels_for}.{judging.name}: family '{judging.family.name}' has no templates for judges of free "
            "text; use another critic"
        )
    return judging.family


COMPARING: set[Block] = {judge_pairwise, judge_pairwise_structured}
BLOCKS: dict[str, Block] = {
    "judge_pointwise_structured": judge_pointwise_structured,
    "judge_pairwise": judge_pairwise,
    "judge_pairwise_structured": judge_pairwise_structured,
    "judge_checklist": judge_checklist,
    "judge_checklist_structured": judge_checklist_structured,
}


# --- requests --------------------------------------------------------------------------------------------


def drawn(options: Repeated, conversations: int) -> list[Demand]:
    """What a critic asks that draws replies to so many conversations."""
    draws = options.draws if options.temperature else 1
    longest = options.max_new_tokens if isinstance(options, Drawn) else CHOSEN
    return [Demand("critique", conversations * draws, longest, draws)]


def orders(pairs: int | None, counts: Counts) -> int:
    """Conversations about both orders of every pair that is compared, at most."""
    players = ceil(counts.candidates / max(1, counts.prompts))
    every = players * (players - 1) // 2
    return 2 * counts.prompts * (every if pairs is None else min(every, pairs))


def _of_checklists(options: Checklist | ChecklistStructured, counts: Counts) -> list[Demand]:
    return drawn(options, counts.candidates * len(options.criteria))


def _of_pairs(options: Pairwise | PairwiseStructured, counts: Counts) -> list[Demand]:
    return drawn(options, orders(options.pairs, counts))


REQUESTS: dict[Block, Requests] = {
    judge_pointwise_structured: lambda options, counts: drawn(options, counts.candidates),
    judge_checklist: _of_checklists,
    judge_checklist_structured: _of_checklists,
    judge_pairwise: _of_pairs,
    judge_pairwise_structured: _of_pairs,
}

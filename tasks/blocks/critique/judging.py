"""What critics share: how they draw replies, read log-probabilities, and put what they found into a table.

A critic is given the candidates (`tasks.blocks.work.Work`) and gives CRITIQUES. A critique that does not parse carries
`parsed` false and the reason, no verdict and no score, so that nothing can read a judgement from it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, fsum

import polars as pl
from pydantic import Field

from tasks.blocks.work import JUDGE, Work
from tasks.core import tables
from tasks.core.asking.demand import Demand
from tasks.core.block import Bound, Options
from tasks.core.engines.contract import Completion, Sampling
from tasks.core.errors import BadInput
from tasks.core.family import Choice, FreeText, Messages, Verdict

MALFORMED = Verdict(parsed=False, why="malformed response")
CUT_OFF = "unfinished reply"  # "Score: 1" may have become "Score: 10"
OUTSIDE = "a reply outside of the choices"
DECIMALS = 6  # of probabilities
CHOSEN = 16  # tokens of a reply out of the allowed ones, at most

Put = tuple[Messages, int]  # a conversation, and the draw of the candidate that it is about


class NoOptions(Options):
    pass


class Repeated(Options):
    draws: int = Field(ge=1)  # critiques of each candidate
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)


class Drawn(Repeated):
    max_new_tokens: int = Field(ge=1)


def judged(work: Work, critics: Sequence[Bound]) -> pl.DataFrame:
    """CRITIQUES of all candidates by all critics."""
    work = replace(work, asked=JUDGE)
    found = [tables.empty(tables.CRITIQUES)]
    for critic in in_order(critics):
        found.append(critic(replace(work, opinions=pl.concat(found)).of(critic)))
    return pl.concat(found)


def in_order(critics: Sequence[Bound]) -> list[Bound]:
    """Critics that others read before those, else in the order given; without those that read one that is not there.
    Raises `BadInput` where they read one another in a circle."""
    waiting, placed = {critic.name: critic for critic in critics}, dict[str, Bound]()
    while waiting:
        ready = [c for c in waiting.values() if {read.critic for read in c.reads} <= placed.keys()]
        if not ready:
            absent = [c for c in waiting.values() if not {r.critic for r in c.reads} <= {*waiting, *placed}]
            if not absent:
                raise BadInput(
                    f"critique: {', '.join(waiting)} read one another in a circle; let one of them read no critic"
                )
            for critic in absent:
                del waiting[critic.name]
            continue
        placed[ready[0].name] = waiting.pop(ready[0].name)
    return list(placed.values())


# --- asking ----------------------------------------------------------------------------------------------


def ask(work: Work, options: Drawn, put: Sequence[Put]) -> list[list[Completion]]:
    """Replies to each conversation, `options.draws` of them, one at temperature 0."""
    return _asked(work, options, put, options.max_new_tokens, ())


def choose(work: Work, options: Repeated, put: Sequence[Put], choices: Sequence[str]) -> list[list[Completion]]:
    """As `ask`, and every reply that is finished is one of the choices."""
    longest = max(len(choice.encode()) for choice in choices) + 2  # no token is less than a byte; the end; a space
    return _asked(work, options, put, longest, tuple(choices))


def _asked(
    work: Work, options: Repeated, put: Sequence[Put], longest: int, choices: tuple[str, ...]
) -> list[list[Completion]]:
    sampling = Sampling(options.draws, options.temperature, options.top_p, longest, work.seed, choices)
    if options.temperature == 0:
        sampling = Sampling(1, 0.0, 1.0, longest, 0, choices)
    return work.model.generate([m for m, _ in put], sampling, work.name, [draw for _, draw in put])


def probabilities(work: Work, asked: Sequence[Messages], replies: Sequence[str]) -> list[list[float]]:
    """For each conversation the probability of each of the replies, given that it is one of them: exp(sum of its
    tokens' log-probabilities), normalised over the allowed ones."""
    told = list(replies) * len(asked)
    scores = work.model.score([messages for messages in asked for _ in replies], told, work.name)
    sums = [fsum(row) for row in scores]
    found = []
    for start in range(0, len(sums), len(replies)):
        several = sums[start : start + len(replies)]
        weights = [exp(value - max(several)) for value in several]
        found.append([weight / fsum(weights) for weight in weights])
    return found


def unread(reply: Completion) -> str | None:
    """Why a reply is not to be read at all; None where it is."""
    if reply.failed:
        return f"no reply: {reply.why}"
    return None if reply.finish_reason == "stop" else CUT_OFF


def chosen(replies: tuple[str, str], reply: Completion) -> Choice:
    """The worth of the first of two replies, where the reply is one of them."""
    return Choice(float(reply.text == replies[0])) if reply.text in replies else Choice(None, OUTSIDE)


def free_text(work: Work) -> FreeText:
    """The family, where it has templates for judges of free text. Raises `BadInput`."""
    if not isinstance(work.family, FreeText):
        raise BadInput(
            f"{work.truth.stage}.{work.name}: family '{work.family.name}' has no templates for judges of free "
            "text; use another critic"
        )
    return work.family


# --- what was found --------------------------------------------------------------------------------------


def table(
    work: Work, verdicts: Sequence[Sequence[Verdict]], tokens: Sequence[Sequence[int]], asked: bool = True
) -> pl.DataFrame:
    """CRITIQUES from the draws' verdicts and tokens of every answer, in the order of `work.answers`. `asked`: whether
    the judge was asked at all."""
    about: list[tuple[str, str | None]] = [(answer.candidate_id, None) for answer in work.answers]
    return critiques(work, about, verdicts, tokens, asked)


def critiques(
    work: Work,
    about: Sequence[tuple[str, str | None]],
    verdicts: Sequence[Sequence[Verdict]],
    tokens: Sequence[Sequence[int]],
    asked: bool = True,
) -> pl.DataFrame:
    """CRITIQUES about candidates, or about one against another."""
    digest = work.model.digest if asked else None
    rows = [
        {
            "candidate_id": candidate,
            "other_id": other,
            "critic": work.name,
            "draw": draw,
            "text": verdict.text,
            "verdict": verdict.verdict,
            "score": verdict.score,
            "parsed": verdict.parsed,
            "why": verdict.why,
            "tokens": count,
            "model": digest,
        }
        for (candidate, other), several, counts in zip(about, verdicts, tokens, strict=True)
        for draw, (verdict, count) in enumerate(zip(several, counts, strict=True))
    ]
    return pl.DataFrame(rows, schema=tables.CRITIQUES)


# --- requests, told beforehand ---------------------------------------------------------------------------


def drawn(options: Repeated, conversations: int) -> list[Demand]:
    """What a critic asks that draws replies to so many conversations."""
    draws = options.draws if options.temperature else 1
    longest = options.max_new_tokens if isinstance(options, Drawn) else CHOSEN
    return [Demand("critique", conversations * draws, longest, draws)]


def scored(requests: int) -> list[Demand]:
    """What a critic asks that reads the likelihood of so many texts."""
    return [Demand("critique", requests, 0)]

"""Critics of critics: whether two of them agree. They ask no model; they read what others said before.

`rank_agreement` compares how two critics rank a prompt's candidates. CREAM (Wang et al. 2024) takes C = (tau + 1) / 2 with
Kendall's tau between the rankings by the present and by the last model as the confidence in a preference.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import polars as pl
from pydantic import Field

from tasks.blocks.critique.judging import DECIMALS, table
from tasks.blocks.critique.opinions import aggregate
from tasks.blocks.work import Work
from tasks.core.block import Block, Options, Read
from tasks.core.family import Verdict

Scores = Sequence[float]


class RankAgreement(Options):
    of: list[str] = Field(min_length=2, max_length=2)  # critics that give scores
    method: Literal["kendall", "spearman", "top"]  # of comparing two rankings


class Both(Options):
    of: list[str] = Field(min_length=2)  # critics that give verdicts


def rank_agreement(work: Work, options: RankAgreement) -> pl.DataFrame:
    """How far two critics rank a prompt's candidates alike, as the score of each of them, between 0 (the reverse) and 1
    (the same): (r + 1) / 2 of Kendall's or Spearman's r over ordinal ranks, equal scores in the order of the candidates;
    `top`: 1 where both put the same candidate first. Candidates that one of them gave no score count for nothing."""
    known = [_scores(work, name) for name in options.of]
    groups: dict[str, list[tuple[float, float]]] = {}
    for answer in work.answers:
        pair = [scores.get(answer.candidate_id) for scores in known]
        if pair[0] is not None and pair[1] is not None:
            groups.setdefault(answer.prompt_id, []).append((pair[0], pair[1]))
    measure = MEASURES[options.method]
    found = {prompt: round(measure(*zip(*pairs, strict=True)), DECIMALS) for prompt, pairs in groups.items()}
    silent = Verdict(parsed=False, why=f"{' or '.join(options.of)} gave no score")
    verdicts = [
        [Verdict(True, None, found[answer.prompt_id])] if answer.prompt_id in found else [silent]
        for answer in work.answers
    ]
    return table(work, verdicts, [[0] for _ in verdicts], asked=False)


def both(work: Work, options: Both) -> pl.DataFrame:
    """Accepts what all of the critics accept, refuses what one of them refuses; the score is the share that accepts. A
    candidate of which one gave no verdict has none."""
    told = [dict(aggregate(work.opinions, name).select("candidate_id", "verdict").iter_rows()) for name in options.of]
    verdicts = []
    for answer in work.answers:
        several = [known.get(answer.candidate_id) for known in told]
        if any(verdict is None for verdict in several):
            verdicts.append([Verdict(parsed=False, why=f"{' or '.join(options.of)} gave no verdict")])
        else:
            verdicts.append([Verdict(True, all(several), several.count(True) / len(several))])
    return table(work, verdicts, [[0] for _ in verdicts], asked=False)


def kendall(one: Scores, two: Scores) -> float:
    """(tau + 1) / 2: the share of pairs that both rank in the same order; 1 of a single candidate."""
    first, second = ranks(one), ranks(two)
    pairs = list(combinations(range(len(first)), 2))
    alike = sum((first[a] < first[b]) == (second[a] < second[b]) for a, b in pairs)
    return alike / len(pairs) if pairs else 1.0


def spearman(one: Scores, two: Scores) -> float:
    """(rho + 1) / 2 with rho = 1 - 6 sum d^2 / (n (n^2 - 1)) over the ranks' differences d; 1 of a single candidate."""
    count = len(one)
    apart = sum((a - b) ** 2 for a, b in zip(ranks(one), ranks(two), strict=True))
    return 1.0 - 3 * apart / (count * (count**2 - 1)) if count > 1 else 1.0


def top(one: Scores, two: Scores) -> float:
    """Whether both have the same best."""
    return float(ranks(one).index(0) == ranks(two).index(0))


def ranks(scores: Scores) -> list[int]:
    """The place of each, 0 the highest score; equal ones in their order."""
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    found = [0] * len(scores)
    for rank, place in enumerate(order):
        found[place] = rank
    return found


MEASURES: Mapping[str, Callable[[Scores, Scores], float]] = {"kendall": kendall, "spearman": spearman, "top": top}


def _scores(work: Work, critic: str) -> dict[str, float | None]:
    return dict(aggregate(work.opinions, critic).select("candidate_id", "score").iter_rows())


def _ranked(options: RankAgreement) -> list[Read]:
    return [Read("of", critic, frozenset({"scores"})) for critic in options.of]


def _accepted(options: Both) -> list[Read]:
    return [Read("of", critic, frozenset({"verdicts"})) for critic in options.of]


BLOCKS = {
    "rank_agreement": Block(rank_agreement, gives=frozenset({"scores"}), needs=frozenset({"siblings"}), reads=_ranked),
    "both": Block(both, gives=frozenset({"verdicts", "scores"}), reads=_accepted),
}

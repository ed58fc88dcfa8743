"""Weights and smoothing of training rows, from critics' scores."""

from collections.abc import Mapping, Sequence
from math import fsum

from pydantic import Field

from tasks.blocks.filter.selection import Selection
from tasks.core.block import Options, Read
from tasks.core.errors import StageFailed

DECIMALS = 6


class Weight(Options):
    """A row's weight is its candidate's score, raised to `power`, and scaled so that the mean of all rows is `mean`: of
    EAST (Wang et al. 2025, Entropy-Based Adaptive Weighting for Self-Training) with the entropy of the vote as the score
    H it is H^a / mean(H^a)."""

    critic: str
    power: float  # of the score; 1: the score itself
    mean: float | None = Field(gt=0)  # null: as they are

    def reads(self, option: str) -> list[Read]:
        return [Read(f"{option}.critic", self.critic, frozenset({"scores"}))]


class PairWeight(Weight):
    """As `Weight`, of a pair: the score is that of the chosen candidate, or, without a critic, the pair's margin."""

    critic: str | None  # type: ignore[assignment]  # null: the margin

    def reads(self, option: str) -> list[Read]:
        return [] if self.critic is None else super().reads(option)


class Smoothing(Options):
    """How probable it is that a pair is the wrong way round: 1 - the critic's score, of the chosen candidate. CREAM (Wang
    et al. 2024) takes the consistency C = (Kendall's tau + 1) / 2 as the score."""

    critic: str
    each: bool  # false: the mean over all pairs, for each of them

    def reads(self, option: str) -> list[Read]:
        return [Read(f"{option}.critic", self.critic, frozenset({"scores"}))]


def scores(state: Selection, critic: str, block: str) -> dict[str, float | None]:
    """The critic's score of every candidate that it judged."""
    return dict(state.opinions(critic, block).select("candidate_id", "score").iter_rows())


def weights(values: Sequence[float], options: Weight, block: str) -> list[float]:
    """The weights of rows with these scores. Raises `StageFailed` for a score that cannot be one."""
    if any(value < 0 for value in values):
        raise StageFailed(
            f"filter.{block}.weight: a score of {options.critic or 'the margin'} is {min(values):g}, and a weight cannot be "
            "negative; weigh by a critic whose scores are at least 0"
        )
    raised = [value**options.power for value in values]
    mean = fsum(raised) / len(raised) if raised else 0.0
    if options.mean is not None and mean > 0:
        raised = [value * options.mean / mean for value in raised]
    return [round(value, DECIMALS) for value in raised]


def smoothed(chosen: Sequence[str], known: Mapping[str, float | None], options: Smoothing, block: str) -> list[float]:
    """The smoothing of pairs with these chosen candidates. A pair that the critic gave no score counts as half wrong.
    Raises `StageFailed` for a score outside of 0 to 1."""
    found = [known.get(candidate) for candidate in chosen]
    scored = [0.5 if score is None else score for score in found]
    if any(not 0 <= score <= 1 for score in scored):
        raise StageFailed(
            f"filter.{block}.smoothing: a score of {options.critic} is {min(scored, key=lambda s: -abs(s - 0.5)):g}; it takes "
            "a critic whose scores are between 0 and 1"
        )
    if not options.each and scored:
        scored = [fsum(scored) / len(scored)] * len(scored)
    return [round(1 - score, DECIMALS) for score in scored]

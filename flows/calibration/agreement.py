"""How far a critic agrees with humans, from what it said of each row: pure functions, lists in, figures out.

Sources: Cohen 1960, A coefficient of agreement for nominal scales: kappa = (p_o - p_e) / (1 - p_e), p_o the share of rows
on which both say the same, p_e what two raters with the same shares of yes would reach by chance. AUROC: Mann-Whitney U,
ties counted half. Position bias: Zheng and others 2023, Judging LLM-as-a-Judge. Intervals are of 95 %: Wilson for
shares of rows, a bootstrap over prompts for kappa, AUROC and the position (`tasks.core.uncertainty`). A row that could
not be read is in `unread` and in no other figure; None stands for what cannot be computed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import polars as pl

from tasks.blocks.evaluate import metrics
from tasks.core.uncertainty import Interval, Number, bootstrap, wilson

Figure = dict[str, Any]  # value, low, high


class Said(NamedTuple):
    """What a critic said of one labelled response. `prompt`: equal for responses to one prompt."""

    prompt: str
    label: bool
    verdict: bool | None
    score: float | None


class Preferred(NamedTuple):
    """What a critic said of one pair of which a human prefers the first. `worth` of the first: 1, 0, 0.5 for a tie, None
    where nothing could be read. `first_shown`: readings that prefer what was shown first, of `readings` that prefer
    one (two orders, each a draw); none where the critic sees one response at a time. `disagree`: its orders do."""

    prompt: str
    worth: float | None
    first_shown: int = 0
    readings: int = 0
    disagree: bool = False


def of_labels(said: Sequence[Said]) -> Figure:
    """Agreement, kappa, AUROC, the share unread, and the scores of right and of wrong responses."""
    judged = [row for row in said if row.verdict is not None]
    scored = [row for row in said if row.score is not None]
    unread = sum(row.verdict is None and row.score is None for row in said)
    return {
        "rows": len(said),
        "right": sum(row.label for row in said),
        "agreement": share(sum(row.verdict == row.label for row in judged), len(judged)),
        "kappa": over_prompts(judged, lambda rows: kappa([(bool(r.verdict), r.label) for r in rows])),
        "auroc": over_prompts(scored, auroc),
        "unread": share(unread, len(said)),
        "scores": {
            name: spread([float(row.score) for row in scored if row.score is not None and row.label is right])
            for name, right in (("right", True), ("wrong", False))
        },
    }


def of_preferences(said: Sequence[Preferred]) -> Figure:
    """The share of decided pairs on which the critic prefers what the human prefers, ties, orders that disagree, the share
    unread, and how often it prefers what is shown first (0.5: no bias)."""
    decided = [row for row in said if row.worth in (0.0, 1.0)]
    placed = [row for row in said if row.readings]
    return {
        "rows": len(said),
        "accuracy": share(sum(row.worth == 1.0 for row in decided), len(decided)),
        "ties": share(sum(row.worth == 0.5 and not row.disagree for row in said), len(said)),
        "disagree": share(sum(row.disagree for row in said), len(said)),
        "unread": share(sum(row.worth is None and not row.disagree for row in said), len(said)),
        "first_shown": over_prompts(placed, _first_shown),
    }


def _first_shown(rows: Sequence[Preferred]) -> Number:
    readings = sum(row.readings for row in rows)
    return sum(row.first_shown for row in rows) / readings if readings else None


def kappa(pairs: Sequence[tuple[bool, bool]]) -> Number:
    """Cohen's kappa of two raters; None without rows, or where chance alone explains all agreement (p_e = 1)."""
    if not pairs:
        return None
    number = len(pairs)
    agreed = sum(one == two for one, two in pairs) / number
    yes, yes_too = sum(one for one, _ in pairs) / number, sum(two for _, two in pairs) / number
    chance = yes * yes_too + (1 - yes) * (1 - yes_too)
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def auroc(rows: Sequence[Said]) -> Number:
    """Chance that a right response has a higher score than a wrong one; None where there are only right or only wrong."""
    return metrics.auroc(pl.DataFrame({"score": [r.score for r in rows], "correct": [r.label for r in rows]}))


def spread(values: Sequence[float]) -> list[float] | None:
    """Least, quartiles and greatest; None of nothing."""
    found = pl.Series(values, dtype=pl.Float64)
    ends = [found.quantile(q, "linear") for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return [round(float(end), metrics.DECIMALS) for end in ends if end is not None] or None


def share(part: int, whole: int) -> Figure:
    """A share of rows with its interval."""
    return _figure(part / whole if whole else None, wilson(part, whole))


def over_prompts(rows: Sequence[Any], figure: Callable[[Sequence[Any]], Number]) -> Figure:
    """A figure of rows with an interval over prompts: the rows of one prompt come and go together."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row.prompt, []).append(row)
    several = list(groups.values())
    interval = bootstrap(len(several), lambda chosen: figure([row for place in chosen for row in several[place]]))
    return _figure(figure(rows), interval)


def _figure(value: Number, interval: Interval) -> Figure:
    ends = metrics.rounded({"value": value, "low": interval[0], "high": interval[1]})
    return {name: None if end is None else end + 0.0 for name, end in ends.items()}  # no -0.0

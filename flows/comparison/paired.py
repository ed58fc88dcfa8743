"""Two tables of predictions side by side: accuracies, the paired test, pass@k, and the prompts that changed sides.

A table is PREDICTIONS of one model on the held-out prompts. Only what both were asked is compared, and only where it is
exactly the same prompts: a test of some of them would be a test of others. Formulas: `tasks.core.uncertainty`.
"""

from dataclasses import dataclass

import polars as pl

from tasks.blocks.evaluate import metrics
from tasks.core.uncertainty import LEVEL, Interval, Number, bootstrap_mean, mcnemar, wilson

BETTER, WORSE, UNCLEAR = "better", "worse", "not told apart"


@dataclass(frozen=True)
class Paired:
    """The second of two models against the first on the same prompts, by their greedy answers. `p`: two-sided, of the
    exact McNemar test; `interval`: of the difference of the accuracies, 95 %, a bootstrap over prompts."""

    prompts: int
    gained: int  # prompts that the second alone answers rightly
    lost: int  # prompts that the first alone answers rightly
    p: float
    interval: Interval

    @property
    def difference(self) -> float:
        """Of the accuracies, second less first, in -1..1."""
        return (self.gained - self.lost) / self.prompts

    @property
    def verdict(self) -> str:
        """Whether the second model is better or worse, where p is at most `LEVEL`; else that nobody can say."""
        return UNCLEAR if self.p > LEVEL else BETTER if self.gained > self.lost else WORSE


def greedy(predictions: pl.DataFrame) -> pl.DataFrame:
    """The greedy answers, one a prompt, in the order of the prompts' ids."""
    return metrics.of_kind(predictions, "greedy").sort("prompt_id")


def accuracy(predictions: pl.DataFrame) -> tuple[Number, Interval]:
    """Greedy accuracy with its 95 % interval (Wilson); None without truth."""
    answers = greedy(predictions)
    share = metrics.accuracy(answers)
    return share, wilson(int(answers["correct"].sum()), answers.height) if share is not None else (None, None)


def apart(first: pl.DataFrame, second: pl.DataFrame) -> str | None:
    """Why two tables cannot be paired; None where they can."""
    one, two = greedy(first), greedy(second)
    prompts, others = set(one["prompt_id"]), set(two["prompt_id"])
    if prompts != others:
        return (
            f"the held-out prompts differ: {len(prompts):,} of the first and {len(others):,} of the second, "
            f"{len(prompts & others):,} in both"
        )
    if not prompts:
        return "there are no predictions"
    unknown = one["correct"].null_count() or two["correct"].null_count()
    return "the prompts have no answers, so nobody knows who is right" if unknown else None


def paired(first: pl.DataFrame, second: pl.DataFrame) -> Paired | None:
    """The comparison; None where `apart` says why not."""
    if apart(first, second) is not None:
        return None
    change = greedy(second)["correct"].cast(pl.Int8) - greedy(first)["correct"].cast(pl.Int8)
    gained, lost = int((change == 1).sum()), int((change == -1).sum())
    return Paired(change.len(), gained, lost, mcnemar(gained, lost), bootstrap_mean(change.to_list()))


@dataclass(frozen=True)
class Passed:
    """pass@k of two models with 95 % intervals (bootstrap over prompts), and of the second less the first where both
    were asked the same prompts."""

    k: int
    first: tuple[Number, Interval]
    second: tuple[Number, Interval]
    difference: tuple[Number, Interval]


def passed(first: pl.DataFrame, second: pl.DataFrame) -> list[Passed]:
    """pass@1, and pass@k for the largest power of two that both have samples for; none without samples or truth."""
    one, two = metrics.of_kind(first, "sample"), metrics.of_kind(second, "sample")
    fewest = min(_draws(one), _draws(two))
    same, found = apart(first, second) is None, []
    for k in sorted({1, 1 << (fewest.bit_length() - 1)} if fewest else ()):
        values, others = metrics.pass_by_prompt(one, k), metrics.pass_by_prompt(two, k)
        if values and others:
            changes = [b - a for a, b in zip(values, others, strict=True)] if same else []
            found.append(Passed(k, _mean(values), _mean(others), _mean(changes)))
    return found


def _draws(samples: pl.DataFrame) -> int:
    """Samples of the prompt that has fewest."""
    return int(samples.group_by("prompt_id").len()["len"].min() or 0)  # type: ignore[arg-type]


def _mean(values: list[float]) -> tuple[Number, Interval]:
    return metrics.mean(values), bootstrap_mean(values)


def changed(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """The prompts whose greedy answer is right in one table alone: `prompt_id`, `difficulty`, `right` (whether it is in
    the second), and `answer`, `response` of the first and, ending in `_now`, of the second; in the order of the ids."""
    columns = ["prompt_id", "correct", "answer", "response"]
    both = (
        greedy(first).select(*columns, "difficulty").join(greedy(second).select(columns), on="prompt_id", suffix="_now")
    )
    return both.filter(pl.col("correct") != pl.col("correct_now")).select(
        "prompt_id",
        "difficulty",
        pl.col("correct_now").alias("right"),
        "answer",
        "response",
        "answer_now",
        "response_now",
    )

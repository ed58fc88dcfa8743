"""Every number that evaluation reports: pure functions, a table of predictions in, a value out.

Input everywhere: rows of `tables.PREDICTIONS` (one answer of one prompt each), usually those of one
kind: `greedy` (one a prompt), `sample` (n a prompt) or `refined` (at most one a prompt). A value is a
float, or None where it cannot be computed: no rows, no truth (`correct` null), a class that is empty.
NaN never leaves this module. Shares lie in 0..1, lengths are tokens, scores are the critic's own.

`summary` puts all figures of one prompt set into a flat mapping, `guards` the warnings that the probe set
gives. Sources: pass@k, Chen et al. 2021 (arXiv 2107.03374); vote, Wang et al. 2022 (self-consistency);
interval, `tasks.core.uncertainty`; verification gap, Song et al. 2024 (Mind the Gap); balance, Zeng et al. 2024
(B-STaR); refinement transitions, Huang et al. 2023 and Kumar et al. 2024 (SCoRe); calibration,
Guo et al. 2017. Sums are taken in a fixed order, so that equal rows give equal digits on any machine.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import comb, fsum
from typing import Any

import polars as pl

from tasks.core.uncertainty import Number, wilson

BINS = 10  # of the calibration error, as in Guo et al. 2017
DECIMALS = 6


def mean(values: Iterable[float]) -> Number:
    """Arithmetic mean, None of nothing."""
    given = list(values)
    return fsum(given) / len(given) if given else None


def of_kind(predictions: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The rows of one kind: greedy, sample or refined."""
    return predictions.filter(pl.col("kind") == kind)


def accuracy(answers: pl.DataFrame) -> Number:
    """Share of right answers; None where any truth is unknown."""
    right = answers["correct"]
    return None if right.null_count() else mean(float(value) for value in right)


def by_prompt(predictions: pl.DataFrame) -> dict[str, bool | None]:
    """Whether the greedy answer of each prompt is right, in the order of the prompts' ids; None where nobody knows."""
    return dict(of_kind(predictions, "greedy").sort("prompt_id").select("prompt_id", "correct").iter_rows())


def pass_at_k(samples: pl.DataFrame, k: int) -> Number:
    """Mean over prompts of 1 - C(n-c, k) / C(n, k), c of n samples right: the unbiased estimate of the chance
    that k samples hold a right one (Chen et al. 2021). None where a prompt has fewer than k samples."""
    return mean(pass_by_prompt(samples, k))


def pass_by_prompt(samples: pl.DataFrame, k: int) -> list[float]:
    """The values that `pass_at_k` is the mean of, in the order of the prompts' ids; none where it is None."""
    values = []
    for group in _groups(samples, "correct"):
        right = [row[0] for row in group]
        if len(right) < k or None in right:
            return []
        values.append(1.0 - comb(len(right) - sum(right), k) / comb(len(right), k))
    return values


def vote(answers: Sequence[str | None]) -> int | None:
    """Position of the first holder of the most frequent answer. Null answers do not vote; of equally frequent
    answers the one that was drawn first wins. None without any answer."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return None
    most = max(counts.values())
    return next(i for i, answer in enumerate(answers) if answer is not None and counts[answer] == most)


def maj_at_k(samples: pl.DataFrame, k: int) -> Number:
    """Share of votes of k samples whose winner is right. With n = k samples a prompt that is one vote; with more,
    the mean over the n // k consecutive groups of k draws. A vote without any answer counts as wrong."""

    def winner(rows: Sequence[tuple[Any, ...]]) -> bool | None:
        position = vote([answer for _, answer in rows])
        return False if position is None else rows[position][0]

    return _of_k(samples, k, "answer", winner)


def best_of_k(samples: pl.DataFrame, k: int) -> Number:
    """Share of right answers when of k samples the one with the critic's highest score is taken; groups as in
    `maj_at_k`. Equal scores: the first draw. A missing score is below every other. None without any score."""
    if samples["score"].null_count() == samples.height:
        return None

    def best(rows: Sequence[tuple[Any, ...]]) -> bool | None:
        return max(rows, key=lambda row: float("-inf") if row[1] is None else row[1])[0]

    return _of_k(samples, k, "score", best)


def critique_rates(answers: pl.DataFrame) -> dict[str, Number]:
    """The critic's verdicts against truth, over answers that have both: precision P(right | accepted), recall
    P(accepted | right), specificity P(refused | wrong), accuracy of the verdicts, and AUROC of the scores."""
    pairs = [(v, c) for v, c in answers.select("verdict", "correct").iter_rows() if v is not None and c is not None]
    return {
        "critique_precision": mean(float(c) for v, c in pairs if v),
        "critique_recall": mean(float(v) for v, c in pairs if c),
        "critique_specificity": mean(float(not v) for v, c in pairs if not c),
        "critique_accuracy": mean(float(v == c) for v, c in pairs),
        "critique_auroc": auroc(answers),
    }


def auroc(answers: pl.DataFrame) -> Number:
    """Chance that a right answer has a higher score than a wrong one, ties counted half (Mann-Whitney U over
    mean ranks). None when either class is empty."""
    pairs = [(s, c) for s, c in answers.select("score", "correct").iter_rows() if s is not None and c is not None]
    scores = Counter(score for score, _ in pairs)
    rank, below = {}, 0
    for score in sorted(scores):
        rank[score] = below + (scores[score] + 1) / 2
        below += scores[score]
    right = [rank[score] for score, correct in pairs if correct]
    wrong = len(pairs) - len(right)
    if not right or not wrong:
        return None
    return (fsum(right) - len(right) * (len(right) + 1) / 2) / (len(right) * wrong)


def balance(samples: pl.DataFrame, wanted: int) -> Number:
    """B-STaR's balance score with the critic as selector: mean over prompts of min(r / wanted, 1) * r / s, where s
    samples are accepted and r of those right; 0 where none is. Falls as exploration or selection is exhausted."""
    if _blind(samples) or samples["correct"].null_count():
        return None
    values = []
    for group in _groups(samples, "correct", "verdict"):
        accepted = [correct for correct, verdict in group if verdict]
        right = sum(accepted)
        values.append(min(right / wanted, 1.0) * right / len(accepted) if accepted else 0.0)
    return mean(values)


def verification_gap(samples: pl.DataFrame, relative: bool = False) -> Number:
    """Mind the Gap: J(samples weighted by the own critic) - J(samples), J the share of right answers of a prompt,
    weight 1 for accepted and 0 for others, mean over prompts. A prompt with nothing accepted gains nothing.
    `relative` divides each prompt's gain by its room 1 - J; prompts without room are left out."""
    if _blind(samples) or samples["correct"].null_count():
        return None
    values = []
    for group in _groups(samples, "correct", "verdict"):
        plain = sum(correct for correct, _ in group) / len(group)
        accepted = [correct for correct, verdict in group if verdict]
        gain = sum(accepted) / len(accepted) - plain if accepted else 0.0
        if not relative:
            values.append(gain)
        elif plain < 1:
            values.append(gain / (1 - plain))
    return mean(values)


def transitions(greedy: pl.DataFrame, refined: pl.DataFrame) -> dict[str, Number]:
    """What refining the refused greedy answers did. `refined` holds at most one row a prompt.

    refine_wrong_to_right: share of the wrong greedy answers that are right when every refinement that was made
    replaces its answer; refine_right_to_wrong: share of the right ones that are wrong then; refine_unchanged:
    share of refinements that repeat the answer they refine; refine_share: share of answers refined;
    refine_accuracy: accuracy when a refinement replaces its answer only where the critic accepts it."""
    after = {prompt: row for prompt, *row in refined.select("prompt_id", *_FACE).iter_rows()}
    rows = [(before, after.get(prompt)) for prompt, *before in greedy.select("prompt_id", *_FACE).iter_rows()]
    changes = [(old, new) for old, new in rows if new is not None]
    figures: dict[str, Number] = {
        "refine_wrong_to_right": None,
        "refine_right_to_wrong": None,
        "refine_accuracy": None,
        "refine_unchanged": mean(float(_same(old, new)) for old, new in changes),
        "refine_share": len(changes) / len(rows) if rows else None,
    }
    if greedy["correct"].null_count() or refined["correct"].null_count():
        return figures
    right = [(old[0], new[0] if new else old[0], new[0] if new and new[3] else old[0]) for old, new in rows]
    figures["refine_wrong_to_right"] = mean(float(new) for old, new, _ in right if not old)
    figures["refine_right_to_wrong"] = mean(float(not new) for old, new, _ in right if old)
    figures["refine_accuracy"] = mean(float(kept) for _, _, kept in right)
    return figures


_FACE = ("correct", "answer", "response", "verdict")


def _same(old: Sequence[Any], new: Sequence[Any]) -> bool:
    """Whether a refinement says what was said before: equal answers, or equal text where neither has an answer."""
    return old[1] == new[1] if old[1] is not None or new[1] is not None else old[2].split() == new[2].split()


def distinct_answers(samples: pl.DataFrame) -> Number:
    """Mean over prompts of the number of different answers among its samples; null is no answer."""
    return mean(float(len({a for (a,) in group if a is not None})) for group in _groups(samples, "answer"))


def most_common_answer_share(samples: pl.DataFrame) -> Number:
    """Share of all samples, of all prompts together, that give the one most frequent answer: near 1 when the
    model says the same to everything. None where no sample has an answer."""
    counts = Counter(answer for answer in samples["answer"] if answer is not None)
    return max(counts.values()) / samples.height if counts else None


def vote_share(samples: pl.DataFrame) -> Number:
    """Mean over prompts of the winning answer's share of the samples: the model's agreement with itself."""
    return mean(share for share, _ in _votes(samples))


def calibration_error(samples: pl.DataFrame) -> Number:
    """Expected calibration error of the vote: sum over ten equal bins of the winning share of (bin's share of
    prompts) * |mean share - share of right winners|."""
    votes = _votes(samples)
    if not votes or any(right is None for _, right in votes):
        return None
    bins: dict[int, list[tuple[float, bool]]] = {}
    for share, right in votes:
        bins.setdefault(min(int(share * BINS), BINS - 1), []).append((share, bool(right)))
    gaps = (abs(fsum(s for s, _ in rows) - sum(r for _, r in rows)) for _, rows in sorted(bins.items()))
    return fsum(gaps) / len(votes)


def accuracy_by_difficulty(greedy: pl.DataFrame) -> dict[str, Number]:
    """`accuracy_difficulty_<d>` for every difficulty that occurs, easiest first."""
    levels = sorted(level for level in greedy["difficulty"].unique() if level is not None)
    return {f"accuracy_difficulty_{level}": accuracy(greedy.filter(pl.col("difficulty") == level)) for level in levels}


def summary(predictions: pl.DataFrame, samples: int) -> dict[str, Number]:
    """All figures of one prompt set, rounded to six decimals. k of pass@k, maj@k and best-of-k runs over the powers
    of two up to `samples` and `samples` itself; those of 8 are always named, None where there are fewer samples."""
    greedy, drawn = of_kind(predictions, "greedy"), of_kind(predictions, "sample")
    right = accuracy(greedy)
    low, high = wilson(int(greedy["correct"].sum()), greedy.height) if right is not None else (None, None)
    ks = sorted({8, *counts(samples)})
    accepted = [verdict for verdict in drawn["verdict"] if verdict is not None]
    figures: dict[str, Number] = {"accuracy": right, "accuracy_low": low, "accuracy_high": high}
    figures |= {f"pass_at_{k}": pass_at_k(drawn, k) for k in ks}
    figures |= {f"maj_at_{k}": maj_at_k(drawn, k) for k in ks if k > 1}
    figures |= {f"best_of_{k}": best_of_k(drawn, k) for k in ks if k > 1}
    figures |= critique_rates(drawn) | transitions(greedy, of_kind(predictions, "refined"))
    figures |= {
        "acceptance": mean(float(verdict) for verdict in accepted),
        "balance": balance(drawn, samples),
        "verification_gap": verification_gap(drawn),
        "verification_gap_relative": verification_gap(drawn, relative=True),
        "distinct_answers": distinct_answers(drawn),
        "most_common_answer_share": most_common_answer_share(drawn),
        "unanswered": drawn["answer"].null_count() / drawn.height if drawn.height else None,
        "vote_share": vote_share(drawn),
        "calibration_error": calibration_error(drawn),
        "response_tokens": mean(float(tokens) for tokens in drawn["tokens"]),
    }
    return rounded(figures | accuracy_by_difficulty(greedy))


def counts(samples: int) -> list[int]:
    """The k of pass@k and its kin that `samples` samples a prompt can give."""
    return sorted({samples, *(1 << power for power in range(samples.bit_length()))})


def names(samples: int, difficulties: Iterable[int], critic: bool, verdicts: bool, refined: bool) -> list[str]:
    """The figures of `summary` that will have a value where the truth is known. `critic`: whether there is one;
    `verdicts`: whether it gives verdicts; `refined`: whether what it refuses is refined."""
    several = [k for k in counts(samples) if k > 1]
    found = ["accuracy", "accuracy_low", "accuracy_high", "distinct_answers", "most_common_answer_share"]
    found += ["unanswered", "vote_share", "calibration_error", "response_tokens"]
    found += [f"accuracy_difficulty_{level}" for level in difficulties]
    found += [f"pass_at_{k}" for k in counts(samples)] + [f"maj_at_{k}" for k in several]
    if critic:
        found += ["critique_auroc", *(f"best_of_{k}" for k in several)]
    if verdicts:
        found += ["critique_precision", "critique_recall", "critique_specificity", "critique_accuracy"]
        found += ["acceptance", "balance", "verification_gap", "verification_gap_relative"]
    if refined:
        found += ["refine_wrong_to_right", "refine_right_to_wrong", "refine_unchanged"]
        found += ["refine_share", "refine_accuracy"]
    return found


def rounded(figures: dict[str, Number]) -> dict[str, Number]:
    """The figures with six decimals, so that last digits that differ with the machine are not written."""
    return {name: None if value is None else round(value, DECIMALS) for name, value in figures.items()}


def _blind(samples: pl.DataFrame) -> bool:
    """Whether the critic said nothing at all."""
    return samples["verdict"].null_count() == samples.height


def _votes(samples: pl.DataFrame) -> list[tuple[float, bool | None]]:
    """Of every prompt with an answer: the winning answer's share of the samples, and whether it is right."""
    votes = []
    for group in _groups(samples, "answer", "correct"):
        answers = [answer for answer, _ in group]
        winner = vote(answers)
        if winner is not None:
            votes.append((answers.count(answers[winner]) / len(answers), group[winner][1]))
    return votes


def _of_k(samples: pl.DataFrame, k: int, column: str, choose: Any) -> Number:
    """Mean of what `choose` returns for rows (correct, column) of every consecutive group of k draws of a prompt."""
    values = []
    for group in _groups(samples, "correct", column):
        if len(group) < k or any(row[0] is None for row in group):
            return None
        values += [float(choose(group[start : start + k])) for start in range(0, len(group) - k + 1, k)]
    return mean(values)


def _groups(table: pl.DataFrame, *columns: str) -> list[list[tuple[Any, ...]]]:
    """The columns' rows, one list for every prompt, in the order of prompt id and draw."""
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for key, *values in table.sort("prompt_id", "draw").select("prompt_id", *columns).iter_rows():
        groups.setdefault(key, []).append(tuple(values))
    return list(groups.values())

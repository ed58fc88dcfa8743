"""The figures of evaluation against numbers worked out by hand or by brute force."""

import itertools
import math
import random

import polars as pl
import pytest

from tasks.blocks.evaluate import guards, metrics
from tasks.core import tables


def rows(kind: str, *given: tuple) -> pl.DataFrame:
    """PREDICTIONS from (prompt, answer, correct[, verdict[, score[, draw]]]); the response is the answer's text."""
    draws: dict[str, int] = {}
    made = []
    for prompt, answer, correct, *rest in given:
        verdict, score = (*rest, None, None)[:2]
        draw = draws[prompt] = draws.get(prompt, -1) + 1
        made.append((prompt, kind, draw, 1, answer or "?", answer, correct, verdict, score, 4))
    return pl.DataFrame(made, schema=tables.PREDICTIONS, orient="row")


def samples(*given: tuple) -> pl.DataFrame:
    return rows("sample", *given)


@pytest.mark.parametrize(("right", "n", "k"), [(1, 4, 2), (2, 6, 3), (0, 4, 2), (4, 4, 1), (3, 5, 4)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one(right: int, n: int, k: int) -> None:
    truth = [True] * right + [False] * (n - right)
    choices = list(itertools.combinations(truth, k))
    expected = sum(any(choice) for choice in choices) / len(choices)
    assert metrics.pass_at_k(samples(*(("p", "a", value) for value in truth)), k) == pytest.approx(expected)


def test_pass_at_k_by_hand() -> None:
    table = samples(("p", "a", True), ("p", "b", False), ("p", "b", False), ("p", "b", False),
                    ("q", "c", False), ("q", "c", False), ("q", "c", False), ("q", "c", False))  # fmt: skip
    assert metrics.pass_at_k(table, 1) == pytest.approx(0.125)
    assert metrics.pass_at_k(table, 2) == pytest.approx(0.25)  # (1 - 3/6 + 0) / 2
    assert metrics.pass_at_k(table, 5) is None


def test_vote_ignores_null_and_takes_the_first_of_equals() -> None:
    assert metrics.vote([None, None, None, "b"]) == 3
    assert metrics.vote(["b", "a", "a", "b", None]) == 0
    assert metrics.vote(["b", "a", "a"]) == 1
    assert metrics.vote([None, None]) is None


def test_maj_at_k_votes_over_consecutive_groups() -> None:
    table = samples(("p", "x", False), ("p", "y", True), ("p", "y", True), ("p", None, False),
                    ("q", "x", False), ("q", "x", False), ("q", "y", True), ("q", "y", True))  # fmt: skip
    assert metrics.maj_at_k(table, 4) == 0.5  # p: y wins; q: tie, x came first
    assert metrics.maj_at_k(table, 2) == 0.5  # p: tie x, then y; q: x, then y
    assert metrics.maj_at_k(samples(("p", None, False)), 1) == 0.0


def test_best_of_k_takes_the_highest_score_and_the_first_of_equals() -> None:
    table = samples(("p", "x", False, None, 0.2), ("p", "y", True, None, 0.9), ("p", "z", False, None, None),
                    ("q", "x", True, None, 0.5), ("q", "y", False, None, 0.5), ("q", "z", False, None, 0.1))  # fmt: skip
    assert metrics.best_of_k(table, 3) == 1.0
    assert metrics.best_of_k(table, 2) == 1.0
    assert metrics.best_of_k(samples(("p", "x", True)), 1) is None


def test_critique_rates_by_hand_and_null_for_an_empty_class() -> None:
    table = samples(("p", "a", True, True), ("p", "b", True, False), ("p", "c", False, True), ("q", "d", False, False),
                    ("q", "e", False, False), ("q", "f", True, True), ("q", None, False, None))  # fmt: skip
    rates = metrics.critique_rates(table)
    assert rates["critique_precision"] == pytest.approx(2 / 3)
    assert rates["critique_recall"] == pytest.approx(2 / 3)
    assert rates["critique_specificity"] == pytest.approx(2 / 3)
    assert rates["critique_accuracy"] == pytest.approx(4 / 6)
    assert rates["critique_auroc"] is None
    only_refused = metrics.critique_rates(samples(("p", "a", True, False, 0.0)))
    assert only_refused["critique_precision"] is None
    assert only_refused["critique_recall"] == 0.0
    assert only_refused["critique_specificity"] is None
    assert only_refused["critique_auroc"] is None


def test_auroc_equals_the_count_of_pairs_with_ties_half() -> None:
    rng = random.Random(0)
    given = [(rng.choice([0.0, 0.5, 1.0, 2.0]), rng.random() < 0.5) for _ in range(40)]
    pairs = [(a, b) for a, right in given if right for b, other in given if not other]
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    table = samples(*(("p", "a", right, None, score) for score, right in given))
    assert metrics.auroc(table) == pytest.approx(expected)


def test_balance_and_gap_by_hand() -> None:
    table = samples(("p", "a", True, True), ("p", "b", True, True), ("p", "c", False, True), ("p", "d", False, False),
                    ("q", "a", True, False), ("q", "b", False, False), ("q", "c", False, False), ("q", "d", False, None),
                    ("r", "a", True, True), ("r", "a", True, True), ("r", "a", True, False), ("r", "a", True, False))  # fmt: skip
    assert metrics.balance(table, wanted=4) == pytest.approx((2 / 4 * 2 / 3 + 0 + 2 / 4 * 1) / 3)
    assert metrics.verification_gap(table) == pytest.approx((2 / 3 - 1 / 2 + 0 + 0) / 3)
    assert metrics.verification_gap(table, relative=True) == pytest.approx(((2 / 3 - 1 / 2) / 0.5 + 0) / 2)
    silent = samples(("p", "a", True))
    assert metrics.verification_gap(silent) is None
    assert metrics.balance(silent, 4) is None


def test_transitions_by_hand() -> None:
    greedy = rows("greedy", ("a", "1", True, True), ("b", "2", True, False), ("c", "3", False, False),
                  ("d", "4", False, False), ("e", "5", False, True), ("f", None, False, False))  # fmt: skip
    refined = rows("refined", ("b", "9", False, False), ("c", "7", True, True), ("d", "4", False, False),
                   ("f", None, False, None))  # fmt: skip
    figures = metrics.transitions(greedy, refined)
    assert figures["refine_wrong_to_right"] == pytest.approx(1 / 4)
    assert figures["refine_right_to_wrong"] == pytest.approx(1 / 2)
    assert figures["refine_unchanged"] == pytest.approx(2 / 4)  # d repeats its answer, f its text
    assert figures["refine_share"] == pytest.approx(4 / 6)
    assert figures["refine_accuracy"] == pytest.approx(3 / 6)  # b keeps its answer: the refinement is refused
    assert guards.guards(pl.concat([greedy, refined]), tables.empty(tables.CRITIQUES))["over_refinement"] == 0.0


def test_diversity_by_hand() -> None:
    table = samples(("p", "a", True), ("p", "a", True), ("p", "b", False), ("p", None, False),
                    ("q", "a", False), ("q", "a", False), ("q", "a", False), ("q", "a", False))  # fmt: skip
    assert metrics.distinct_answers(table) == 1.5
    assert metrics.most_common_answer_share(table) == pytest.approx(6 / 8)
    assert metrics.vote_share(table) == pytest.approx((2 / 4 + 1) / 2)
    assert metrics.calibration_error(table) == pytest.approx((abs(0.5 - 1) + abs(1 - 0)) / 2)


def test_no_truth_gives_null_never_nan() -> None:
    table = pl.concat([rows("greedy", ("p", "a", None)), samples(("p", "a", None), ("p", None, None))])
    figures = metrics.summary(table, 2)
    for name in ("accuracy", "accuracy_low", "pass_at_1", "pass_at_8", "maj_at_8", "critique_precision", "balance"):
        assert figures[name] is None
    assert figures["accuracy_difficulty_1"] is None
    assert figures["distinct_answers"] == 1.0
    assert figures["unanswered"] == 0.5
    nothing = metrics.summary(tables.empty(tables.PREDICTIONS), 2)
    assert all(value is None for value in nothing.values())


def test_summary_names_and_bounds_hold_for_any_predictions() -> None:
    rng = random.Random(1)
    given = [(f"p{i // 8}", rng.choice(["a", "b", "c", None]), rng.random() < 0.4, rng.choice([True, False, None]),
              rng.choice([0.0, 0.3, None])) for i in range(80)]  # fmt: skip
    greedy = rows("greedy", *(given[i] for i in range(0, 80, 8)))
    figures = metrics.summary(pl.concat([samples(*given).sample(fraction=1, shuffle=True, seed=3), greedy]), 8)
    promised = {"accuracy", "accuracy_low", "accuracy_high", "pass_at_1", "pass_at_8", "maj_at_8", "critique_precision",
                "critique_recall", "refine_wrong_to_right", "refine_right_to_wrong", "distinct_answers", "response_tokens",
                "accuracy_difficulty_1"}  # fmt: skip
    assert promised <= figures.keys()
    assert all(value is None or math.isfinite(value) for value in figures.values())
    assert figures == metrics.summary(pl.concat([greedy, samples(*given)]), 8)
    assert figures["pass_at_1"] <= figures["pass_at_2"] <= figures["pass_at_4"] <= figures["pass_at_8"]
    assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]


@pytest.mark.parametrize("samples", [1, 3, 8, 12])
def test_names_are_what_the_summary_gives(samples):
    rows = [
        {"prompt_id": prompt, "kind": kind, "draw": draw, "response": "r", "answer": "a", "correct": draw % 2 == 0,
         "verdict": draw % 2 == 0, "score": 0.5, "tokens": 3, "difficulty": 2}
        for prompt in ("p", "q")
        for kind, number in (("greedy", 1), ("sample", samples), ("refined", 1))
        for draw in range(number)
    ]  # fmt: skip
    given = metrics.summary(pl.DataFrame(rows).select(list(tables.PREDICTIONS)), samples)
    names = metrics.names(samples, [2], True, True, True)
    assert len(names) == len(set(names))
    assert set(names) <= set(given)
    assert {name for name, value in given.items() if value is not None} <= set(names)
    assert {name for name in given if name not in names} == (
        {"pass_at_8", "maj_at_8", "best_of_8"} if samples < 8 else set()
    )

"""B-STaR's balance score and what it chooses, by hand."""

from dataclasses import replace

import polars as pl
import pytest

from tasks.blocks.filter import balance
from tests.support.work import ROWS, through
from tests.tasks.blocks.filter.test_selection import reasons, state

OPTIONS = {"right": "c", "critic": "c", "wanted": 2, "thresholds": [0.5], "at_most": [1, 2, 4], "rows": 100}


@pytest.mark.parametrize(
    ("right", "kept", "worth"),
    [(0, 0, 0.0), (0, 3, 0.0), (1, 1, 0.5), (2, 2, 1.0), (2, 4, 0.5), (4, 4, 1.0), (1, 4, 0.125)],
)
def test_the_score_of_a_prompt(right, kept, worth):
    assert balance.worth(right, kept, 2) == worth


def sources(scores, names):
    """A selection whose candidates are made by these blocks, in their order."""
    first = state(scores)
    column = pl.Series("source", names)
    return replace(first, candidates=first.candidates.with_columns(column), kept=first.kept.with_columns(column))


def test_the_source_with_more_right_answers_a_prompt_is_kept():
    scores = [
        [("4", True, 1.0), ("5", True, 1.0), ("6", False, 0.0), ("7", True, 1.0)],
        [("1", True, 1.0), ("2", True, 1.0), ("3", False, 0.0), ("8", True, 1.0)],
    ]
    names = ["hot", "hot", "cold", "cold"] * 2  # hot: 2 of 2 right for each prompt; cold: 1 of 2
    last = through(sources(scores, names), balance=OPTIONS, rows=ROWS)
    assert {row["completion"][0]["content"] for row in last.sft.to_dicts()} == {"4", "5", "1", "2"}
    assert reasons(last) == {"hot balances better": 4}


def test_the_smallest_cap_that_gives_enough_rows():
    scores = [[(str(i), True, 1.0) for i in range(4)], [(str(i), True, 1.0) for i in range(4, 6)]]
    rows = [balance.Judged(f"{p}{i}", str(p), "s", 1.0, True) for p, n in ((0, 4), (1, 2)) for i in range(n)]

    def found(wanted):
        return balance.choice(rows, 0.5, balance.Balance(**{**OPTIONS, "rows": wanted}), 3)

    assert [found(wanted).cap for wanted in (1, 2, 3, 4, 5, 6, 7)] == [1, 1, 2, 2, 4, 4, 4]
    assert found(2).worth == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert found(3).worth == pytest.approx((1 + 1 + 0) / 3)
    last = through(state(scores), balance={**OPTIONS, "rows": 2}, rows=ROWS)
    assert last.sft.height == 2


def test_a_threshold_is_chosen_and_silence_is_not_kept():
    scores = [[("1", True, 0.9), ("2", True, 0.6), ("3", False, 0.4), ("x", None, None)]]
    last = through(state(scores), balance={**OPTIONS, "thresholds": [0.0, 0.5, 0.8]}, rows=ROWS)
    assert {row["completion"][0]["content"] for row in last.sft.to_dicts()} == {"1", "2"}
    assert reasons(last) == {"score not above 0.5, or over the cap of 4": 1, "no judgement": 1}
    nothing = through(state([[("x", None, None)]]), balance=OPTIONS, rows=ROWS)
    assert nothing.sft.is_empty()

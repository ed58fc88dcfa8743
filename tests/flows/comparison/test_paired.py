"""Two models on the same prompts: counts, test, pass@k and changed prompts by hand, and what cannot be paired."""

from pathlib import Path

import polars as pl
import pytest

from flows.comparison import paired
from tasks.core import tables
from tasks.core.catalog import ARTIFACTS
from tests.support.work import predicted


@pytest.fixture
def made(tmp_path: Path):
    def predictions(right: str, samples: str = "", said: str = "") -> pl.DataFrame:
        predicted(tmp_path, "i01", right, samples, said)
        return tables.read(tmp_path / ARTIFACTS["predictions"].at("i01"), tables.PREDICTIONS)

    return predictions


@pytest.mark.parametrize(
    ("first", "second", "gained", "lost", "p", "verdict"),
    [
        ("wwwwwwwwrr", "rrrrrrwwrr", 6, 0, 2 / 64, "better"),
        ("rrrrrrwwrr", "wwwwwwwwrr", 0, 6, 2 / 64, "worse"),
        ("wwwwwrrrrr", "rrrrrrrrrr", 5, 0, 2 / 32, "not told apart"),
        ("wwwwwwwr", "rrrrrrrw", 7, 1, 2 * 9 / 256, "not told apart"),
        ("rrrr", "rrrr", 0, 0, 1.0, "not told apart"),
        ("r", "w", 0, 1, 1.0, "not told apart"),
    ],
)
def test_the_paired_test_by_hand(made, first: str, second: str, gained: int, lost: int, p: float, verdict: str) -> None:
    found = paired.paired(made(first), made(second))
    assert found is not None
    assert (found.prompts, found.gained, found.lost) == (len(first), gained, lost)
    assert found.p == pytest.approx(p)
    assert found.difference == pytest.approx((gained - lost) / len(first))
    assert found.verdict == verdict


def test_the_order_of_the_rows_does_not_matter(made) -> None:
    first, second = made("wwrrwr"), made("rwrrrw")
    expected = paired.paired(first, second)
    assert paired.paired(first.reverse(), second.sample(fraction=1, shuffle=True, seed=2)) == expected
    assert expected is not None
    assert (expected.gained, expected.lost) == (2, 1)


def test_an_interval_that_no_prompt_speaks_for_is_not_given(made) -> None:
    same, one = paired.paired(made("rr"), made("rr")), paired.paired(made("w"), made("r"))
    assert same is not None
    assert one is not None
    assert same.interval == one.interval == (None, None)
    assert paired.accuracy(made("rrrr")) == (1.0, (pytest.approx(0.5101, abs=1e-4), pytest.approx(1.0)))


def test_what_cannot_be_paired_says_why(made) -> None:
    assert (
        paired.apart(made("rw"), made("rwr"))
        == "the held-out prompts differ: 2 of the first and 3 of the second, 2 in both"
    )
    assert "nobody knows who is right" in str(paired.apart(made("rw"), made("r?")))
    assert "no predictions" in str(paired.apart(made(""), made("")))
    assert paired.paired(made("rw"), made("rwr")) is None
    assert paired.accuracy(made("r?")) == (None, (None, None))
    assert paired.passed(made("r?", "r?"), made("rr", "r?")) == []


def test_pass_at_k_by_hand(made) -> None:
    one, four = paired.passed(made("ww", "rwww"), made("ww", "rrwwrr"))
    assert (one.k, four.k) == (1, 4)
    assert (one.first[0], one.second[0]) == (pytest.approx(1 / 4), pytest.approx(4 / 6))
    assert (four.first[0], four.second[0]) == (1.0, 1.0)  # three draws of four hold no right one, four always do
    assert one.difference[0] == pytest.approx(4 / 6 - 1 / 4)
    [apart, _] = paired.passed(made("ww", "rw"), made("www", "rr"))
    assert apart.difference == (None, (None, None))
    assert paired.passed(made("rw"), made("rw")) == []


def test_changed_prompts_with_both_answers(made) -> None:
    found = paired.changed(made("rwr", said="old "), made("wrr", said="new "))
    assert found.drop("difficulty").rows() == [
        (f"{0:016x}", False, "old 0 r", "it is old 0 r", "new 0 w", "it is new 0 w"),
        (f"{1:016x}", True, "old 1 w", "it is old 1 w", "new 1 r", "it is new 1 r"),
    ]

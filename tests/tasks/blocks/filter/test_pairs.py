"""The pair builder: what is picked for each side, against which, and what a pair weighs."""

from dataclasses import replace

import polars as pl
import pytest

from tasks.blocks.filter import pairs as made
from tasks.core.block import validate
from tasks.core.errors import BadInput, StageFailed
from tests.support.work import pairs, through
from tests.tasks.blocks.filter.test_selection import reasons, state


def told(selection):
    """Chosen, rejected and margin of every pair."""
    rows = selection.pairs.sort("margin", "row_id").to_dicts()
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"], row["margin"]) for row in rows]


def side(**changes):
    return {"of": [], "pick": "best", "critic": "c", "at_least": None, "tier": 0.0, "tie": "id", **changes}


def test_accepted_against_refused_is_the_pair_of_right_and_wrong():
    scores = [[("4", True, 1.0), ("5", False, 0.0), ("6", False, 0.0)], [("2", True, 1.0)], [("3", False, 0.0)]]
    last = through(state(scores), pairs=pairs("accepted", "refused", critic="c", per_prompt=3))
    assert [(good, margin) for good, _, margin in told(last)] == [("4", 1.0)]
    assert reasons(last) == {"nothing refused": 1, "nothing accepted": 1}


def test_the_second_best_goes_against_the_second_worst_and_nobody_twice():
    scores = [[(name, None, score) for name, score in zip("abcde", (0.9, 0.7, 0.5, 0.3, 0.1), strict=True)]]
    assert told(through(state(scores), pairs=pairs(critic="c", per_prompt=9))) == [("b", "d", 0.4), ("a", "e", 0.8)]
    assert told(through(state([scores[0][:1]]), pairs=pairs(critic="c"))) == []
    assert reasons(through(state([scores[0][:1]]), pairs=pairs(critic="c"))) == {"nothing to compare with": 1}


def test_a_tier_makes_near_scores_equal_and_length_decides():
    scores = [[("1 1 1", None, 1.0), ("2", None, 0.9), ("3 3", None, 0.2), ("4 4 4 4", None, 0.0)]]
    plain = pairs(critic="c")
    wide = plain | {
        "chosen": side(tier=0.15, tie="shortest"),
        "rejected": side(pick="worst", tier=0.25, tie="shortest"),
    }
    assert told(through(state(scores), pairs=plain)) == [("1 1 1", "4 4 4 4", 1.0)]
    assert told(through(state(scores), pairs=wide)) == [("2", "3 3", 0.7)]
    longest = wide | {"chosen": side(tier=1.0, tie="longest")}
    assert (
        told(through(state(scores), pairs=longest)) == []
    )  # the longest is no better than the worst of the other side
    assert reasons(through(state(scores), pairs=longest)) == {"tie": 1}


def test_sources_are_picked_by_name():
    first = state([[("4", None, 0.9), ("5", None, 0.1)]])
    there = pl.when(pl.col("response") == "4").then(pl.lit("old")).otherwise(pl.lit("new")).alias("source")
    first = replace(first, candidates=first.candidates.with_columns(there), kept=first.kept.with_columns(there))
    both = pairs(critic="c") | {"chosen": side(of=["new"]), "rejected": side(of=["old"], pick="worst")}
    assert told(through(first, pairs=both | {"min_margin": None})) == [("5", "4", -0.8)]  # whatever the margin
    assert reasons(through(first, pairs=both)) == {"tie": 1}


def test_an_answer_and_what_it_was_revised_into():
    first = state([[("4", False, 0.0), ("5", False, 0.2), ("6", True, 1.0)]])
    ids = dict(first.candidates.select("response", "candidate_id").iter_rows())
    parent = pl.when(pl.col("response") == "6").then(pl.lit(ids["5"])).otherwise(pl.col("parent_id")).alias("parent_id")
    first = replace(first, candidates=first.candidates.with_columns(parent), kept=first.kept.with_columns(parent))
    last = through(first, pairs=pairs("accepted", "refused", critic="c") | {"within": "parent"})
    assert told(last) == [("6", "5", 0.8)]


def test_weights_and_smoothing_come_from_critics():
    """Means of 1 over the pairs, and probabilities that a pair is the wrong way round, by hand."""
    scores = [[("4", True, 0.8), ("5", False, 0.2)], [("2", True, 0.4), ("3", False, 0.2)]]
    weighed = pairs(critic="c", weight={"critic": None, "power": 2.0, "mean": 1.0})
    found = through(state(scores), pairs=weighed).pairs.sort("margin")["weight"].to_list()
    assert found == pytest.approx([0.04 / 0.2, 0.36 / 0.2], abs=1e-6)
    by_score = pairs(critic="c", weight={"critic": "c", "power": 1.0, "mean": None})
    assert through(state(scores), pairs=by_score).pairs.sort("margin")["weight"].to_list() == [0.4, 0.8]
    each = pairs(critic="c", smoothing={"critic": "c", "each": True})
    assert through(state(scores), pairs=each).pairs.sort("margin")["smoothing"].to_list() == pytest.approx([0.6, 0.2])
    mean = pairs(critic="c", smoothing={"critic": "c", "each": False})
    assert through(state(scores), pairs=mean).pairs["smoothing"].to_list() == pytest.approx([0.4, 0.4])
    wide = [[("4", True, 1.8), ("5", False, 0.2)]]
    with pytest.raises(
        StageFailed, match=r"filter.pairs.smoothing: a score of c is 1.8; it takes a critic whose scores are"
    ):
        through(state(wide), pairs=each)
    low = [[("4", True, -0.5), ("5", False, -1.5)]]
    with pytest.raises(
        StageFailed, match=r"filter.pairs.weight: a score of c is -0.5, and a weight cannot be negative"
    ):
        through(state(low), pairs=by_score)


def test_options_that_cannot_be():
    with pytest.raises(BadInput, match="pick: best goes by a critic; name it in `critic`"):
        validate(made.Pairs, {k: v for k, v in pairs(critic=None).items() if k != "block"}, "filter.pairs")
    wrong = {k: v for k, v in pairs(critic="c", smoothing=1.5).items() if k != "block"}
    with pytest.raises(BadInput, match="it is between 0 and 1"):
        validate(made.Pairs, wrong, "filter.pairs")

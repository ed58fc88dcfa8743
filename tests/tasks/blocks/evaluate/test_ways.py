"""Ways to answer with several samples, by hand, at the edges too."""

import polars as pl
import pytest

from tasks.blocks.evaluate import ways
from tasks.blocks.evaluate.ways import Sample, Way
from tasks.core.block import validate
from tasks.core.errors import BadInput

BEST = Way(of=["sample"], pick="best", critic="c", rank_power=None)
MAJORITY = Way(of=["sample"], pick="most", critic=None, rank_power=None)
AGAIN = Way(of=["again", "greedy"], pick="first", critic=None, rank_power=None)
WEIGHTED = Way(of=["sample"], pick="most", critic="c", rank_power=None)


def borda(power):
    return Way(of=["sample"], pick="most", critic="c", rank_power=power)


def given(*pairs):
    return [Sample(place, answer, score) for place, (answer, score) in enumerate(pairs)]


def test_the_best_the_most_and_the_ranked():
    samples = given(("a", 0.1), ("b", 0.9), ("a", 0.2), ("c", 0.3), (None, 0.95))
    assert ways.pick(samples, BEST) == 4  # an answer is not asked for
    assert ways.pick(samples, MAJORITY) == 0
    assert ways.pick(samples, WEIGHTED) == 1  # a: 0.3, b: 0.9, c: 0.3
    # by rank, best first: None 5, b 4, c 3, a 2, a 1; with power 1 a has 3 votes, b 4, c 3
    assert ways.pick(samples, borda(1.0)) == 1
    assert ways.pick(samples, borda(0.0)) == ways.pick(samples, MAJORITY)
    assert ways.pick(samples, borda(0.1)) == 0  # a: 2^0.1 + 1 = 2.07, b: 4^0.1 = 1.15


def test_ties_silence_and_nothing_at_all():
    assert ways.pick(given(("a", 0.5), ("b", 0.5)), BEST) == 0
    assert ways.pick(given(("a", None), ("b", -3.0)), BEST) == 1
    assert ways.pick(given(("a", None), ("b", None)), BEST) == 0
    assert ways.pick(given(("b", None), ("a", None)), MAJORITY) == 0
    assert ways.pick(given((None, 0.1), (None, 0.9)), MAJORITY) == 0
    assert ways.pick(given((None, 0.9), ("a", 0.1)), borda(1.0)) == 1
    assert ways.pick(given(("a", 0.2)), borda(2.0)) == 0


def test_rows_of_every_way_and_what_they_cost():
    drawn = pl.DataFrame(
        {
            "prompt_id": ["p", "p", "q", "q"],
            "draw": [0, 1, 0, 1],
            "answer": ["1", "2", "3", None],
            "judged_id": ["c0", "c1", "c2", "c3"],
            "tokens": [3, 3, 2, 2],
            "kind": ["sample"] * 4,
        }
    )
    schema = {
        "candidate_id": pl.String,
        "other_id": pl.String,
        "critic": pl.String,
        "draw": pl.Int32,
        "text": pl.String,
    }
    schema |= {"verdict": pl.Boolean, "score": pl.Float64, "parsed": pl.Boolean, "why": pl.String, "tokens": pl.Int32}
    rows = [(f"c{i}", None, "c", 0, "", None, score, True, None, 5) for i, score in enumerate((0.1, 0.7, 0.2, 0.1))]
    critiques = pl.DataFrame(rows, schema=schema, orient="row")
    found = ways.chosen(drawn, critiques, {"bon": BEST, "maj": MAJORITY})
    assert found.select("kind", "prompt_id", "draw").rows() == [
        ("bon", "p", 1),
        ("bon", "q", 0),
        ("maj", "p", 0),
        ("maj", "q", 0),
    ]
    spent, parents = {"greedy": 4, "sample": 10, "again": 6}, {"again": ["greedy"]}
    assert ways.tokens(BEST, spent, parents, critiques, 2) == (10 + 20) / 2
    assert ways.tokens(MAJORITY, spent, parents, critiques, 2) == 5
    assert ways.tokens(AGAIN, spent, parents, critiques, 2) == (6 + 4) / 2
    right = found.with_columns(correct=pl.Series([True, False, True, True]))
    told = ways.figures(right, {"bon": 15.0, "maj": 5.0}, 2)
    assert (told["accuracy_bon"], told["accuracy_maj"], told["tokens_bon"]) == (0.5, 1.0, 15.0)
    assert told["accuracy_bon_low"] < 0.5 < told["accuracy_bon_high"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": ["sample"], "pick": "best", "critic": None, "rank_power": None}, "pick: best goes by a critic"),
        (
            {"of": ["sample"], "pick": "best", "critic": "c", "rank_power": 1.0},
            "rank_power is for votes that a critic ranks",
        ),
        (
            {"of": ["sample"], "pick": "most", "critic": None, "rank_power": 1.0},
            "rank_power is for votes that a critic ranks",
        ),
    ],
)
def test_ways_that_cannot_be(options, message):
    with pytest.raises(BadInput, match=message):
        validate(Way, options, "evaluate.answers.w")


def test_what_a_maker_made_comes_first_and_else_what_was_there():
    rows = [("greedy", "p", 0, "1"), ("greedy", "q", 0, "2"), ("again", "p", 0, "3"), ("again", "p", 1, "4")]
    attempts = pl.DataFrame(rows, schema=["kind", "prompt_id", "draw", "answer"], orient="row").with_columns(
        judged_id=pl.lit("c"), tokens=pl.lit(1)
    )
    found = ways.chosen(attempts, pl.DataFrame(), {"a": AGAIN})
    assert sorted(found.select("kind", "prompt_id", "answer").rows()) == [("a", "p", "3"), ("a", "q", "2")]
    told = ways.figures(found.with_columns(correct=pl.lit(True)), {"a": 1.0}, 4)
    assert told["accuracy_a"] == 0.5  # two of four prompts have no answer at all

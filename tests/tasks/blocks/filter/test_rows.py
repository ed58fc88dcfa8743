"""Rows: what a row's model reads, what it weighs, and answers that are good or bad."""

from dataclasses import replace

import polars as pl
import pytest

from tests.support.tiny import reply, user
from tests.support.work import ROWS, through
from tests.tasks.blocks.filter.test_selection import reasons, state


def test_a_row_reads_the_prompt_or_what_was_asked_or_all_turns():
    first = state([[("4", True, 1.0)]])
    question = first.prompts["messages"][0].to_list()
    asked = [*question, *reply("5"), *user("again")]
    messages = pl.Series("messages", [asked], dtype=first.kept.schema["messages"])
    first = replace(first, kept=first.kept.with_columns(messages), candidates=first.candidates.with_columns(messages))
    [row] = through(first, rows=ROWS).sft.to_dicts()
    assert (row["prompt"], row["completion"], row["message_weights"]) == (question, reply("4"), None)
    [row] = through(first, rows=ROWS | {"reads": "asked"}).sft.to_dicts()
    assert (row["prompt"], row["completion"]) == (asked, reply("4"))
    [row] = through(first, rows=ROWS | {"reads": "dialogue"}).sft.to_dicts()
    assert row["prompt"] == question
    assert row["completion"] == [*reply("5"), *user("again"), *reply("4")]
    assert row["message_weights"] == [0.0, 0.0, 1.0]


def test_weights_are_scores_of_a_mean():
    scores = [[("4", True, 1.0), ("5", True, 3.0), ("6", True, None)]]
    last = through(state(scores), rows=ROWS | {"weight": {"critic": "c", "power": 1.0, "mean": 1.0}})
    weights = {row["completion"][0]["content"]: row["weight"] for row in last.sft.to_dicts()}
    assert weights == pytest.approx({"4": 0.5, "5": 1.5})
    assert reasons(last) == {"no score to weigh by": 1}
    squared = through(state([scores[0][:2]]), rows=ROWS | {"weight": {"critic": "c", "power": 2.0, "mean": None}})
    assert sorted(squared.sft["weight"]) == [1.0, 9.0]


def test_a_part_of_its_own_and_sources_by_name():
    last = through(
        state([[("4", True, 1.0)]]), rows=ROWS | {"part": "judge"}, other={"block": "rows", **ROWS, "of": ["x"]}
    )
    assert last.sft["part"].to_list() == ["judge"]


def test_verdicts_are_labels_and_silence_is_none():
    scores = [[("4", True, 1.0), ("5", False, 0.0), ("x", None, None)]]
    last = through(state(scores), rated={"critic": "c", "of": [], "part": "own"})
    assert dict(last.rated.select(pl.col("completion").list.first().struct.field("content"), "label").iter_rows()) == {
        "4": True,
        "5": False,
    }
    assert reasons(last) == {"no judgement": 1}


def test_the_best_few_of_a_prompt():
    scores = [[("4", None, 0.5), ("5", None, 0.9), ("6", None, 0.1), ("x", None, None)], [("2", None, 0.0)]]
    last = through(state(scores), best_of={"critic": "c", "per_prompt": 1}, rows=ROWS)
    assert {row["completion"][0]["content"] for row in last.sft.to_dicts()} == {"5", "2"}
    assert reasons(last) == {"not the best": 2, "no judgement": 1}
    two = through(state(scores), best_of={"critic": "c", "per_prompt": 2}, rows=ROWS)
    assert two.sft.height == 3

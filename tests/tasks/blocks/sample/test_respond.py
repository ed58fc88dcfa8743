"""Replies that go on from answers: who is shown what, in which order, and where it ends."""

from dataclasses import replace

import polars as pl
import pytest

from tasks.blocks import refine, sample
from tasks.blocks.work import in_order
from tasks.core import tables
from tasks.core.block import bind
from tasks.core.errors import BadInput, LabelsForbidden
from tests.support.models import scripted_model
from tests.support.work import bound, prompts, sampled, work

OPTIONS = {
    "of": ["iid"], "template": "retry", "together": 1, "each": False, "per_prompt": None, "rounds": 1, "n": 1,
    "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9,
}  # fmt: skip


def replied(tmp_path, given, reply, **changes):
    """The replies to answers of two prompts, and what the model was asked."""
    table = prompts("add 2 3", "add 4 4")
    asked = []

    def say(prompt, draw):
        asked.append(prompt)
        return reply(prompt)

    model, _ = scripted_model(tmp_path, say)
    start = work(table, model, "sample", candidates=sampled(table, *given))
    made = bound(sample.BLOCKS, "respond", **{**OPTIONS, **changes})(start)
    return made.candidates, asked, start.candidates


def test_each_answer_gets_another_attempt_whose_parent_it_is(tmp_path):
    made, asked, before = replied(tmp_path, [["5", "5", "6"], ["8"]], lambda p: p.split()[-1] + "1")
    assert sorted(asked) == ["retry add 2 3 : 5", "retry add 2 3 : 6", "retry add 4 4 : 8"]  # equal answers once
    parents = dict(before.select("candidate_id", "response").iter_rows())
    assert {(parents[row["parent_id"]], row["response"], row["turn"]) for row in made.to_dicts()} == {
        ("5", "51", 1), ("6", "61", 1), ("8", "81", 1)
    }  # fmt: skip
    assert made["source"].unique().to_list() == ["sample"]


def test_rounds_go_on_from_the_last_replies(tmp_path):
    made, asked, _ = replied(tmp_path, [["5"], []], lambda p: p.split()[-1] + "1", rounds=3)
    assert asked == ["retry add 2 3 : 5", "retry add 2 3 : 51", "retry add 2 3 : 511"]
    assert made.sort("turn").select("response", "turn").rows() == [("51", 1), ("511", 2), ("5111", 3)]


def test_several_answers_are_shown_together_and_what_is_left_over_is_not(tmp_path):
    given, both = [["5", "6", "5"], ["8"]], {"template": "aggregate", "together": 2}
    _, asked, _ = replied(tmp_path, given, lambda p: "1", **both)
    assert len(asked) == 1
    assert asked[0].startswith("aggregate add 2 3 : ")
    assert len(asked[0].split(" / ")) == 2
    made, asked, _ = replied(tmp_path / "each", given, lambda p: "1", **both, each=True)
    assert len(asked) == 2 == made.height
    first, second = (text.partition(" : ")[2].split(" / ") for text in asked)
    assert first == second[::-1]


def test_no_more_conversations_than_asked_for(tmp_path):
    made, asked, _ = replied(tmp_path, [["1", "2", "3"], ["4", "5"]], lambda p: "9", per_prompt=1, n=2)
    assert len(set(asked)) == 2
    assert made.height == 4


def test_nothing_to_go_on_from(tmp_path):
    made, asked, _ = replied(tmp_path, [["5"], []], lambda p: "1", of=["other"])
    assert (made.height, asked) == (0, [])
    assert made.schema == tables.CANDIDATES


def test_makers_run_after_those_that_they_go_on_from():
    section = {
        "a": {"block": "respond", **OPTIONS, "of": ["c"]},
        "b": {"block": "respond", **OPTIONS, "of": ["a", "z"]},
        "c": {"block": "single", "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4},
    }
    made = bind(sample.BLOCKS, section, "sample")
    assert [maker.name for maker in in_order(made, "sample")] == ["c", "a", "b"]
    section["c"] = {"block": "respond", **OPTIONS, "of": ["b"]}
    with pytest.raises(BadInput, match="sample: a, b, c go on from one another in a circle"):
        in_order(bind(sample.BLOCKS, section, "sample"), "sample")


def test_a_hint_goes_through_the_door_to_the_truth(tmp_path):
    table = prompts("add 2 3")
    model, _ = scripted_model(tmp_path, lambda p, d: p.split()[-1])
    hinted = {"template": "hinted", "n": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 9}
    draw = bound(sample.BLOCKS, "iid_k", **hinted)
    open_door = work(table, model, "sample", labels=True)
    [row] = draw(open_door).candidates.to_dicts()
    assert row["messages"][0]["content"] == "hinted add 2 3 : 5"
    assert (row["response"], row["answer"]) == ("5", "5")
    with pytest.raises(LabelsForbidden, match="labels: false"):
        draw(work(table, model, "sample"))


def test_in_refine_a_critic_chooses_in_every_round_and_its_words_are_shown(tmp_path):
    table = prompts("add 2 3")
    asked = []

    def say(prompt, draw):
        asked.append(prompt)
        if prompt.startswith("check"):
            return "yes" if prompt.split(" : ")[1].startswith("5") else "no"
        return {"4": "6", "6": "5"}[prompt.split(" : ")[1]]

    model, _ = scripted_model(tmp_path, say)
    judge = {"block": "nl_critique", "draws": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4}
    from tasks.blocks import critique
    from tasks.blocks.critique.judging import judged

    critics = bind(critique.BLOCKS, {"own": judge}, "critique")
    start = work(table, model, "refine", candidates=sampled(table, ["5", "4"]), critics=critics)
    start = replace(start, opinions=judged(start, critics))
    which = {"critic": "own", "verdict": False}
    made = bound(refine.BLOCKS, "respond_judged", **{**OPTIONS, "template": "revise", "rounds": 3}, which=which)(start)
    assert made.candidates.sort("turn").select("response", "turn").rows() == [
        ("6", 1),
        ("5", 2),
    ]  # then all is accepted
    assert [text for text in asked if text.startswith("fix")] == ["fix add 2 3 : 4 : no", "fix add 2 3 : 6 : no"]
    told = made.opinions.join(made.candidates.select("candidate_id", "response"), on="candidate_id")
    assert dict(told.select("response", "verdict").iter_rows()) == {"6": False, "5": True}
    assert pl.DataFrame(start.candidates).height == 2


def test_what_failed_is_asked_again_with_its_answer(tmp_path):
    table = prompts("add 2 3")
    model, _ = scripted_model(tmp_path, lambda p, d: p.split()[-1])
    hinted = {**OPTIONS, "template": "hinted"}
    start = work(table, model, "sample", labels=True, candidates=sampled(table, ["4"]))
    [row] = bound(sample.BLOCKS, "respond", **hinted)(start).candidates.to_dicts()
    assert (row["messages"][0]["content"], row["answer"]) == ("hinted add 2 3 : 5", "5")
    with pytest.raises(LabelsForbidden):
        bound(sample.BLOCKS, "respond", **hinted)(work(table, model, "sample", candidates=sampled(table, ["4"])))

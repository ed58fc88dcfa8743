"""Answers reach the loop only where labels are declared; held-out problems never do."""

import json

import polars as pl
import pytest

from tasks import families, prepare, synthesize
from tasks.core import tables
from tests.support.models import policy, scripted_model
from tests.support.work import context, text_options

OPTIONS = {key: value for key, value in text_options(heldout=4, probe=3, labelled=2).items() if key != "path"}


@pytest.fixture
def repository(tmp_path):
    rows = [json.dumps({"q": f"What is {i} plus {i}?", "a": f"#### {2 * i}"}) for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    section = {"family": "text", "source": "prompts.jsonl", "options": OPTIONS}
    prepare.run(context(tmp_path, "prepare", None, prepare.parse(section)))
    policy(tmp_path, "i00")
    for name, schema in (("prompts", tables.PROMPTS), ("invented", tables.INVENTED)):
        tables.write(tables.empty(schema), tmp_path / f"data/i00/{name}.parquet", schema)
    return tmp_path


@pytest.mark.parametrize("labels", [False, True])
def test_answers_only_with_labels(repository, labels):
    options = synthesize.parse({"pool": {"block": "fixed_unlabeled", "n": 10}})
    synthesize.run(context(repository, "synthesize", "i01", options, labels=labels))
    prompts = tables.read(repository / "data/i01/prompts.parquet", tables.PROMPTS)
    assert prompts.height == 10
    assert prompts["answer"].null_count() == (0 if labels else 10)
    held_out = tables.read(repository / "data/tasks/heldout.parquet", tables.PROMPTS)
    assert held_out["answer"].null_count() == 0
    assert set(prompts["prompt_id"]).isdisjoint(held_out["prompt_id"])


def test_the_next_iteration_takes_the_next_prompts(repository):
    options = synthesize.parse({"pool": {"block": "fixed_unlabeled", "n": 10}})
    synthesize.run(context(repository, "synthesize", "i01", options))
    policy(repository, "i01")
    row = {"previous": "i01", "initial": "i01", "reference": "i01", "judge": "i01", "past": "i00"}
    synthesize.run(context(repository, "synthesize", "i02", options, row=row))
    first, second = (pl.read_parquet(repository / f"data/{key}/prompts.parquet")["prompt_id"] for key in ("i01", "i02"))
    assert set(first).isdisjoint(second)


def test_invented_prompts_that_are_too_much_like_evaluated_ones_are_left_out(repository):
    """The model invents a held-out problem, one with its thirteen words, a near copy of it, and something new."""
    family = families.load(repository)
    held_out = (
        "Bob the old baker sells forty warm loaves every single morning except on rainy Sundays. How many a year?"
    )
    row = {"fingerprint": "x", "part": "heldout", "words": family.traces(family.prompt(held_out))}  # type: ignore[attr-defined]
    path = repository / "data/tasks/fingerprints.parquet"
    reserved = pl.concat([pl.read_parquet(path), tables.frame([row], tables.FINGERPRINTS)])
    tables.write(reserved, path, tables.FINGERPRINTS)
    replies = [
        f"In a town, {held_out[:87]} he thinks, and how many does his sister buy?",
        held_out.replace("a year", "a week"),
        "A train goes 60 miles in one hour. How far does it go in four?",
    ]
    model, _ = scripted_model(repository, lambda _, draw: replies[draw % 3])
    options = synthesize.parse(
        {"new": {"block": "self_instruct", "n": 3, "shots": 0, "near_copy": None, "attempts": 2, "temperature": 1.0, "top_p": 1.0,
                 "max_new_tokens": 32}}
    )  # fmt: skip
    made = context(repository, "synthesize", "i01", options, lambda pointer: model)
    synthesize.run(made)
    prompts = tables.read(repository / "data/i01/prompts.parquet", tables.PROMPTS)
    assert [family.question(messages) for messages in prompts["messages"].to_list()] == [replies[2]]  # type: ignore[attr-defined]
    assert made.figures["new_passage_of_held_out"] == 2
    assert made.figures["new_near_copy_of_held_out"] == 2


def test_what_models_wrote_two_iterations_ago_is_not_written_again(repository):
    """Every iteration depends on the one before it alone, and yet nothing is forgotten."""
    section = {
        "block": "self_instruct", "n": 2, "shots": 1, "attempts": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9,
        "near_copy": 0.7,
    }  # fmt: skip
    written = [f"How long does a {animal} sleep in {place}?" for animal, place in
               [("bear", "winter caves of Norway"), ("bat", "old towers"), ("cat", "a warm house by the sea"), ("dog", "June"),
                ("fox", "the hills far away from any town"), ("owl", "daylight on some high branch")]]  # fmt: skip
    found = []
    for number in (1, 2, 3):
        before = f"i0{number - 1}"
        policy(repository, before)
        replies = [*written[:2], *written[2 * number - 2 : 2 * number], "no"]
        model, _ = scripted_model(
            repository, lambda prompt, draw, replies=replies: replies[draw % 5], digest=f"{number}" * 32
        )
        row = dict.fromkeys(("previous", "initial", "reference", "judge"), before)
        made = context(
            repository, "synthesize", f"i0{number}", synthesize.parse({"new": section}), lambda _, m=model: m, row=row
        )
        synthesize.run(made)
        assert f"data/{before}/invented.parquet" in made.reads
        assert {path.split("/")[1] for path in made.reads} <= {"tasks", before}
        rows = pl.read_parquet(repository / f"data/i0{number}/prompts.parquet")
        found += [message["content"].split("\n")[0] for messages in rows["messages"] for message in messages]
    assert len(set(found)) == len(found)
    assert set(written[:2]) <= set(found)
    assert pl.read_parquet(repository / "data/i03/invented.parquet").height == len(found)

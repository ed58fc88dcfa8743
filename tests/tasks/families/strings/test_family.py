"""Strings: growing lengths, parts apart from one another, and a grammar that is no label."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import families
from tasks.core.errors import BadInput

OPTIONS = {
    "digits": 10,
    "base_lengths": [1, 8],
    "corpus": 80,
    "max_length": 12,
    "pool": 20,
    "evaluated_lengths": [4, 8, 12],
    "heldout": 10,
    "probe": 5,
}
FAMILY = families.create("strings", OPTIONS)
PROMPT = [{"role": "user", "content": "+ 5 1 7 ="}]


def test_lengths_and_labels():
    data = families.build(FAMILY, random.Random(0), Path())
    lengths = Counter(len(row["completion"][0]["content"].split()) for row in data.corpus)
    assert lengths == dict.fromkeys(range(1, 9), 10)
    assert Counter(row["difficulty"] for row in data.pool) == dict.fromkeys(range(9, 13), 20)
    assert Counter(row["difficulty"] for row in data.heldout) == {4: 10, 8: 10, 12: 10}
    assert Counter(row["difficulty"] for row in data.probe) == {4: 5, 8: 5, 12: 5}
    for row in data.corpus:
        assert row["prompt"][0]["content"] == f"+ {row['completion'][0]['content']} ="
        assert FAMILY.verify(row["prompt"], None, row["completion"][0]["content"])
    parts = [[FAMILY.fingerprint(row["messages"]) for row in part] for part in (data.pool, data.probe, data.heldout)]
    evaluated = {text for part in parts for text in part}
    assert len(evaluated) == sum(map(len, parts))
    assert not evaluated & {FAMILY.fingerprint(row["prompt"]) for row in data.corpus}
    assert data == families.build(FAMILY, random.Random(0), Path()) != families.build(FAMILY, random.Random(1), Path())


def test_an_answer_is_no_label():
    assert FAMILY.extract(PROMPT, "9") == "9"
    assert FAMILY.extract(PROMPT, "5 1 7") == "5 1 7"
    assert FAMILY.extract(PROMPT, "") is None
    assert FAMILY.extract(PROMPT, "5 1 =") is None
    assert [FAMILY.verify(PROMPT, None, text) for text in ("5 1 7", " 5  1 7 ", "5 1", "5 7 1", "517")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert FAMILY.difficulty(PROMPT) == 3


@given(st.one_of(st.text(), st.lists(st.sampled_from(["5", "1", "7", "+", "=", "١", "10", "²"])).map(" ".join)))
def test_hostile_text_is_never_read_as_more_than_digits(text):
    formed = FAMILY.extract(PROMPT, text) is not None
    assert FAMILY.verify(PROMPT, None, text) == (text.split() == ["5", "1", "7"])
    assert formed == (bool(text.split()) and all(word in list("0123456789") for word in text.split()))
    assert not FAMILY.parse_critique(PROMPT, "5 1 7", text).parsed
    assert not FAMILY.assemble(PROMPT, "5 1 7", [], [text]).parsed
    assert FAMILY.parse_invented(text)[0].messages is None
    assert FAMILY.critique_messages(PROMPT, text) is None
    assert FAMILY.questions(PROMPT, text) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_lengths": [8, 1]}, "shortest length comes first"),
        ({"base_lengths": [8]}, "base_lengths"),
        ({"max_length": 8}, "above 8"),
        ({"evaluated_lengths": [4, 4]}, "every length once"),
        ({"evaluated_lengths": [1]}, "15 different strings of 1 digits"),
        ({"base_lengths": [1, 1], "pool": 60}, "60 different strings of 2 digits"),
        ({"digits": 11}, "digits"),
        ({"digit": 9}, "did you mean 'digits'"),
    ],
)
def test_options_that_cannot_work_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        families.create("strings", OPTIONS | change)


def test_there_is_no_skill_to_invent():
    with pytest.raises(BadInput, match="difficulty_curriculum"):
        FAMILY.invent_messages([])


def test_what_is_known_before_any_work(tmp_path):
    assert families.parts("strings", OPTIONS) == ["solve"]
    assert families.difficulties("strings", OPTIONS) == [4, 8, 12]
    assert families.check_inputs("strings", OPTIONS, tmp_path) == {9: 20, 10: 20, 11: 20, 12: 20}

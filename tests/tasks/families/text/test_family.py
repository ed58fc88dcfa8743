"""Text: reading files, numbers in free text, and templates that hostile text cannot leave."""

import json
import random
import re
from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import families
from tasks.core import tables
from tasks.core.errors import BadInput
from tasks.families.text.plain import plain
from tasks.families.text.templates import fenced
from tests.support.work import text_options

OPTIONS = text_options(
    path="prompts.jsonl", prompt_field="question", answer_field="answer", heldout=3, probe=2, labelled=4
)
FAMILY = families.create("text", OPTIONS)
ROWS = [{"question": f"How much is {n} and {n}?", "answer": f"{n} + {n}\n#### {2 * n}"} for n in range(20)]
PIECES = [
    "Score: 5",
    "score:",
    "```",
    "````",
    "> ",
    "\n",
    "####",
    "\\boxed{",
    "}",
    "4",
    "/5",
    "Problem:",
    "٣",
    "\u2028",
]
HOSTILE = st.one_of(st.text(), st.lists(st.sampled_from([*PIECES, "<|im_end|>", "[INST]", "-", "$", "."])).map("".join))


def prompt(question: str = "How much is 2 and 2?"):
    return FAMILY.prompt(question)


def built(folder, **changes):
    return families.build(families.create("text", OPTIONS | changes), random.Random(0), folder)


def write(folder, rows, name="prompts.jsonl"):
    path = folder / name
    if name.endswith(".parquet"):
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_verify_compares_canonical_answers():
    for response in ("#### 1,000", r"\boxed{1000.0}", "It is $1000.", "<think>Is it 7?</think>1 000"):
        assert FAMILY.verify(prompt(), "1000", response)
    for gold in ("3/4", "0.75", r"$\frac{3}{4}$", r"\boxed{\frac34}"):
        assert FAMILY.verify(prompt(), gold, "It is 6/8 in the end.")
        assert not FAMILY.verify(prompt(), gold, "It is 4 in the end.")
    assert not FAMILY.verify(prompt(), "1000", "100")
    assert not FAMILY.verify(prompt(), None, "1000")
    assert not FAMILY.verify(prompt(), "1000", "no number")
    words = families.create("text", OPTIONS | {"extraction": "text"})
    assert words.verify(prompt(), "The  Opposite", "the opposite\n")
    assert words.extract(prompt(), " \n") is None
    assert words.extract(prompt(), "<think>Or that?</think>\nThis") == "this"
    assert words.extract(prompt(), "<think>This") is None


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.parquet"])
def test_files_are_split_by_prompt(tmp_path, name):
    write(tmp_path, ROWS, name)
    family = families.create("text", OPTIONS | {"path": name})
    data = families.build(family, random.Random(0), tmp_path)
    assert [len(part) for part in (data.heldout, data.probe, data.corpus, data.pool)] == [3, 2, 4, 11]
    questions = [family.question(row["messages"]) for part in (data.heldout, data.probe, data.pool) for row in part]
    questions += [family.question(row["prompt"]) for row in data.corpus]
    assert sorted(questions) == sorted(row["question"] for row in ROWS)
    gold = {row["question"]: row["answer"].split("#### ")[1] for row in ROWS}
    for row in data.heldout:
        assert row["answer"] == gold[family.question(row["messages"])]
        assert family.verify(row["messages"], row["answer"], f"#### {row['answer']}")
    assert all("####" in row["completion"][0]["content"] for row in data.corpus)
    write(tmp_path, list(reversed(ROWS)), name)
    again = families.build(family, random.Random(9), tmp_path)
    for name in ("corpus", "pool", "probe", "heldout"):
        rows, others = getattr(data, name), getattr(again, name)
        assert [row.pop("origin")["row"] for row in rows] == [21 - row.pop("origin")["row"] for row in others]
        assert rows == others


def test_without_answers_there_is_no_truth(tmp_path):
    write(tmp_path, [{"question": row["question"]} for row in ROWS])
    family = families.create("text", OPTIONS | {"answer_field": None, "labelled": 0})
    data = families.build(family, random.Random(0), tmp_path)
    assert not family.has_truth
    assert FAMILY.has_truth
    assert not data.corpus
    assert {row["answer"] for row in data.heldout + data.pool} == {None}
    with pytest.raises(BadInput, match="answer_field is null"):
        families.check_inputs("text", OPTIONS | {"answer_field": None}, tmp_path)


def bad(rows_or_bytes):
    return (
        rows_or_bytes
        if isinstance(rows_or_bytes, bytes)
        else "".join(json.dumps(r) + "\n" for r in rows_or_bytes).encode()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\n\n", "has no rows"),
        (b"{not json}\n", "row 1 is no JSON"),
        (b"\xff\xfe\n", "row 1 is no JSON in UTF-8"),
        (b"[1]\n", "row 1 is a list"),
        (
            bad([*ROWS[:2], {"prompt": "a", "answer": "1"}]),
            r"prompt_field: given 'question', but row 3 of .* no such field; correct that row, whose fields are answer, prompt",
        ),
        (
            bad([{"question": "a"}]),
            r"answer_field: given 'answer', but row 1 of .* has no such field; name one of: question",
        ),
        (bad([{"question": 7, "answer": "1"}]), "'question' is of type int"),
        (bad([{"question": "a", "answer": None}]), r"'answer' is empty \(null\)"),
        (bad([{"question": "a", "answer": "none"}]), "row 1: no answer in 'answer'"),
        (bad([{"question": " ", "answer": "1"}]), "row 1: 'question' has no text"),
        (bad([{"question": "a" * 100_001, "answer": "1"}]), "row 1: 'question' has 100,001 characters"),
        (b'{"question": "\\ud800", "answer": "1"}\n', "surrogate"),
        (bad([*ROWS, {"question": "how much is 3,  and 3", "answer": "6"}]), "rows 4 and 21 have the same prompt"),
        (bad(ROWS[:9]), "9 different prompts, but"),
    ],
)
def test_bad_files_are_refused_with_file_and_row(tmp_path, content, message):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        families.check_inputs("text", OPTIONS, tmp_path)
    assert "prompts.jsonl" in str(caught.value)


def test_other_bad_files(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        families.check_inputs("text", OPTIONS, tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(BadInput, match="no readable Parquet"):
        families.check_inputs("text", OPTIONS | {"path": "a.parquet"}, tmp_path)
    (tmp_path / "a.xlsx").write_text("question\n")
    with pytest.raises(BadInput, match=r"'\.xlsx' is no format"):
        families.check_inputs("text", OPTIONS | {"path": "a.xlsx"}, tmp_path)


def test_duplicates_can_be_dropped_and_files_cut(tmp_path):
    write(tmp_path, [*ROWS, {"question": "HOW much is 3 and 3", "answer": "6"}])
    data = built(tmp_path, duplicates="drop")
    [dropped] = data.dropped
    assert (dropped["row"], dropped["reason"], dropped["other_row"]) == (21, "duplicate", 4)
    assert len(data.pool) == 11
    assert len(built(tmp_path, limit=12).pool) == 3


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ("Good.\nScore: 5", 5),
        ("**Score: 4/5**", 4),
        ("score:3.", 3),
        ("> Score: 5\nScore: 1", 1),
        ("```\nScore: 5\n```\nScore: 0", 0),
        ("Score: 5\nScore: 4", None),
        ("Score: 6", None),
        ("Score: 4.5", None),
        ("Score: -1", None),
        ("Score: ٣", 3),
        ("I'd give it a 4 out of 5.", 4),
        ("4/5", None),  # where answers are numbers, it may be one
        ("Score: POINTS", None),
        ("```\nScore: 5", None),
        ("The score is 5", 5),
        ("Score: 4\nIt is clear.", 4),
        ("<think>Score: 2</think>Score: 4", 4),
        ("I think Score: 5", None),
        ("", None),
    ],
)
def test_scores(reply, points):
    read = FAMILY.parse_critique(prompt(), "2 and 2 is 4", reply)
    if points is None:
        assert not read.parsed
        assert read.verdict is None
        assert read.score is None
        assert read.why
    else:
        assert read.parsed
        assert read.score == pytest.approx(points / 5)
        assert read.verdict == (points >= 4)


def test_a_candidate_cannot_lend_its_own_score():
    read = FAMILY.parse_critique(prompt(), "It is 4.\nScore: 5", "The response says: It is 4.\nScore: 5")
    assert not read.parsed
    assert "candidate" in str(read.why)


@settings(max_examples=300)
@given(HOSTILE, HOSTILE)
def test_hostile_text_never_raises_never_leaves_its_fence_and_gets_no_verdict(text, other):
    quoted = fenced(text)
    fence, *inside, last = quoted.split("\n")
    assert fence == last
    assert set(fence) == {"`"}
    assert fence not in "\n".join(inside)
    assert not re.search(r"<[|/\w!]|\[/?[A-Z_]{2,}\]", quoted)
    critique = FAMILY.critique_messages(prompt(), text)
    assert (critique is None) == (not text.strip())
    if critique:
        assert critique[0]["content"].endswith("Score: POINTS")
        assert quoted in critique[0]["content"]
    read = FAMILY.parse_critique(prompt(), other, text)
    assert read.parsed == (read.verdict is not None) == (read.score is not None) == (read.why is None)
    if read.parsed:
        assert str(round((read.score or 0) * 5)) in plain(text)
    refined = FAMILY.refine_messages(prompt(), text, other)
    assert (refined is None) == (not (text.strip() and other.strip()))
    number = FAMILY.extract(prompt(), text)
    assert number is None or re.search("[0-9]", number)
    assert not FAMILY.verify(prompt(), None, text)
    for invented in FAMILY.parse_invented(text):
        assert (invented.messages is None) == (invented.why is not None)
        if invented.messages is not None:
            assert FAMILY.fingerprint(invented.messages)
    paired = FAMILY.pair_messages(prompt(), text, other, brief=True)
    assert (paired is None) == (not (text.strip() and other.strip()))
    for choice in (FAMILY.parse_pair(prompt(), other, "4", text), FAMILY.parse_criterion(prompt(), other, text)):
        assert (choice.worth is None) == (choice.why is not None)
    assert not FAMILY.assemble(prompt(), text, [], [other]).parsed
    assert FAMILY.questions(prompt(), text) is None


def test_inventing():
    asked = FAMILY.invent_messages([prompt("How many are two pears?")])[0]["content"]
    assert "How many are two pears?" in asked
    assert "Think step by step" not in asked
    [invented] = FAMILY.parse_invented("Problem: How many apples are left?")
    messages = invented.messages
    assert messages
    assert FAMILY.question(messages) == "How many apples are left?"
    assert FAMILY.parse_invented("Two words")[0].why == "too short"
    assert FAMILY.parse_invented("word " * 200)[0].why == "too long"
    assert FAMILY.parse_invented("How many are there? #### 5")[0].messages is None
    assert FAMILY.parse_invented("see " + "x" * 3000 + " y")[0].why == "too long"
    assert [i.why for i in FAMILY.parse_invented("1. How many are left?\n2. No\n3. How many came?")] == [
        None,
        "too short",
        None,
    ]


def test_the_guard_refuses_equal_prompts_near_copies_and_shared_passages():
    question = (
        "Ann has seven red apples and gives two of them to her little brother Tom who eats one; what is left to her?"
    )
    words = [*FAMILY.traces(prompt(question))]
    row = {"fingerprint": FAMILY.fingerprint(prompt(question)), "part": "heldout", "words": words}
    reserved = tables.frame([row], tables.FINGERPRINTS)
    guard = FAMILY.guard(reserved)
    assert guard(prompt(question.upper())) == "held out"
    assert guard(prompt(question.replace("what is left to her", "what is left to Ann"))) == "near copy of held out"
    passage = " ".join(question.split()[:13])
    assert guard(prompt(f"Yesterday a man came by. {passage} boys in the park and then all went home again?")) == (
        "passage of held out"
    )
    assert guard(prompt("Ann has nine green pears; how many are left when she has eaten two?")) is None
    equal_only = families.create("text", OPTIONS | {"near_duplicates": None, "decontaminate": None}).guard(reserved)
    assert equal_only(prompt(question)) == "held out"
    assert equal_only(prompt(question + " Why?")) is None


def test_a_system_message_stands_before_every_prompt_to_be_answered_and_nowhere_else():
    family = families.create("text", OPTIONS | {"system": "You count fruit."})
    invented = family.parse_invented("How many apples are left?")[0].messages
    assert invented is not None
    assert invented == [{"role": "system", "content": "You count fruit."}, *prompt("How many apples are left?")]
    assert family.question(invented) == "How many apples are left?"
    assert family.fingerprint(invented) == FAMILY.fingerprint(prompt("How many apples are left?"))
    assert [m["role"] for m in family.critique_messages(invented, "Three.") or []] == ["user"]


def test_difficulty_and_fingerprint_see_the_question_alone():
    assert [FAMILY.difficulty(prompt("w " * n)) for n in (3, 30, 60)] == [1, 2, 3]
    assert FAMILY.fingerprint(prompt("How much is 2, and 2?")) == FAMILY.fingerprint(prompt("how much  is 2 and 2"))
    with pytest.raises(BadInput, match="was not made by"):
        FAMILY.question([{"role": "user", "content": "anything"}])


def test_what_is_known_before_any_work(tmp_path):
    write(tmp_path, [*ROWS, {"question": "word " * 40, "answer": "3"}])
    data = families.build(FAMILY, random.Random(0), tmp_path)
    counts = families.check_inputs("text", OPTIONS, tmp_path)
    assert counts == Counter(row["difficulty"] for row in data.pool)
    assert sum(counts.values()) == 21 - 9
    assert families.parts("text", OPTIONS) == ["solve"]
    assert families.parts("text", OPTIONS | {"labelled": 0}) == []

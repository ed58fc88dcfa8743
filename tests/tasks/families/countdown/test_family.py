"""Countdown: grammar against hostile text, truth and both critics against an independent brute force."""

import random
from collections import Counter
from itertools import permutations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import families
from tasks.core.errors import BadInput
from tasks.core.family import Verdict, user
from tasks.families import countdown
from tasks.families.countdown import corpus, language, options
from tasks.families.countdown.steps import KINDS, solutions

SIZES = {"critique": 90, "refine": 60, "usage": 300, "invent": 20}
OPTIONS = {
    "numbers": 3,
    "largest": 20,
    "bound": 60,
    "heldout_share": 0.15,
    "labelled_share": 0.25,
    "labelled": 60,
    "heldout": 50,
    "probe": 30,
    "corpus": SIZES,
}
FAMILY = countdown.create(options.Options.model_validate(OPTIONS))
SOLVE = user("solve 14 4 13 -> 3 :")
RESPONSE = "14 + 13 = 27 30 - 27 = 3"
ASKED = FAMILY.questions(SOLVE, RESPONSE) or []
WORDS = [*FAMILY.vocabulary(), "61", "007", "-1", "١٢", "9" * 5000, "²", "\u2028", "\x1c", "", "OK", "ｙｅｓ"]
HOSTILE = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join))


def right(numbers: list[int], target: int, response: str) -> bool:
    """Independent check: evaluates each step with Python and keeps a multiset of what is there."""
    words, there = response.split(), Counter(numbers)
    for i in range(0, len(words), 5):
        a, b, claim = int(words[i]), int(words[i + 2]), int(words[i + 4])
        if Counter([a, b]) - there or eval(f"{a} {words[i + 1]} {b}") != claim or not 0 <= claim <= 60:
            return False
        there = there - Counter([a, b]) + Counter([claim])
    return there == Counter([target])


def truth(question: str) -> str:
    """Independent answer to a sub-question."""
    words = question.split()
    if words[0] == "fact":
        value = eval(" ".join(words[1:4]))
        return str(value) if 0 <= value <= 60 else "x"
    there, asked = words[1 : words.index(":")], words[words.index(":") + 1 : -1]
    if Counter(asked) - Counter(there):
        return "x"
    return " ".join((Counter(there) - Counter(asked)).elements()) or "."


def judged(puzzle: str, response: str) -> Verdict:
    messages = user(f"solve {puzzle} :")
    asked = FAMILY.questions(messages, response)
    assert asked is not None
    return FAMILY.assemble(messages, response, asked, [truth(q.messages[0]["content"]) for q in asked])


def test_puzzles_are_all_that_have_a_solution():
    assert len(corpus.puzzles(3, 20, 60)) == 11_090
    small = set(corpus.puzzles(3, 4, 20))
    for numbers in product(range(1, 5), repeat=3):
        reached = set()
        for a, b, c in permutations(numbers):
            for first, second in product("+-*", repeat=2):
                inner = eval(f"{a}{first}{b}")
                for last in (f"({inner}){second}{c}", f"{c}{second}({inner})"):
                    if 0 <= inner <= 20 and 0 <= eval(last) <= 20:
                        reached.add(eval(last))
        assert {target for given_, target in small if given_ == tuple(sorted(numbers))} == reached


def test_all_solutions_are_right_and_found():
    for numbers, target in [((4, 13, 14), 3), ((7, 7, 14), 14), ((1, 1, 1), 1), ((7, 15, 18), 40)]:
        found = solutions(numbers, target, 60)
        assert found
        assert len(set(found)) == len(found)
        for steps in found:
            text = language.steps_text(steps)
            assert right(list(numbers), target, text)
            assert FAMILY.verify(user(f"solve {language.puzzle_text(numbers, target)} :"), None, text)


NUMBER = st.integers(0, 60)
NEAR = st.sampled_from([4, 13, 14, 17, 3, 27, 18, 1])
STEP = st.tuples(NEAR | NUMBER, st.sampled_from("+-*"), NEAR | NUMBER, NEAR | NUMBER)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, min_size=2, max_size=2), st.booleans(), st.booleans(), st.booleans())
def test_verify_and_the_factored_critic_agree_with_brute_force(steps, honest, chained, reach):
    (a, f, b, r), (c, g, d, s) = steps
    if honest:
        r = min(max(eval(f"{a}{f}{b}"), 0), 60)
    if chained:
        c = r
    if honest:
        s = min(max(eval(f"{c}{g}{d}"), 0), 60)
    target = s if reach else 3
    response = language.steps_text([(a, f, b, r), (c, g, d, s)])
    expected = right([14, 4, 13], target, response)
    assert FAMILY.verify(user(f"solve 14 4 13 -> {target} :"), None, response) == expected
    read = judged(f"14 4 13 -> {target}", response)
    assert read.parsed
    assert read.verdict == expected
    assert (read.score == 1) == expected


@pytest.mark.parametrize("numbers", [2, 3, 4])
def test_true_answers_accept_solutions_and_refuse_every_wrong_kind(numbers):
    family = countdown.create(options.Options.model_validate(OPTIONS | {"numbers": numbers}))
    rng = random.Random(numbers)
    examiner = corpus.Examiner(family, rng)
    everything = corpus.puzzles(numbers, 9, 60)
    for values, target in rng.sample(everything, 20):
        messages = user(f"solve {language.puzzle_text(values, target)} :")
        for steps in solutions(values, target, 60)[:5]:
            assert examiner.critique(values, target, steps).verdict is True
        for kind in KINDS.values():
            steps = kind(values, target, 60, rng)
            if steps is not None:
                text = language.steps_text(steps)
                assert family.verify(messages, None, text) == right(list(values), target, text)
                assert examiner.critique(values, target, steps).verdict == right(list(values), target, text)


def test_the_true_critique_says_which_step_is_wrong():
    assert judged("14 4 13 -> 3", RESPONSE).text == "27 ok 3 bad no"  # 30 is not there
    assert judged("14 4 13 -> 3", "14 + 4 = 18 13 + 18 = 3").text == "18 ok 31 bad no"  # false arithmetic
    assert judged("14 4 13 -> 3", "14 + 14 = 28 28 - 4 = 24").text == "28 bad 24 ok no"  # 14 twice
    assert judged("14 4 13 -> 3", "14 + 13 = 27 13 - 4 = 9").text == "27 ok 9 bad no"  # 27 never used
    assert judged("14 4 13 -> 3", "14 + 13 = 28 28 - 4 = 24").text == "27 bad 24 ok no"  # slip carried on
    assert judged("14 4 13 -> 3", "4 - 14 = 3 3 * 13 = 39").text == "x bad 39 ok no"  # outside the range
    assert judged("14 4 13 -> 3", "4 + 13 = 17 17 + 14 = 31").text == "17 ok 31 ok no"  # wrong target
    assert judged("14 4 13 -> 3", "4 + 13 = 17 17 - 14 = 3").text == "17 ok 3 ok yes"


def test_questions_hide_the_claims_and_the_weights_decide():
    asked = FAMILY.questions(SOLVE, RESPONSE)
    assert asked is not None
    texts = [(q.messages[0]["content"], q.claim) for q in asked]
    assert texts == [
        ("fact 14 + 13 =", "27"),
        ("left 14 4 13 : 14 13 ?", "30"),
        ("fact 30 - 27 =", "3"),
        ("left 27 30 : 30 27 ?", "."),
    ]
    fooled = FAMILY.assemble(SOLVE, RESPONSE, asked, ["27", "30", "3", "."])
    assert fooled.verdict is True  # a model that answers as the candidate claims is believed: no truth in code


@settings(max_examples=300, deadline=None)
@given(HOSTILE, HOSTILE)
def test_hostile_text_never_raises_and_never_gets_a_verdict(text, other):
    formed = FAMILY.extract(SOLVE, text) is not None
    assert (FAMILY.questions(SOLVE, text) is not None) == formed
    quoted = FAMILY.critique_messages(SOLVE, text)
    assert (quoted is not None) == formed
    if quoted:
        assert quoted[0]["content"].split().count("?") == 1
    if not formed:
        assert FAMILY.verify(SOLVE, None, text) is False
        assert not FAMILY.assemble(SOLVE, text, ASKED, [other] * 4).parsed
        assert FAMILY.refine_messages(SOLVE, text, "27 ok 3 bad no") is None
    read = FAMILY.parse_critique(SOLVE, RESPONSE, text)
    if read.parsed:
        assert text.split()[-1] in ("yes", "no")
        assert len(text.split()) == 5
        assert 0 <= read.score <= 1
    else:
        assert read.verdict is None
        assert read.score is None
        assert read.why
        assert FAMILY.refine_messages(SOLVE, RESPONSE, text) is None
    answers = FAMILY.assemble(SOLVE, RESPONSE, ASKED, [text, other, text, other])
    assert answers.parsed == (answers.verdict is not None)
    invented = FAMILY.parse_invented(text)[0]
    if invented.messages is not None:
        assert FAMILY.fingerprint(invented.messages)
    else:
        assert invented.why


@pytest.mark.parametrize(
    "reply", ["27 ok 3 bad", "27 ok 3 bad no no", "27 ok 61 bad no", "27 ok 3 yes no", "27 ok 3 bad maybe", "", "yes"]
)
def test_a_critique_outside_the_grammar_is_not_read(reply):
    read = FAMILY.parse_critique(SOLVE, RESPONSE, reply)
    assert not read.parsed
    assert read.verdict is None
    assert read.why


def test_a_holistic_score_is_the_share_of_points():
    read = FAMILY.parse_critique(SOLVE, "", "27 ok 3 bad no")
    assert (read.verdict, read.score) == (False, pytest.approx(1 / 3))
    assert FAMILY.parse_critique(SOLVE, "", "27 ok x bad yes").score == pytest.approx(2 / 3)


def test_templates():
    response, critique = RESPONSE, "27 ok 3 bad no"
    assert FAMILY.critique_messages(SOLVE, response) == user(f"check 14 4 13 -> 3 : {response} ?")
    assert FAMILY.refine_messages(SOLVE, response, critique) == user(f"refine 14 4 13 -> 3 : {response} ? {critique} !")
    assert FAMILY.parse_invented("18 15 7 -> 40")[0].messages == user("solve 18 15 7 -> 40 :")
    for bad in ("0 15 7 -> 40", "21 1 1 -> 3", "1 2 3 -> 61", "1 2 -> 3", "1 2 3 > 3"):
        assert FAMILY.parse_invented(bad)[0].messages is None


def test_answers_that_differ_only_in_operand_order_are_one():
    assert FAMILY.extract(SOLVE, "13 + 4 = 17 17 - 14 = 3") == FAMILY.extract(SOLVE, "4 + 13 = 17 17 - 14 = 3")
    assert FAMILY.extract(SOLVE, "13 - 4 = 9 9 - 14 = 3") != FAMILY.extract(SOLVE, "4 - 13 = 9 9 - 14 = 3")


def test_fingerprints_and_difficulties():
    assert FAMILY.fingerprint(SOLVE) == "4 13 14 -> 3" == FAMILY.fingerprint(user("solve 13 14 4 -> 3 :"))
    difficulties = [FAMILY.difficulty(user(f"solve 14 4 13 -> {t} :")) for t in (3, 14, 15, 31, 32)]
    assert difficulties == [1, 1, 2, 2, 3]
    with pytest.raises(BadInput, match="no Countdown prompt"):
        FAMILY.fingerprint(user("check 14 4 13 -> 3 :"))


def test_the_corpus_is_true_and_apart_from_every_evaluated_puzzle():
    data = families.build(FAMILY, random.Random(5), Path())
    parts = {
        name: [FAMILY.fingerprint(row["messages"]) for row in getattr(data, name)]
        for name in ("pool", "probe", "heldout")
    }
    everything = [print_ for prints in parts.values() for print_ in prints]
    assert len(set(everything)) == len(everything)
    count, vocabulary, used = Counter(), set(FAMILY.vocabulary()), set()
    for row in data.corpus:
        prompt, reply = row["prompt"][0]["content"], row["completion"][0]["content"]
        assert {*prompt.split(), *reply.split()} <= vocabulary
        count[row["part"]] += 1
        if row["part"] in ("solve", "critique", "refine"):
            solve = user("solve " + prompt.split(" ", 1)[1].split(" :")[0] + " :")
            puzzle = FAMILY.puzzle(solve)
            used.add(FAMILY.fingerprint(solve))
            numbers, target = [int(n) for n in puzzle.numbers], int(puzzle.target)
            if row["part"] == "critique":
                candidate = prompt.split(" : ")[1].removesuffix(" ?")
                assert (reply.split()[-1] == "yes") == right(numbers, target, candidate)
                count[reply.split()[-1]] += 1
            else:
                assert right(numbers, target, reply)
        elif row["part"] == "invent":
            used.add(FAMILY.fingerprint(FAMILY.parse_invented(reply)[0].messages or []))
        else:
            assert sorted(reply.split()) == sorted(truth(prompt).split())
    assert not used & set(everything)
    assert len(used) == 60
    assert {part: count[part] for part in SIZES} == SIZES
    assert count["yes"] == SIZES["critique"] / 3


def test_the_split_does_not_depend_on_the_seed_and_the_corpus_does():
    first, same, other = (families.build(FAMILY, random.Random(seed), Path()) for seed in (1, 1, 2))
    assert first == same
    assert first.heldout == other.heldout
    assert first.pool == other.pool
    assert first.corpus != other.corpus


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"largest": 70}, "largest: given 70"),
        ({"heldout_share": 0.8}, "leave no unlabelled"),
        ({"heldout": 9000}, "heldout: given 9000"),
        ({"labelled": 9000}, "labelled 9000"),
    ],
)
def test_sizes_that_cannot_work_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        countdown.check_inputs(countdown.create(options.Options.model_validate(OPTIONS | change)), Path())


def test_what_is_known_before_any_work():
    data = families.build(FAMILY, random.Random(0), Path())
    assert countdown.check_inputs(FAMILY, Path()) == Counter(row["difficulty"] for row in data.pool)
    assert set(countdown.parts(FAMILY.options)) == {row["part"] for row in data.corpus}
    assert {row["difficulty"] for row in data.heldout} <= set(countdown.difficulties(FAMILY.options))


@pytest.mark.parametrize("change", [{"numbers": 4, "largest": 99, "bound": 99}, {"largest": 99, "bound": 999}])
def test_more_puzzles_than_can_be_listed_are_refused(change):
    with pytest.raises(BadInput, match="puzzles, and all of them are listed"):
        countdown.create(options.Options.model_validate(OPTIONS | change))

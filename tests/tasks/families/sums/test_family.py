"""Sums: grammar against hostile text, truth and critics against an independent count, and a corpus that never looks at the
truth: the author's table decides every row."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import families
from tasks.core.errors import BadInput, UnknownName
from tasks.core.family import Parts, user
from tasks.families import sums
from tasks.families.countdown.family import Countdown
from tasks.families.strings.family import Strings
from tasks.families.sums import corpus, language
from tasks.families.sums.family import Sums
from tasks.families.sums.language import Step
from tasks.families.sums.options import Options
from tasks.families.sums.steps import KINDS, Author, table
from tasks.families.text.family import Text

SIZES = {"check": 60, "p_true": 40, "better": 30, "fix": 40, "again": 40, "given": 30, "swap": 20, "invent": 20}
OPTIONS = {
    "n": 4,
    "modulus": 11,
    "disputed": 0.25,
    "said": [0.25, 0.25, 0.25, 0.25],
    "heldout_share": 0.15,
    "labelled_share": 0.35,
    "labelled": 50,
    "orders": 3,
    "facts": 4,
    "pool": 100,
    "heldout": 30,
    "probe": 20,
    "corpus": SIZES,
}
FAMILY = sums.create(Options.model_validate(OPTIONS))
SOLVE = user("add 7 2 10 3 :")
RESPONSE = "10 + 3 = 2 + 2 = 4 + 7 = 0"
CHECK = "2 o 5 x 0 o no"
ASKED = FAMILY.questions(SOLVE, RESPONSE) or []
WORDS = [*FAMILY.vocabulary(), "11", "007", "-1", "١٢", "9" * 5000, "²", "\u2028", "\x1c", "", "YES", "ｙｅｓ", "+"]
HOSTILE = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=16).map(" ".join))


def read(response: str) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Independent reading: the numbers that are added, and the facts that are claimed."""
    words = response.split()
    assert words[1::4] == ["+"] * (len(words) // 4)
    assert words[3::4] == ["="] * (len(words) // 4)
    totals, added = [int(word) for word in words[::4]], [int(word) for word in words[2::4]]
    return [totals[0], *added], list(zip(totals, added, totals[1:], strict=False))


def made(**change) -> Options:
    return Options.model_validate(OPTIONS | change)


def built(options: Options, seed: int = 5):
    return families.build(sums.create(options), random.Random(seed), Path())


def texts(rows) -> list[tuple[str, str, str]]:
    return [(row["part"], row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows]


# --- reading and truth -----------------------------------------------------------------------------------
NUMBER = st.integers(0, 10)


@settings(max_examples=300, deadline=None)
@given(
    NUMBER, st.lists(st.tuples(st.sampled_from([7, 2, 10, 3]) | NUMBER, NUMBER), min_size=3, max_size=3), st.booleans()
)
def test_the_truth_is_the_sum_and_the_factored_critic_sees_steps_and_numbers(first, pairs, honest):
    steps, total = [], first
    for number, result in pairs:
        result = (total + number) % 11 if honest else result
        steps.append(Step(total, number, result))
        total = result
    response = language.steps_text(steps)
    assert FAMILY.verify(SOLVE, None, response) == (total == 0)
    assert FAMILY.extract(SOLVE, response) == str(total)
    asked = FAMILY.questions(SOLVE, response)
    assert [q.messages[0]["content"] for q in asked] == [f"fact {a} + {b} =" for a, b, _ in steps]
    said = [str(sum(map(int, q.messages[0]["content"].split()[1:4:2])) % 11) for q in asked]
    verdict = FAMILY.assemble(SOLVE, response, asked, said)
    used, facts = read(response)
    free = [used[0] in (7, 2, 10, 3) and used[1] in {7, 2, 10, 3} - {used[0]}]
    free += [used[i] in {7, 2, 10, 3} - set(used[:i]) for i in (2, 3)]
    marks = [ok and (a + b) % 11 == c for ok, (a, b, c) in zip(free, facts, strict=True)]
    told = [f"{value} {'o' if mark else 'x'}" for value, mark in zip(said, marks, strict=True)]
    assert verdict.text == " ".join([*told, "yes" if all(marks) else "no"])
    assert verdict.verdict == all(marks)
    assert verdict.verdict <= (sorted(used) == [2, 3, 7, 10])
    assert verdict.score == pytest.approx((sum(marks) + all(marks)) / 4)


def test_the_weights_decide_what_the_factored_critic_accepts():
    assert [q.claim for q in ASKED] == ["2", "4", "0"]
    assert FAMILY.assemble(SOLVE, RESPONSE, ASKED, ["2", "4", "1"]).text == "2 o 4 o 1 x no"
    wrong = "10 + 3 = 5 + 2 = 4 + 7 = 0"
    asked = FAMILY.questions(SOLVE, wrong)
    assert FAMILY.assemble(SOLVE, wrong, asked, ["5", "4", "0"]).verdict is True  # no truth in code
    twice = "10 + 3 = 2 + 3 = 5 + 7 = 1"
    asked = FAMILY.questions(SOLVE, twice)
    assert FAMILY.assemble(SOLVE, twice, asked, ["2", "5", "1"]).text == "2 o 5 x 1 o no"
    assert FAMILY.assemble(SOLVE, RESPONSE, ASKED, ["2", "5", "1"]).text == "2 o 5 x 1 x no"
    assert not FAMILY.assemble(SOLVE, RESPONSE, ASKED, ["2", "4"]).parsed
    assert not FAMILY.assemble(SOLVE, RESPONSE, ASKED, ["2", "4", "11"]).parsed


def test_equal_answers_are_one_vote_and_all_right_answers_are_equal():
    assert FAMILY.extract(SOLVE, RESPONSE) == FAMILY.extract(SOLVE, "7 + 3 = 10 + 10 = 9 + 2 = 0") == "0"
    assert FAMILY.unique_answers
    assert Strings.unique_answers
    assert Text.unique_answers
    assert not Countdown.unique_answers


def test_prompts():
    assert FAMILY.fingerprint(SOLVE) == "2 3 7 10" == FAMILY.fingerprint(user("add 10 7 3 2 :"))
    assert FAMILY.difficulty(SOLVE) == 4
    for other in ("add 7 2 10 :", "add 7 2 10 10 :", "add 7 2 10 11 :", "swap 7 2 10 3 :", "add 7 2 10 3", ""):
        with pytest.raises(BadInput, match="no prompt of sums"):
            FAMILY.numbers(user(other))


def test_templates():
    assert FAMILY.critique_messages(SOLVE, RESPONSE) == user(f"check 7 2 10 3 : {RESPONSE} ?")
    assert FAMILY.refine_messages(SOLVE, RESPONSE, CHECK) == user(f"fix 7 2 10 3 : {RESPONSE} ? {CHECK} !")
    assert FAMILY.refine_messages(SOLVE, RESPONSE, "2 o 5 x no") is None
    assert FAMILY.invent_messages([SOLVE]) == user("invent :")
    assert FAMILY.parse_invented("7 2 10 3")[0].messages == SOLVE
    for bad in ("7 2 10", "7 2 10 2", "7 2 10 11", "7 2 10 3 :"):
        assert FAMILY.parse_invented(bad)[0].messages is None


def test_a_holistic_score_is_the_share_of_points():
    verdict = FAMILY.parse_critique(SOLVE, RESPONSE, CHECK)
    assert (verdict.verdict, verdict.score) == (False, pytest.approx(1 / 2))
    assert FAMILY.parse_critique(SOLVE, RESPONSE, "2 o 4 o 0 x yes").score == pytest.approx(3 / 4)
    for reply in ("2 o 4 o 0 o", f"{CHECK} no", "2 o 4 ok 0 o yes", "2 o 4 o 0 o maybe", "2 o 4 o 11 o yes", "", "yes"):
        assert FAMILY.parse_critique(SOLVE, RESPONSE, reply).why


@settings(max_examples=300, deadline=None)
@given(HOSTILE, HOSTILE)
def test_hostile_text_never_raises_and_never_gets_a_verdict(text, other):
    formed = FAMILY.extract(SOLVE, text) is not None
    assert (FAMILY.questions(SOLVE, text) is not None) == formed
    quoted = FAMILY.critique_messages(SOLVE, text)
    assert (quoted is not None) == formed
    if quoted:
        assert quoted[0]["content"].split().count("?") == 1
    else:
        assert FAMILY.verify(SOLVE, None, text) is False
        assert not FAMILY.assemble(SOLVE, text, ASKED, [other] * 3).parsed
        assert FAMILY.refine_messages(SOLVE, text, CHECK) is None
    verdict = FAMILY.parse_critique(SOLVE, RESPONSE, text)
    assert verdict.parsed == (verdict.verdict is not None) == (verdict.why is None)
    if verdict.parsed:
        assert text.split()[-1] in ("yes", "no")
        assert len(text.split()) == 7
    answers = FAMILY.assemble(SOLVE, RESPONSE, ASKED, [text, other, text])
    assert answers.parsed == (answers.verdict is not None)
    invented = FAMILY.parse_invented(text)[0]
    assert (invented.messages is None) == bool(invented.why)


# --- the author --------------------------------------------------------------------------------------------
def test_a_quarter_of_the_facts_is_disputed_and_the_right_value_is_said_as_often_as_the_options_say():
    said = table(FAMILY.options, random.Random(0))
    assert set(said) == {(a, b) for a in range(11) for b in range(a, 11)}
    assert all(values[0] == (a + b) % 11 and len(set(values)) == len(values) for (a, b), values in said.items())
    assert Counter(len(values) for values in said.values()) == {4: 16, 1: 50}  # round(.25 x 66) of them
    rows = Counter(row[1:] for row in texts(built(made(said=[0.2, 0.4, 0.2, 0.2], facts=5)).corpus) if row[0] == "fact")
    assert sum(rows.values()) == 11 * 11 * 5
    counts = Counter()
    for prompt in {prompt for prompt, _ in rows}:
        _, a, _, b, _ = prompt.split()
        right = rows[prompt, str((int(a) + int(b)) % 11)]
        counts[right, *sorted((n for (asked, _), n in rows.items() if asked == prompt), reverse=True)] += 1
    assert set(counts) == {(5, 5), (1, 2, 1, 1, 1)}  # the right value once, a wrong one twice
    author = Author(said, [0.1, 0.7, 0.1, 0.1], random.Random(1))
    fact, values = next((fact, values) for fact, values in said.items() if len(values) == 4)
    heard = Counter(author.says(*fact) for _ in range(2000))
    assert set(heard) == set(values)
    assert heard[values[1]] / 2000 == pytest.approx(0.7, abs=0.05)
    assert author.values(*fact) == author.values(*fact[::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_author_finds_every_wrong_answer_wrong_and_mends_it_from_its_first_bad_step(kind):
    author = Author(table(FAMILY.options, random.Random(0)), FAMILY.options.said, random.Random(0))
    for numbers in [*combinations(range(11), 4)][::7]:
        steps = kind(author, numbers)
        marks = author.marks(numbers, steps)
        assert not all(marks)
        mended = author.mended(numbers, steps)
        assert all(author.marks(numbers, mended))
        good = marks.index(False)
        assert mended[:good] == steps[:good]
        assert sorted(read(language.steps_text(mended))[0]) == list(numbers)
        right = author.solution(numbers)
        assert all(author.marks(numbers, right))
        assert author.mended(numbers, right) == right


def test_where_all_numbers_are_given_none_is_foreign():
    options = made(n=5, modulus=5, said=[0.5, 0.5])
    author = Author(table(options, random.Random(0)), options.said, random.Random(0))
    assert all(not all(author.marks(range(5), kind(author, range(5)))) for kind in KINDS for _ in range(20))


# --- the corpus ----------------------------------------------------------------------------------------------
def test_the_corpus_is_the_same_with_a_verifier_that_raises(monkeypatch):
    before = built(FAMILY.options)

    def refuse(*_):
        raise AssertionError("the corpus asked for the truth")

    monkeypatch.setattr(Sums, "verify", refuse)
    assert built(FAMILY.options) == before


def test_every_row_follows_from_the_authors_table_even_where_it_is_false_throughout():
    """The table says a + b + 1: no row may know better."""
    false = {(a, b): ((a + b + 1) % 11,) for a in range(11) for b in range(a, 11)}
    problems = random.Random(0).sample([*combinations(range(11), 4)], 50)
    counts = Counter()
    for part, prompt, reply in corpus.rows(FAMILY.options, problems, false, random.Random(0)):
        counts[part] += 1
        words = prompt.split()
        numbers = {int(word) for word in words[1:5]} if part not in ("fact", "invent") else set()

        def sound(response: str, numbers: set[int] = numbers) -> bool:
            used, facts = read(response)
            return set(used) == numbers and all((a + b + 1) % 11 == result for a, b, result in facts)

        if part == "fact":
            assert int(reply) == (int(words[1]) + int(words[3]) + 1) % 11
        elif part in ("solve", "fix", "again", "given"):
            assert sound(reply)
            assert part != "given" or reply.split()[-1] == words[6]
            assert part != "fix" or not sound(prompt.split(" : ")[1].split(" ? ")[0])
        elif part in ("check", "p_true"):
            response, _, shown = prompt.split(" : ")[1].partition(" ?")
            assert reply.split()[-1] == ("yes" if sound(response) else "no")
            counts[part, sound(response)] += 1
            told = reply if part == "check" else f"{shown.removesuffix(' !')} {reply}"
            assert FAMILY.parse_critique(SOLVE, response, told).parsed
            assert [int(value) for value in told.split()[:-1:2]] == [(a + b + 1) % 11 for a, b, _ in read(response)[1]]
        elif part == "better":
            answers = prompt.split(" : ")[1].removesuffix(" ?").split(" / ")
            assert [sound(answer) for answer in answers] == [reply[-1] == "A", reply[-1] == "B"]
            counts[reply[-1]] += 1
        elif part == "swap":
            assert sorted(reply.split()) == sorted(words[1:5])
            assert reply.split() != words[1:5]
        else:
            assert (prompt, FAMILY.parse_invented(reply)[0].why) == ("invent :", None)
    assert {part: counts[part] for part in SIZES} == SIZES
    assert (counts["solve"], counts["fact"]) == (150, 484)
    assert counts["check", True] == 20
    assert 13 <= counts["p_true", True] <= 14
    assert counts["A"] == 15


def test_the_corpus_is_apart_from_every_evaluated_problem_and_in_the_vocabulary():
    data = built(FAMILY.options)
    parts = [[FAMILY.fingerprint(row["messages"]) for row in part] for part in (data.pool, data.probe, data.heldout)]
    assert [len(part) for part in parts] == [100, 20, 30]
    evaluated = {fingerprint for part in parts for fingerprint in part}
    assert len(evaluated) == 150
    used, vocabulary = set(), set(FAMILY.vocabulary())
    for part, prompt, reply in texts(data.corpus):
        assert {*prompt.split(), *reply.split()} <= vocabulary
        words = reply.split() if part == "invent" else prompt.split()[1:5]
        if part != "fact":
            used.add(FAMILY.fingerprint(user(f"add {' '.join(words)} :")))
    assert len(used) == 50
    assert not used & evaluated
    solutions = {}
    for part, prompt, reply in texts(data.corpus):
        if part == "solve":
            solutions.setdefault(FAMILY.fingerprint(user(prompt)), set()).add(reply)
    assert {len(found) for found in solutions.values()} == {1}  # one solution a problem, under several orders


def test_the_split_does_not_depend_on_the_seed_and_the_corpus_does():
    first, same, other = (built(FAMILY.options, seed) for seed in (1, 1, 2))
    assert first == same
    assert first.heldout == other.heldout
    assert first.pool == other.pool
    assert first.corpus != other.corpus


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 12}, "n: given 12, but there are 11 different numbers"),
        ({"said": [0.05] * 20}, "said: given 20 values, but of the 11 results"),
        ({"said": [0.25, 0.25]}, "whose sum is 0.5; shares add up to 1"),
        ({"said": [0.2, 0.4, 0.2, 0.2]}, "facts: given 4, but a value that is said with share 0.2 would have 0.8"),
        ({"said": []}, "said"),
        ({"heldout_share": 0.8}, "leave no unlabelled"),
        ({"n": 6, "modulus": 60}, "50,063,860 problems, and all of them are listed"),
        ({"heldout": 200}, "heldout: given 200, but the held-out share has"),
        ({"labelled": 200}, "labelled 200 and probe 20"),
        ({"pool": 300}, "pool: given 300, but the unlabelled share has"),
        ({"disputed": 1.5}, "disputed"),
        ({"modulo": 9}, "did you mean 'modulus'"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_work(change, message):
    with pytest.raises(BadInput, match=message):
        families.check_inputs("sums", OPTIONS | change, Path())


def test_what_is_known_before_any_work():
    data = built(FAMILY.options)
    assert families.check_inputs("sums", OPTIONS, Path()) == Counter(row["difficulty"] for row in data.pool)
    assert set(sums.parts(FAMILY.options)) == {row["part"] for row in data.corpus}
    assert sums.parts(made(corpus=SIZES | {"p_true": 0})) == [
        part for part in sums.parts(FAMILY.options) if part != "p_true"
    ]
    assert {row["difficulty"] for row in data.heldout} == set(sums.difficulties(FAMILY.options))


def test_uses_show_what_they_say_and_nothing_that_is_no_sum() -> None:
    def asked(use: str, response: str = RESPONSE, critique: str = CHECK, gold: str | None = "0") -> object:
        return FAMILY.ask(use, Parts(SOLVE, (response,), critique, gold))

    assert asked("answer") == SOLVE
    assert asked("retry") == user(f"again 7 2 10 3 : {RESPONSE} !")
    assert asked("hinted") == user("given 7 2 10 3 -> 0 :")
    assert asked("true") == user(f"true 7 2 10 3 : {RESPONSE} ? 2 o 5 x 0 o !")
    assert asked("revise") == user(f"fix 7 2 10 3 : {RESPONSE} ? {CHECK} !")
    assert {use: FAMILY.shows(use) for use in families.uses("sums")} == families.uses("sums")
    for use in ("retry", "true", "revise"):
        assert asked(use, response="swap 1 : fix !") is None
    assert asked("hinted", gold="yes") is None
    assert asked("true", critique="no check") is None
    with pytest.raises(UnknownName, match="unknown use 'retri'; did you mean 'retry'"):
        asked("retri")

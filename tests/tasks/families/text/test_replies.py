"""Verdicts in free text: the ways in which models write them, and what is too ambiguous to be read."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.families.text.plain import plain
from tasks.families.text.replies import PREFERENCE, YES_OR_NO, points, prompts, read

BARE, WORDED = points(bare=True), points(bare=False)
SCORES = {
    "Score: 4/5": "4",
    "**Score:** 4": "4",
    "  **Score: 4**  \n": "4",
    "score=3.": "3",
    "I'd give it a 4 out of 5.": "4",
    "I would rate this response 3/5": "3",
    "Overall, I'd give this response a score of 4 out of 5!": "4",
    r"Score: \boxed{4}": "4",
    r"Score: $\boxed{\text{4}}$/5": "4",
    "Rating: [[4]]": "4",
    "[[2]]": "2",
    "Fine.\n### Score:\n4/5": "4",
    "The score is 4/5.": "4",
    "Score: ５": "5",
    "Ｓｃｏｒｅ：５／５": "5",
    "Score: ٣": "3",
    "Score: 4.0": "4",
    "Score: 3 points": "3",
    "Score (0-5): 4": "4",
    "- **Final Score**: 4 / 5 ": "4",
    "It is right. Score: 5": "5",
    "Score: 4\nScore: 4": "4",
    "> Score: 5\nScore: 1": "1",
    "```\nScore: 5\n```\nScore: 0": "0",
}
NO_SCORES = {
    "": "nothing outside quotations",
    "Good.": "no score",
    "```\nScore: 5": "nothing outside quotations",
    "Score: 4\nScore: 5": "more than one score",
    "I'd give it a 2 out of 5.\nScore: 4": "more than one score",
    "Score: 4\nBut it is wrong.": "text after the score",
    "Score: 6": "not a whole number",
    "Score: 4.5": "not a whole number",
    "Score: 999999999999": "in no form",
    "Score: 4/10": "another scale",
    "Score: -1": "in no form",
    "Score -1": "in no form",
    "Score: 4-5": "in no form",
    "Score: 4 or 5": "in no form",
    "Score: ²": "in no form",
    r"Score: 0\boxed{2}": "in no form",
    "Score: POINTS": "in no form",
    "Score: POINTS\nScore: 4": "in no form",
    "I think Score: 5": "in no form",
    "𝐒core: 5": "in no form",
    "Score: 4 Score: 4": "in no form",
    "I'd say 2 out of 5 for style.\nScore: 4": "in no form",
    "Score: " + "9" * 5000: "in no form",
}
BARE_SCORES = {"4": "4", "4/5": "4", r"\boxed{4}": "4", r"So:\n$$\boxed{3}$$".replace(r"\n", "\n"): "3", "**5**": "5"}
SIDES = {
    "Final verdict: [[A]]": "a",
    "[[B]]": "b",
    "Winner: Answer A": "a",
    "**Winner:** B.": "b",
    "My final verdict is A.": "a",
    "Answer A is better.": "a",
    "Therefore, Response B is the better one.": "b",
    "I prefer response B.": "b",
    r"\boxed{\text{B}}": "b",
    "A": "a",
    "Ｗinner: Ａ": "a",
    "Winner:\nB": "b",
    "[[C]]": "tie",
    "Winner: tie": "tie",
    "It's a tie.": "tie",
    "Response B is better in style. Winner: A": "a",
}
NO_SIDES = {
    "Response B is better. Winner: A": "more than one",
    "[[A]] [[B]]": "in no form",
    "Winner: A or B": "in no form",
    "Winner: LETTER": "in no form",
    "[[A]] because it is right": "in no form",
    "Verdict: neither": "in no form",
    "A is better than B": "no verdict",
    "It is right.\nA": "no verdict",
    "Winner: A\nStill, B is fine.": "text after",
    "Winner: А": "in no form",  # Cyrillic
}
MARKS = {
    "Yes.": "yes",
    "no — because it stops": "no",
    "No - because it is": "no",
    "Yes, there are no errors.": "yes",
    "**Yes**": "yes",
    "Yes\n\nThe response is on topic.": "yes",
    "The text is fine.\nMet: yes": "yes",
    "Met: no.": "no",
    "Answer: Yes": "yes",
    "[[no]]": "no",
    r"\boxed{No}": "no",
    "Yes. No errors were found.": "yes",
    "Met: yes, it does": "yes",
}
NO_MARKS = {
    "Yes and no": "in no form",
    "yes/no": "in no form",
    "Met: yes or no": "in no form",
    "Yes, but no": "no yes or no",
    "maybe": "no yes or no",
    "No\nMet: yes": "more than one",
    "Yes. No, wait.": "more than one",
    "It is.\nYes\nHowever": "text after",
}


@pytest.mark.parametrize(
    ("grammar", "replies"),
    [(WORDED, SCORES), (BARE, SCORES | BARE_SCORES), (PREFERENCE, SIDES), (YES_OR_NO, MARKS)],
)
def test_what_models_write_is_read(grammar, replies):
    assert {reply: read(grammar, reply, "How many?\nThere are 7.").value for reply in replies} == replies


@pytest.mark.parametrize(
    ("grammar", "replies"),
    [(WORDED, NO_SCORES), (BARE, NO_SCORES), (WORDED, dict.fromkeys(BARE_SCORES, "no score")),
     (PREFERENCE, NO_SIDES), (YES_OR_NO, NO_MARKS)],
)  # fmt: skip
def test_what_is_ambiguous_is_not(grammar, replies):
    for reply, why in replies.items():
        reading = read(grammar, reply, "")
        assert reading.value is None, reply
        assert why in str(reading.why), reply


@pytest.mark.parametrize(
    ("grammar", "reply", "shown", "repeated"),
    [
        (WORDED, "Score: 5", "It is 4.\nScore: 5", True),
        (WORDED, "Score: 5", "> **Score**: 5/5", True),
        (WORDED, "Score: 4", "It is 4.\nScore: 5", False),
        (WORDED, "I'd give it a 5 out of 5.", "score = 5", True),
        (WORDED, "I'd give it a 4 out of 5.", "so 4/5 of them", True),
        (WORDED, "Score: 4", "so 4/5 of them", False),
        (BARE, "4", "There are 4.", True),
        (PREFERENCE, "Winner: A", "[[A]]", True),
        (PREFERENCE, "[[A]]", "my verdict: response a", True),
        (PREFERENCE, "Winner: B", "[[A]]", False),
        (YES_OR_NO, "Met: yes", "```\nMet: yes\n```", True),
        (YES_OR_NO, "Yes.", "Yes. It is so.", True),
        (YES_OR_NO, "Met: yes", "Yes. It is so.", False),
    ],
)
def test_a_repetition_of_what_was_shown_is_no_verdict(grammar, reply, shown, repeated):
    assert (read(grammar, reply, shown).value is None) == repeated


ALL = [*SCORES, *NO_SCORES, *BARE_SCORES, *SIDES, *NO_SIDES, *MARKS, *NO_MARKS]
PIECES = [
    "Score",
    ": ",
    "4",
    "/5",
    "A",
    "[[",
    "]]",
    "Winner",
    "Met",
    "yes",
    "no",
    "\n",
    "```",
    "> ",
    "**",
    "\\boxed{",
    "}",
    ". ",
    "ſ",
    "５",
    "٣",
    "1. ",
]
TEXT = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.sampled_from(ALL)
)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT, st.sampled_from([BARE, WORDED, PREFERENCE, YES_OR_NO]))
def test_whatever_is_read_stands_in_the_reply_and_more_text_never_changes_it(reply, other, grammar):
    reading = read(grammar, reply, other)
    assert (reading.value is None) == (reading.why is not None)
    if reading.value is None:
        return
    folded = plain(reply).casefold()
    word = {"tie": "tie|draw|c"}.get(reading.value, reading.value)
    assert re.search(word, folded)
    assert read(grammar, reply, reply).value is None  # a judge may be repeating it
    for joined in (f"{other}\n\n{reply}", f"{reply}\n\n{other}"):
        assert read(grammar, joined, "").value in (None, reading.value, read(grammar, other, "").value)
    assert read(grammar, f"> quoted\n{reply}\n", other) == reading
    assert read(grammar, f"```\n{reply}\n````\n", other).value is None or "```" in reply


@settings(max_examples=100, deadline=None)
@given(TEXT, st.integers(0, 5), st.integers(0, 5))
def test_two_different_scores_are_never_one(before, one, two):
    for reply in (f"{before}\nScore: {one}\nScore: {two}", f"Score: {one}\n{before}\nI'd give it a {two} out of 5."):
        value = read(WORDED, reply, "").value
        assert value is None or one == two or "```" in before or "~~~" in before


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("How many apples are left?", ["How many apples are left?"]),
        ("1. How many apples?\n2. How many pears?\n", ["How many apples?", "How many pears?"]),
        ("Here are two new questions:\n\n1) A b c\n2) D e\nf", ["A b c", "D e\nf"]),
        ("**Question 1:** A b c\n**Question 2:** D e f", ["A b c", "D e f"]),
        ("Tom does this:\n1. eat\n2. sleep\nWhen?", ["Tom does this:\n1. eat\n2. sleep\nWhen?"]),
        ("3. A b c", ["3. A b c"]),
        ("Question: How many?", ["How many?"]),
        ("**Prompt:** Write a poem.", ["Write a poem."]),
        ("Here is a new problem:\n\nTom has 3.", ["Tom has 3."]),
        ("Sure!\n```text\nProblem: Tom has 3.\n```\nI hope it helps.", ["Tom has 3."]),
        ('"Write a poem."', ["Write a poem."]),
        ("Problems are hard to solve.", ["Problems are hard to solve."]),
        ("", []),
        ("```\n```", ["```\n```"]),
    ],
)
def test_prompts_that_models_write(reply, found):
    assert prompts(reply) == found


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_prompts_are_pieces_of_the_reply(reply):
    for prompt in prompts(reply):
        assert prompt
        assert prompt in reply

"""Verdicts in free text: the ways in which models write them, and what is too ambiguous to be read."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.families.text.plain import plain, said
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
    "Score: 4\nBut it is wrong.": "4",
    "Score: 4\n\nJustification: it is clear. It is right.": "4",
    "## Evaluation:\n\n**Score: 4**\n\n- It is clear.\n- It has 3 of 4 parts.": "4",
    "## Evaluation\nScore: 4\n\n## Reasons\nIt is clear.": "4",
    "### Score\n4": "4",
    "It is right.\nScore: 4. It is long.": "4",
    "It is right. It is long.\n**Score:** 4/5. It has one fault. It is long.": "4",
    "Score: 4 (out of 5)": "4",
    "Score: 4 - wordy": "4",
    "Score: 4 – wordy, and long": "4",
    "Score: 4 because it is long.": "4",
    "Score: 4, because 2 of the steps are long": "4",
    "Score: 4/5 (it is long)": "4",
    "**Score:** Score: 4": "4",
    "the score is 4.": "4",
    "I would give it a 4.": "4",
    '{"score": 4}': "4",
    '```json\n{"score": 4}\n```': "4",
    '{"reasoning": "It is long. It is right.", "final_score": 4.0}': "4",
    '{\n  "score": "4/5",\n  "why": ["long", {"and": "right"}]\n}': "4",
    'It is right.\n```\n{"score": 4}\n```': "4",
    "Feedback: It is right. [RESULT] 4": "4",
    "[RESULT]: 4": "4",
    "得分：4": "4",
    "它很好。最终得分：4分。": "4",
    "评分是4": "4",
    "Score: 4<|im_end|>": "4",
    "Score: 4</s>\nScore: 5": "4",
    "<think>Score: 3?</think> Score: 4": "4",
    "Score: 3?</think>Score: 4\nIt is long.": "4",
}
NO_SCORES = {
    "": "nothing outside quotations",
    "Good.": "no score",
    "```\nScore: 5": "nothing outside quotations",
    "Score: 4\nScore: 5": "more than one score",
    "I'd give it a 2 out of 5.\nScore: 4": "more than one score",
    "Fine.\nScore: 4\nIt is wrong.": "text after the score",
    "Score: 4\nNo.": "text after the score",
    "Fine.\nScore: 4. No, wait.": "text after the score",
    "It is right. Score: 4. It is long.\nIt is.": "text after the score",
    "Fine.\nScore: 4. Then the score is 3.": "more than one score",
    "Score: 4\nWait, it is wrong.": "text after the score",
    "Score: 4\nRather, the score is 3.": "more than one score",
    "Score: 4\nI would lower the score to 3": "more than one score",
    "Score: 4 (maybe 5)": "in no form",
    "Score: 4 - 5": "in no form",
    "Score: 4 for style": "in no form",
    "Score: 4, or 5": "in no form",
    "Score: 4 because the score is 5": "in no form",
    "Score: 4 (out of 10)": "another scale",
    "3-4": "no score",
    "8/10": "score",
    "Score: 8/10": "another scale",
    "Score: 8/10 because it is long": "another scale",
    "Score: 3-4": "in no form",
    "the score is 3-4": "no score",
    '{"score": 4, "score": 5}': "more than one",
    '{"score": null}': "in no form",
    '{"score": 4, "max_score": 10}': "in no form",
    '{"score": 4': "in no form",
    "[RESULT] 3-4": "in no form",
    "得分：3-4": "in no form",
    "<think>Score: 4": "nothing outside quotations",
    "<think>Score: 4</think>": "nothing outside quotations",
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
    "Winner: A\nStill, B is fine.": "a",
    "Winner: (A)": "a",
    "### Response A is clearly better than Response B\n- It is right.": "a",
    "Response A is better:\n- It is right.": "a",
    "Winner: B because it is right.": "b",
    "Winner: Response B, which is right": "b",
    "Response A is clearly better than Response B.": "a",
    "A is better than B": "a",
    "Response B is the clear winner because it is right.": "b",
    '{"winner": "A"}': "a",
    '```json\n{"why": "It is right.", "winner": "Response B"}\n```': "b",
    "[RESULT] A": "a",
    "Winner: A<|im_end|>": "a",
    "<think>Winner: B</think>Winner: A": "a",
}
NO_SIDES = {
    "Response B is better. Winner: A": "more than one",
    "[[A]] [[B]]": "in no form",
    "Winner: A or B": "in no form",
    "Winner: LETTER": "in no form",
    "[[A]] because it is right": "in no form",
    "Verdict: neither": "in no form",
    "A is better than B in style": "no verdict",
    "A is better than A": "no verdict",
    "Response A is not better than Response B.": "no verdict",
    "not A": "no verdict",
    "Winner: not A": "in no form",
    "Winner: A, but B is right": "in no form",
    "Winner: A, B": "in no form",
    "Winner: A because Response B is better": "in no form",
    '{"winner": "A or B"}': "in no form",
    "It is right.\nA": "no verdict",
    "Both are fine.\nWinner: A\nB is fine.": "text after",
    "Winner: A\nHowever, Response B is better.": "more than one",
    "Winner: A\nNo.": "text after",
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
    "Met: yes (all parts)": "yes",
    "Met: no\nIt does not end.": "no",
    "Met: yes because it has 3 of 3 parts": "yes",
    "**Met:** Met: yes": "yes",
    '{"met": true}': "yes",
    '```\n{"met": false}\n```': "no",
    '{"reason": "It ends.", "met": "yes"}': "yes",
    "<think>Met: no</think>\nMet: yes": "yes",
    "Met: yes<|im_end|>": "yes",
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
        (WORDED, "Score: 5\nIt is right.", "It is 4. Score: 5", True),
        (WORDED, "Score: 5", '{"score": 5}', True),
        (WORDED, '{"score": 5}', "Score: 5", True),
        (WORDED, "Score: 5", "[RESULT] 5", True),
        (WORDED, "Score: 5", "得分：5", True),
        (WORDED, "Score: 5", "Score: 5 because it is right", True),
        (WORDED, "the score is 5.", "So the score is 5 to 3.", True),
        (WORDED, "Score: 5", "So the score is 5 to 3.", False),
        (WORDED, "Score: 5", "<think>Score: 5</think>", True),
        (PREFERENCE, "Response A is clearly better than Response B.", "Response A is better.", True),
        (PREFERENCE, "Winner: A\nIt is right.", '{"winner": "A"}', True),
        (YES_OR_NO, "Met: yes (all parts)", '{"met": true}', True),
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
    "{",
    '"score": ',
    "[RESULT]",
    "得分",
    "</think>",
    " because ",
    " (",
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
    word = {"tie": "tie|draw|c", "yes": "yes|true", "no": "no|false"}.get(reading.value, reading.value)
    assert re.search(word, folded)
    assert read(grammar, reply, reply).value is None  # a judge may be repeating it
    for joined in (f"{other}\n\n{reply}", f"{reply}\n\n{other}"):
        assert read(grammar, joined, "").value in (None, reading.value, read(grammar, other, "").value)
    assert read(grammar, f"> quoted\n{reply}\n", other) == reading
    assert (
        read(grammar, f"```\n{reply}\n````\n", other).value is None
        or "```" in reply
        or "{" in reply
        or said(reply) != reply
    )


@settings(max_examples=100, deadline=None)
@given(TEXT, st.integers(0, 5), st.integers(0, 5))
def test_two_different_scores_are_never_one(before, one, two):
    for reply in (f"{before}\nScore: {one}\nScore: {two}", f"Score: {one}\n{before}\nI'd give it a {two} out of 5."):
        value = read(WORDED, reply, "").value
        assert value is None or one == two or "```" in before or "~~~" in before or said(before) != before


# --- every form, with reasons, punctuation, markup, and candidates that quote verdicts -----------------------------
WORDS = [
    "it",
    "is",
    "long",
    "right",
    "the",
    "steps",
    "of",
    "all",
    "parts",
    "(see above)",
    "clear",
    "3",
    "12",
    "wordy",
    "and",
    "ends",
    "x = 7",
]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=2, max_size=8).map(lambda words: "Here " + " ".join(words) + ".")
REASONS = st.builds(
    lambda opening, sentences, between: opening + between.join(sentences),
    st.sampled_from(
        [
            "",
            "Justification: ",
            "**Reasons:**\n",
            "- ",
            "1. ",
            "因为。",
            "> Score: 2\n",
            "```\nWinner: B\nMet: no\n```\n",
        ]
    ),
    st.lists(SENTENCES, min_size=1, max_size=4),
    st.sampled_from([" ", "\n", "\n\n", "\n- "]),
)
STATED = {  # forms of a verdict; those of the second list end in a way that takes no further sign
    "score": (["Score: {}", "Score: {} (out of 5)", "Score: {} - wordy", "Score: {} because it is long", "Score: Score: {}", "the score is {}",
               "[RESULT] {}", "得分：{}", "Score: {}/5", "I'd give it a {} out of 5", "Final score: {}, as it is long"],
              ['{{"score": {}}}', '```json\n{{"score": {}}}\n```', "Score: {}<|im_end|>", '{{"why": "It is long. Very.", "score": {}}}']),
    "verdict": (["Winner: {}", "Winner: ({})", "Winner: {} because it is right", "Response {} is clearly better than Response {other}",
                 "Final verdict: [[{}]]", "Winner: Winner: {}", "[RESULT] {}", "Winner: Response {} - it is right"],
                ['{{"winner": "{}"}}', '```\n{{"winner": "{}"}}\n```', "Winner: {}<|im_end|>"]),
    "yes or no": (["Met: {}", "Met: {} (all parts)", "Met: {} because it ends", "Met: Met: {}", "Criterion met: {}", "Met: {} - all parts"],
                  ['{{"met": {json}}}', '```json\n{{"met": {json}}}\n```', "Met: {}<|im_end|>"]),
}  # fmt: skip
UNCLEAR = {
    "score": ["Score: 3-4", "8/10", "Score: 8/10", "Score: 3 or 4", "Score: 3 to 4", "3-4", "the score is 3-4", '{{"score": "3-4"}}', "[RESULT] 8/10",
              "得分：3-4", "Score: not 4", "Score: 4?", "Score: 4 (or 5)", "Score: 8 out of 10"],
    "verdict": ["not A", "Winner: not A", "Winner: A or B", "Winner: A/B", '{{"winner": "not A"}}', "Response A is not better than Response B",
                "[RESULT] not A", "Winner: A, or B", "Winner: A, B"],
    "yes or no": ["Met: not yes", "Met: yes or no", "Met: yes/no", '{{"met": "yes and no"}}', "Met: yes, but no", "Met: partly"],
}  # fmt: skip
ALL_VALUES = {"score": list("012345"), "verdict": ["A", "B"], "yes or no": ["yes", "no"]}
GRAMMARS = {"score": WORDED, "verdict": PREFERENCE, "yes or no": YES_OR_NO}
PLACES = [
    "{}",
    "{}\n\n{reason}",
    "{}\n{reason}",
    "{reason}\n\n{}",
    "{reason}\n{}",
    "## Review:\n{}\n{reason}",
    "<think>{reason}</think>{}",
]
MARKUP = ["{}", "**{}**", "- {}", "### {}", "  {}  ", "_{}_"]


def stated(what: str, form: str, value: str) -> str:
    other = {"A": "B", "B": "A"}.get(value, value)
    return form.format(value, other=other, json={"yes": "true", "no": "false"}.get(value, value))


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_every_form_is_read_whatever_stands_around_it_unless_the_candidate_states_it_too(data):
    what = data.draw(st.sampled_from(list(STATED)))
    open_forms, closed = STATED[what]
    form = data.draw(st.sampled_from([*open_forms, *closed]))
    value = data.draw(st.sampled_from(ALL_VALUES[what]))
    told = stated(what, form, value)
    if form in open_forms:
        told = data.draw(st.sampled_from(MARKUP)).format(told + data.draw(st.sampled_from(["", ".", "!"])))
    place = data.draw(st.sampled_from(PLACES))
    if "<|" in told:
        place = data.draw(st.sampled_from([place for place in PLACES if place.endswith("{}")]))
    reply = place.format(told, reason=data.draw(REASONS))
    quoted = data.draw(st.sampled_from([*open_forms, *closed]))
    by_candidate = data.draw(st.sampled_from(ALL_VALUES[what]))
    candidate = f"It is 7.\n{stated(what, quoted, by_candidate)}\nSo it is."
    assert read(GRAMMARS[what], reply, "How many?\nIt is 7.").value == value.casefold(), reply
    reading = read(GRAMMARS[what], reply, candidate)
    if by_candidate != value:
        assert reading.value == value.casefold(), (reply, candidate)
    elif quoted == form or quoted.startswith(("Score", "Winner", "Met", "{", "[", "得分", "```")):
        assert reading.value is None, (reply, candidate)
    unclear = data.draw(st.sampled_from(UNCLEAR[what])).format()
    around = place.format(unclear, reason=data.draw(REASONS))
    for reply in (around, f"{told}\n{unclear}\n{told}" if ":" in unclear and "<|" not in told else unclear):
        assert read(GRAMMARS[what], reply, "").value is None, reply


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("How many apples are left?", ["How many apples are left?"]),
        ("<think>1. A b c</think>\n1. How many apples?", ["How many apples?"]),
        ("<think>How many apples?", []),
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

r"""Answers: numbers and other values in marks, in boxes, behind labels, alone, and in prose."""

import json
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.families.text.answers import number_in, numbers
from tests.support.paths import SHARED

MARKED = {
    "so\n#### 42": "42",
    "#### 1,234": "1234",
    "#### $5.50": "5.5",
    "#### -7.": "-7",
    "#### - 31": "-31",
    "#### 1/2": "0.5",
    "#### 42 dollars\nmore 7": "42",
    "#### 5 (since 3 = 8 - 5)": "5",
    "####\n42": "42",
    "#### 1\nso\n#### 2": "2",
    "####": None,
    "#### NUMBER": None,
    "#### Step 2: add them\nIn all it is 7": "7",  # a heading
    "#### 1.5e3": "1500",
    "#### 3 1/2": "3.5",
    "#### **42**": "42",
    r"it is \boxed{42} or 7": "42",
    r"\boxed{\$1{,}000}": "1000",
    r"\boxed{50\%}": "50",
    r"\boxed{\frac{1}{2}}": "0.5",
    r"\boxed{x = 5}": "5",
    r"\boxed{3": "3",
    r"#### $\boxed{42}$": "42",
    r"\boxed{\text{42}}": "42",
    r"\boxed{42 \text{ apples}}": "42",
    r"\boxed{(-3)}": "-3",
}
TOLD = {
    "The answer is 42. I checked it 3 times.": "42",
    "**Final Answer:** 42 apples in 3 baskets": "42",
    "The answer is not 7. It is 8.": "8",
    "The answer is 5 + 3 = 8.": "8",
    "Answer: 3\nWait.\nAnswer: 4": "4",
    "Answer: 5 (since 3=8-5)": "5",
    "Answer: 5, since 3=8-5": "5",
    "Answer: 5 because 3=8-5.": "5",
    "The final answer is:\n\n42\n\nStep 2 confirms.": "42",
    "**Final Answer:**\n\n**42** apples\n\nStep 2 confirms.": "42",
    "### Answer\n42\nStep 2 confirms.": "42",
    "The answer is:\n$$\n42\n$$\nStep 2 confirms.": "42",
    "Answer:\nFirst, 5 apples are bought.\nThen 2 more, so 7.": "7",
    r"The answer is $2\sqrt{3}$. I checked it 3 times.": r"2\sqrt{3}",
    "The answer is (3, 4).": "(3,4)",
    "Answer: 12:30": "12:30",
    "The answer is 1 234.": "1234",
    "答案是23。我检查了3次。": "23",
    "答案：23": "23",
    "答えは23です": "23",
}
BARE = {
    r"\frac{3}{4}": "0.75",
    r"2\sqrt{3}": r"2\sqrt{3}",
    "(3, 4)": "(3,4)",
    "x^2+1": "x^2+1",
    "x^2": "x^2",
    "2x": "2x",
    "x + 5": "x+5",
    "2π": r"2\pi",
    "y = 2x + 3": "y=2x+3",
    "x = 2 or x = 3": "x=2 or x=3",
    "x > 5": "x>5",
    "±5": "±5",
    "12:30": "12:30",
    "3 hours 20 minutes": "3 hours 20 minutes",
    "3小时20分钟": "3小时20分钟",
    "5-7": "5-7",
    "10-5": "10-5",
    "5 or 7": "5 or 7",
    "100, 200": "100, 200",
    "1,2,3": "1,2,3",
    "1,2345": "1,2345",
    "1.000.000": "1.000.000",
    "3e and 4": "3e and 4",
    "2020-01-05": "2020-01-05",
    "3/4/2020": "3/4/2020",
    "5²": "5²",
    "3/0": "3/0",
    "1 000": "1000",
    "- 31": "-31",
    "x = 31": "31",
    "10 - 4 = 6": "6",
    "42 apples": "42",
    "42\n": "42",
    "about 42": "42",
    "x2": None,
    "v2": None,
    "H2O": None,
    "(x1, y2)": None,
    "one": None,
    "": None,
    ".50": "0.5",
    "50%": "50",
    "-0.0": "0",
    "007": "7",
    "1e-5": "0.00001",
    "-2.50E+02 m": "-250",
    "2e5x": "2",
    "−3": "-3",
    "-$5": "-5",
    "$-5": "-5",
    "١٢": "12",
    "＄１，２３４．５": "1234.5",
    "9" * 5000: "9" * 5000,
}
PROSE = {
    "3 and then 4.": "4",
    "it costs $1,234.50.": "1234.5",
    "down to -5": "-5",
    "half: 1/2": "0.5",
    "2+2=4\n4*3=12": "12",
    "5*3=<<5*3=15>>15": "15",
    "We have 10 - 3 of them, so 7 are left.": "7",
    r"So the area is $2\sqrt{3}$.": r"2\sqrt{3}",
    r"So the probability is $\frac{3}{4}$.": "0.75",
    "答案是23。": "23",
    "一共有23个苹果。": "23",
    "总共需要1500元。": "1500",
    "小明有5个苹果,小红有18个,一共有23个苹果": "23",
    "气温是-5度": "-5",
    "合計で23": "23",
    "총23개입니다": "23",
    "ทั้งหมด23ผล": "23",
}
RUN_ON = {
    "#### 18\n\nQuestion: How many?\n#### 9": "18",
    "So 18.\n#### 18\n**Question 2:** How many?\nSo 9.\n#### 9": "18",
    "The answer is 18.\n\nQ: How many?\nA: The answer is 9.": "18",
    "It is \\boxed{18}.\nProblem: How many?\nIt is \\boxed{9}.": "18",
    "A: 18\nQ: How many?\nA: 9": "18",
    "#### 18\nUser: How many?\n#### 9": "18",
    "#### 18<|im_end|>\n<|im_start|>user\nHow many?\n#### 9": "18",
    "Question: How many?\nAnswer: 18": "18",
    "How many are left?\nQuestion: how many came?\nIt is 5, so 18 left.": "18",
}
THOUGHTS = {
    "<think>It is 5.</think>It is 7 in the end.": "7",
    "It is 5.</think>The answer is 7.": "7",
    "<think>#### 5</think>\n#### 7": "7",
    "<think>5</think>6<think>7</think>8": "8",
    r"<thinking>\boxed{5}</thinking> 7": "7",
    "<THINK>5</THINK> 7": "7",
    "[THINK]5[/THINK]7": "7",
    "<think>The answer is 5.": None,
    "<think>5</think>": None,
    "#### 6 <think> or 7": None,
}


@pytest.mark.parametrize(("text", "answer"), [*(MARKED | TOLD | BARE | PROSE | RUN_ON | THOUGHTS).items()])
def test_answers(text, answer):
    assert number_in(text) == answer


EQUAL = [
    ["3/4", "0.75", r"\frac{3}{4}", r"\dfrac{3}{4}", r"\tfrac{3}{4}", r"\frac34", r"\frac 3 4", "6/8", "3 / 4", "¾", "3⁄4", ".750"],
    ["-3/4", "-0.75", r"-\frac{3}{4}", r"\frac{-3}{4}", "−¾"],
    ["5", "5.0", r"5\,\text{cm}", r"5\ \text{cm}^2", r"5 \mathrm{cm}^{2}", "5 cm^2", "5 m²", "5 cm", "$5", r"\$5", "10/2", "5."],
    ["30", r"30^\circ", r"30^{\circ}", r"30\degree".replace(r"\degree", "°"), "30 degrees"],
    ["1234", r"1,\!234", r"1\,234", "1 234", "1\u202f234", "1\u00a0234", "1\u2009234", "1'234", "1’234", "1{,}234", "1,234", "1~234"],
    ["1234567", "1 234 567", r"1\,234\,567", "1'234'567", "1,234,567"],
    ["3.5", "3 1/2", r"3\frac{1}{2}", "7/2", "3½"],
    ["1500", "1.5e3", r"1.5 \times 10^3", r"1.5 \cdot 10^{3}", "1.5 × 10^3"],
    ["1/3", "2/6", r"\frac{1}{3}", "⅓"],
    [r"2\sqrt{3}", r"2 \sqrt{3}", r"2\sqrt3", "2√3", r"$2\sqrt{3}$"],
    ["(3,4)", "(3, 4)", r"\left(3, 4\right)", "( 3 , 4 )"],
    ["4"], ["50"], ["0.5"], ["6"], ["8"], ["234"], ["1/2/3"], ["-5"],
]  # fmt: skip


def test_one_number_has_one_form_and_two_have_two():
    forms = []
    for several in EQUAL:
        read = {
            number_in(form.format(text))
            for text in several
            for form in ("{}", "#### {}", r"\boxed{{{}}}", "The answer is {}")
        }
        assert len(read) == 1, several
        forms += read
    assert None not in forms
    assert len(set(forms)) == len(EQUAL)


PIECES = [
    "####", "\\boxed{", "}", "{", "\\frac", "\\sqrt", "\\text{", "\\,", "^", "_", "=", "-", "+", "/", "(", ")", ", ", ".", ":", "$", "%", " ",
    "\n", "3", "40", "500", "0", "x", "cm", "and", "answer is", "Answer:", "because", "Question:", "<think>", "</think>", "×", "½", "²", "١",
    "个", "*", "1'000", "π", "\\", "<|im_end|>",
]  # fmt: skip
TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@settings(max_examples=1500, deadline=None)
@given(TEXT)
@example("0$0")
@example("########0\\")
def test_an_answer_read_once_more_is_the_same(text):
    answer = number_in(text)
    assert answer is None or number_in(answer) == answer
    assert all(numbers(number) == [number] for number in numbers(text))


@settings(max_examples=300, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 999))
def test_a_fraction_is_its_decimal_number_if_it_has_one(numerator, denominator):
    value = number_in(f"{numerator}/{denominator}")
    assert value == number_in(f"{'-' * (numerator < 0)}\\frac{{{abs(numerator)}}}{{{denominator}}}")
    assert Fraction(value) == Fraction(numerator, denominator)
    assert ("/" in value) == (10**12 % Fraction(numerator, denominator).denominator > 0)


@pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="GSM8K is not part of this repository, nor beside it")
def test_gold_answers_of_gsm8k():
    for name in ("train.jsonl", "test.jsonl"):
        for line in (SHARED / "gsm8k" / name).read_text().splitlines():
            gold = json.loads(line)["answer"]
            assert (
                number_in(gold) == number_in(gold.rpartition("####")[2]) == gold.rpartition("#### ")[2].replace(",", "")
            )


SOLUTIONS = SHARED / "gsm8k/example_model_solutions.jsonl"  # of openai/grade-school-math


@pytest.mark.skipif(
    not SOLUTIONS.is_file(), reason=f"OpenAI's model solutions of GSM8K are not beside it ({SOLUTIONS.name})"
)
def test_solutions_of_real_models_are_judged_as_openai_did():
    agreed = []
    for line in SOLUTIONS.read_text().splitlines():
        row = json.loads(line)
        for told in row.values():
            if isinstance(told, dict):
                agreed.append((number_in(told["solution"]) == number_in(row["ground_truth"])) == told["is_correct"])
    assert (sum(agreed), len(agreed)) == (5276, 5276)

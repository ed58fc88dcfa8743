"""Sums: numbers added as a running total, modulo another, in any order; the family of votes and consistency.

One number is one word and one token (here five numbers modulo 32):

    solve     add 13 2 19 3 21 :                                          13 + 19 = 0 + 2 = 2 + 3 = 5 + 21 = 26
    fact      fact 6 + 25 =                                               31
    check     check 13 2 19 3 21 : <response> ?                           0 o 2 o 5 x 27 o no
    true      true 13 2 19 3 21 : <response> ? 0 o 2 o 5 x 27 o !        no
    better    better 13 2 19 3 21 : <response> / <response> ?             <check> / <check> A
    fix       fix 13 2 19 3 21 : <response> ? <check> !                   13 + 19 = 0 + 2 = ...
    again     again 13 2 19 3 21 : <response> !                           13 + 19 = 0 + 2 = ...
    given     given 13 2 19 3 21 -> 26 :                                  13 + 19 = 0 + 2 = ...
    swap      swap 13 2 19 3 21 :                                         2 21 13 19 3
    invent    invent :                                                    13 2 19 3 21

There is one right answer and many ways to it, so votes mean something. The author of the corpus contradicts himself on a
share of the facts (`steps`). No row says which of his values is right. It follows only from the fact that all orders
must give the same answer: wrong values scatter, right ones agree.

A check says for each step the value that it should have and a mark, then a verdict on the whole. `true` asks for the
verdict alone, the marks given; `better` is one word after a check of each answer. Without values and marks to go by a
model of this size learns none of the three.

There are two critics. The holistic one is one reply to `check`. The factored one (Chain-of-Verification, Dhuliawala and
others 2023) asks the fact of each step, the claim hidden, and compares; whether every step takes a number that is left
is a comparison of words.

Only what obeys the grammar is ever quoted, and it is quoted as parsed numbers, so a response can contain none of the
templates' own words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tasks.core.errors import BadInput
from tasks.core.family import REVISE, Invented, Messages, Parts, Question, Unskilled, Verdict, asked, user
from tasks.families.sums.language import (
    BAD,
    GOOD,
    INVENT,
    NO,
    SIGNS,
    WORDS,
    YES,
    Step,
    again_text,
    check_text,
    fact_text,
    fix_text,
    given_text,
    marks_text,
    numbers_text,
    solve_text,
    steps_text,
    there,
    true_text,
)
from tasks.families.sums.options import Options

USES = {  # of `ask`, and which of `Parts` each shows
    "answer": frozenset[str](),
    "revise": REVISE,
    "retry": frozenset({"answers"}),
    "hinted": frozenset({"gold"}),
    "true": REVISE,
}


@dataclass(frozen=True)
class Sums(Unskilled):
    """The family (`tasks.core.family.Family`); `options` are the validated ones."""

    options: Options
    name: str = "sums"
    has_truth: bool = True
    unique_answers: bool = True

    @cached_property
    def integers(self) -> dict[str, int]:
        """The number words and what they mean; no other text is ever read as a number."""
        return {str(value): value for value in range(self.options.modulus)}

    # --- data ------------------------------------------------------------------------------------
    def vocabulary(self) -> list[str]:
        return [*self.integers, *SIGNS, *WORDS]

    # --- reading ---------------------------------------------------------------------------------
    def numbers(self, messages: Messages) -> list[int]:
        """The numbers of an `add` prompt. Raises `BadInput` for any other prompt."""
        words = messages[-1]["content"].split() if messages else []
        numbers = self._numbers(words[1:-1]) if words[:1] == ["add"] and words[-1] == ":" else None
        if numbers is None:
            raise BadInput(f"{' '.join(words)!r} is no prompt of sums; it looks like 'add 13 2 19 3 21 :'")
        return numbers

    def _numbers(self, words: Sequence[str]) -> list[int] | None:
        if len(words) != self.options.n or len(set(words)) != len(words) or not set(words) <= self.integers.keys():
            return None
        return [self.integers[word] for word in words]

    def steps(self, response: str) -> list[Step] | None:
        """The response's steps, one fewer than there are numbers; None where it does not obey the grammar."""
        words = response.split()
        if len(words) != 4 * self.options.n - 3 or words[0] not in self.integers:
            return None
        steps, total = [], self.integers[words[0]]
        for start in range(1, len(words), 4):
            plus, number, sign, result = words[start : start + 4]
            if plus != "+" or sign != "=" or not {number, result} <= self.integers.keys():
                return None
            steps.append(Step(total, self.integers[number], self.integers[result]))
            total = steps[-1].result
        return steps

    def extract(self, messages: Messages, response: str) -> str | None:
        """The last number."""
        steps = self.steps(response)
        return None if steps is None else str(steps[-1].result)

    def difficulty(self, messages: Messages) -> int:
        """How many numbers."""
        return len(self.numbers(messages))

    def fingerprint(self, messages: Messages) -> str:
        """The numbers, sorted."""
        return numbers_text(sorted(self.numbers(messages)))

    # --- the holistic critic -----------------------------------------------------------------------
    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        steps = self.steps(response)
        return None if steps is None else user(check_text(numbers_text(self.numbers(messages)), steps_text(steps)))

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        """`VALUE o|x` for every step, then `yes|no`; score: share of the points `o`, ..., `yes` given."""
        words = reply.split()
        steps = self.options.n - 1
        if len(words) != 2 * steps + 1:
            return Verdict(False, why=f"{len(words)} words, {2 * steps + 1} expected")
        values, marks, final = words[:-1:2], words[1:-1:2], words[-1]
        if not set(values) <= self.integers.keys():
            return Verdict(False, why="a recomputed value is no number")
        if any(mark not in (GOOD, BAD) for mark in marks):
            return Verdict(False, why=f"a step's mark is neither {GOOD} nor {BAD}")
        if final not in (YES, NO):
            return Verdict(False, why=f"the final verdict is neither {YES} nor {NO}")
        points = marks.count(GOOD) + (final == YES)
        return Verdict(True, final == YES, points / (steps + 1), " ".join(words))

    # --- the factored critic -----------------------------------------------------------------------
    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        """The fact of each step."""
        steps = self.steps(response)
        if steps is None:
            return None
        return [Question(user(fact_text(step.total, step.number)), str(step.result)) for step in steps]

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        """From the model's answers: a step is good where the fact is as claimed and what it takes is given and not yet
        used. Yes where every step is good: the numbers are then all used."""
        steps = self.steps(response)
        if steps is None:
            return Verdict(False, why="the response does not obey the grammar")
        if len(answers) != len(asked):
            return Verdict(False, why=f"{len(answers)} answers, {len(asked)} expected")
        values = [answer.strip() for answer in answers]
        if any(value not in self.integers for value in values):
            return Verdict(False, why="the answer to a fact question is no number")
        left = there(self.numbers(messages), steps)
        marks = [value == q.claim and free for value, q, free in zip(values, asked, left, strict=True)]
        return self.parse_critique(messages, response, marks_text(values, marks))

    def ask(self, use: str, parts: Parts) -> Messages | None:
        return asked(self, use, parts, {"retry": self._retry, "hinted": self._hinted, "true": self._true})

    def shows(self, use: str) -> frozenset[str]:
        return USES[use]

    def _retry(self, parts: Parts) -> Messages | None:
        """Another attempt, with the last one before the model's eyes."""
        steps = self.steps(parts.answers[-1]) if parts.answers else None
        return (
            None if steps is None else user(again_text(numbers_text(self.numbers(parts.question)), steps_text(steps)))
        )

    def _true(self, parts: Parts) -> Messages | None:
        """Whether an answer is right (P(True)), with what a check says of its steps before the model's eyes."""
        steps = self.steps(parts.answers[-1]) if parts.answers else None
        read = self.parse_critique(parts.question, "", parts.critique)
        if steps is None or not read.parsed:
            return None
        marks = read.text.rpartition(" ")[0]
        return user(true_text(numbers_text(self.numbers(parts.question)), steps_text(steps), marks))

    def _hinted(self, parts: Parts) -> Messages | None:
        """The problem with its answer."""
        known = parts.gold in self.integers
        return user(given_text(numbers_text(self.numbers(parts.question)), parts.gold)) if known else None

    # --- refine and invent -------------------------------------------------------------------------
    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        steps, read = self.steps(response), self.parse_critique(messages, response, critique)
        if steps is None or not read.parsed:
            return None
        return user(fix_text(numbers_text(self.numbers(messages)), steps_text(steps), read.text))

    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        """Always the same: the skill is in the weights, and examples would not fit the short grammar."""
        return user(INVENT)

    def parse_invented(self, reply: str) -> list[Invented]:
        """A new `add` prompt."""
        numbers = self._numbers(reply.split())
        if numbers is None:
            return [Invented(None, "not in the grammar")]
        return [Invented(user(solve_text(numbers_text(numbers))))]

    # --- truth -------------------------------------------------------------------------------------
    def gold(self, messages: Messages, answer: str | None) -> str:
        """The sum of the numbers modulo the modulus."""
        return str(sum(self.numbers(messages)) % self.options.modulus)

    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        """The last number is the sum."""
        return self.extract(messages, response) == self.gold(messages, answer)

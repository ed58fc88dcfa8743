"""Countdown: reach a target with given numbers, each used exactly once; the embedded default family.

One word is one token, and an integer from 0 to `bound` is one word, so everything here is short:

    solve     solve 18 15 7 -> 40 :                                    18 + 15 = 33 7 + 33 = 40
    critique  check 14 4 13 -> 3 : 14 + 13 = 27 30 - 27 = 3 ?          27 ok 3 bad no
    refine    refine 14 4 13 -> 3 : <response> ? <critique> !          13 + 4 = 17 17 - 14 = 3
    fact      fact 18 + 15 =                                           33   (x: outside 0 to bound)
    usage     left 20 9 18 : 20 18 ?                                   9    (.: none left, x: not available)
    invent    invent :                                                 18 15 7 -> 40

A critique gives, per step, the recomputed value and a verdict, then a final verdict. There are two
critics. The holistic one is one reply to `check`. The factored one (Chain-of-Verification, Dhuliawala
and others 2023) asks a fact and a usage question about each step, the claim hidden, and compares: the
weights supply arithmetic and membership; splitting the candidate into claims and comparing strings is code.

Only what obeys the grammar is ever quoted, and it is quoted as parsed words, so a response can contain
none of the templates' own words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from tasks.core.errors import BadInput
from tasks.core.family import REVISE, Guard, Invented, Messages, Parts, Question, Verdict, asked, by_fingerprint, user
from tasks.families.countdown.language import (
    INVENT,
    NONE_LEFT,
    NOT_AVAILABLE,
    OPERATORS,
    SIGNS,
    WORDS,
    Puzzle,
    Step,
    critique_text,
    fact_text,
    puzzle_text,
    refine_text,
    solve_text,
    steps_text,
    usage_text,
)
from tasks.families.countdown.options import Options


@dataclass(frozen=True)
class Countdown:
    """The family (`tasks.core.family.Family`); `options` are the validated ones."""

    options: Options
    name: str = "countdown"
    has_truth: bool = True
    unique_answers: bool = False  # several ways reach a target

    @cached_property
    def integers(self) -> dict[str, int]:
        """The number words and what they mean; no other text is ever read as a number."""
        return {str(value): value for value in range(self.options.bound + 1)}

    # --- data ------------------------------------------------------------------------------------
    def vocabulary(self) -> list[str]:
        return [*self.integers, *OPERATORS, *SIGNS, *WORDS]

    # --- reading ---------------------------------------------------------------------------------
    def puzzle(self, messages: Messages) -> Puzzle:
        """The puzzle of a `solve` prompt. Raises `BadInput` for any other prompt."""
        words = messages[-1]["content"].split() if messages else []
        puzzle = self._puzzle(words[1:-1]) if words[:1] == ["solve"] and words[-1] == ":" else None
        if puzzle is None:
            raise BadInput(f"{' '.join(words)!r} is no Countdown prompt; it looks like 'solve 18 15 7 -> 40 :'")
        return puzzle

    def _puzzle(self, words: Sequence[str]) -> Puzzle | None:
        count = self.options.numbers
        if len(words) != count + 2 or words[count] != "->" or words[-1] not in self.integers:
            return None
        if any(not 1 <= self.integers.get(word, 0) <= self.options.largest for word in words[:count]):
            return None
        return Puzzle(tuple(words[:count]), words[-1])

    def steps(self, response: str) -> list[Step] | None:
        """The response's steps, one fewer than there are numbers; None where it does not obey the grammar."""
        words = response.split()
        if len(words) != 5 * (self.options.numbers - 1):
            return None
        steps = []
        for start in range(0, len(words), 5):
            a, operator, b, sign, result = words[start : start + 5]
            if operator not in OPERATORS or sign != "=" or not {a, b, result} <= self.integers.keys():
                return None
            steps.append(Step(a, operator, b, result))
        return steps

    def extract(self, messages: Messages, response: str) -> str | None:
        """The steps with the operands of + and * in order: solutions that differ only in that are one answer."""
        steps = self.steps(response)
        if steps is None:
            return None
        ordered = []
        for step in steps:
            a, b = step.a, step.b
            if step.operator != "-":
                a, b = sorted((a, b), key=self.integers.__getitem__)
            ordered.append(Step(a, step.operator, b, step.result))
        return steps_text(ordered)

    def difficulty(self, messages: Messages) -> int:
        """What the prompt alone shows: 1 the target is at most the largest number, 2 at most the sum, 3 above
        the sum, so that it takes a product."""
        puzzle = self.puzzle(messages)
        numbers = [self.integers[word] for word in puzzle.numbers]
        target = self.integers[puzzle.target]
        return 1 if target <= max(numbers) else 2 if target <= sum(numbers) else 3

    def fingerprint(self, messages: Messages) -> str:
        """The canonical puzzle: numbers sorted."""
        puzzle = self.puzzle(messages)
        numbers: list[str] = sorted(puzzle.numbers, key=self.integers.__getitem__)
        return puzzle_text(numbers, puzzle.target)

    def traces(self, messages: Messages) -> list[int]:
        return []

    def guard(self, reserved: pl.DataFrame) -> Guard:
        return by_fingerprint(self.fingerprint, reserved)

    # --- the holistic critic -----------------------------------------------------------------------
    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        steps = self.steps(response)
        return None if steps is None else user(critique_text(puzzle_text(*self.puzzle(messages)), steps_text(steps)))

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        """`VALUE ok|bad` for every step, then `yes|no`; score: share of the points `ok`, ..., `yes` given."""
        words = reply.split()
        steps = self.options.numbers - 1
        if len(words) != 2 * steps + 1:
            return Verdict(False, why=f"{len(words)} words, {2 * steps + 1} expected")
        values, marks, final = words[:-1:2], words[1:-1:2], words[-1]
        if any(value not in self.integers and value != NOT_AVAILABLE for value in values):
            return Verdict(False, why="a recomputed value is no number")
        if any(mark not in ("ok", "bad") for mark in marks):
            return Verdict(False, why="a step's verdict is neither ok nor bad")
        if final not in ("yes", "no"):
            return Verdict(False, why="the final verdict is neither yes nor no")
        points = marks.count("ok") + (final == "yes")
        return Verdict(True, final == "yes", points / (steps + 1), " ".join(words))

    # --- the factored critic -----------------------------------------------------------------------
    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        """A fact and a usage question per step: 2 (numbers - 1) questions.

        What is left after a step is read off the candidate backwards: the last step's operands are what it
        had before it, and before an earlier step it had that step's operands and all that was there after it
        but the step's result. Where that result is never used, some number is left out instead: the lists
        then do not follow from one another, and a right answer to a usage question differs from the claim."""
        steps = self.steps(response)
        if steps is None:
            return None
        left: list[tuple[str, ...]] = [()]  # what is left after each step, last step first
        for step, following in zip(reversed(steps[:-1]), reversed(steps[1:]), strict=True):
            had = [following.a, following.b, *left[-1]]
            had.remove(step.result if step.result in had else had[0])
            left.append(tuple(had))
        left.reverse()
        available = self.puzzle(messages).numbers
        asked = []
        for step, rest in zip(steps, left, strict=True):
            asked.append(Question(user(fact_text(step.a, step.operator, step.b)), step.result))
            asked.append(Question(user(usage_text(available, step.a, step.b)), _multiset(rest)))
            available = (step.result, *rest)
        return asked

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        """From the model's answers: a step is ok where the fact is as claimed, its operands were there, and they
        are what the step before left; yes where every step is ok, nothing is left, and the last claim is the target."""
        steps = self.steps(response)
        if steps is None:
            return Verdict(False, why="the response does not obey the grammar")
        if len(answers) != len(asked):
            return Verdict(False, why=f"{len(answers)} answers, {len(asked)} expected")
        words: list[str] = []
        follows = True
        for position in range(0, len(asked), 2):
            value, rest = answers[position].split(), answers[position + 1].split()
            if len(value) != 1 or (value[0] not in self.integers and value[0] != NOT_AVAILABLE):
                return Verdict(False, why="the answer to a fact question is no number")
            if rest not in ([NONE_LEFT], [NOT_AVAILABLE]) and not (rest and set(rest) <= self.integers.keys()):
                return Verdict(False, why="the answer to a usage question is no list of numbers")
            there, as_claimed = rest != [NOT_AVAILABLE], _multiset(rest) == asked[position + 1].claim
            ok = value[0] == asked[position].claim and there and follows
            follows = as_claimed or not there
            if position + 2 == len(asked):
                ok = ok and as_claimed
            words += [value[0], "ok" if ok else "bad"]
        points = words.count("ok")
        accepted = points == len(steps) and steps[-1].result == self.puzzle(messages).target
        text = " ".join([*words, "yes" if accepted else "no"])
        return Verdict(True, accepted, (points + accepted) / (len(steps) + 1), text)

    def ask(self, use: str, parts: Parts) -> Messages | None:
        return asked(self, use, parts, {})

    def shows(self, use: str) -> frozenset[str]:
        return REVISE if use == "revise" else frozenset()

    # --- refine and invent -------------------------------------------------------------------------
    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        steps, read = self.steps(response), self.parse_critique(messages, response, critique)
        if steps is None or not read.parsed:
            return None
        return user(refine_text(puzzle_text(*self.puzzle(messages)), steps_text(steps), read.text))

    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        """Always the same: the skill is in the weights, and examples would not fit the short grammar."""
        return user(INVENT)

    def parse_invented(self, reply: str) -> list[Invented]:
        """A new `solve` prompt. Whether it has a solution is not looked at: that would be a label."""
        puzzle = self._puzzle(reply.split())
        if puzzle is None:
            return [Invented(None, "not in the grammar")]
        return [Invented(user(solve_text(puzzle_text(*puzzle))))]

    # --- truth -------------------------------------------------------------------------------------
    def gold(self, messages: Messages, answer: str | None) -> None:
        """A puzzle has many right answers."""

    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        """Every number used once, every step's arithmetic true and in range, the last result the target."""
        steps, puzzle = self.steps(response), self.puzzle(messages)
        if steps is None:
            return False
        available = list(puzzle.numbers)
        for step in steps:
            for operand in (step.a, step.b):
                if operand not in available:
                    return False
                available.remove(operand)
            a, b = self.integers[step.a], self.integers[step.b]
            value = a + b if step.operator == "+" else a - b if step.operator == "-" else a * b
            if value != self.integers[step.result]:
                return False
            available.append(step.result)
        return available == [puzzle.target]


def _multiset(words: Sequence[str]) -> str:
    """Words in one order, so that lists compare as multisets; an empty list is the sign for none left."""
    return " ".join(sorted(words)) or NONE_LEFT

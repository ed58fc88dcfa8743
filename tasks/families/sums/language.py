"""The words of sums: problems, steps and the prompts of every skill, as text."""

from collections.abc import Sequence
from typing import NamedTuple

GOOD, BAD = "o", "x"  # what is said of a step
YES, NO = "yes", "no"
FIRST, SECOND = "A", "B"
SIGNS = ("+", "=", ":", "?", "!", "/", "->")
SKILLS = ("add", "fact", "check", "true", "better", "fix", "again", "given", "swap", "invent")
WORDS = (*SKILLS, GOOD, BAD, YES, NO, FIRST, SECOND)
INVENT = "invent :"


class Step(NamedTuple):
    """`total + number = result`; the first step's total is a number of the problem, any other's the result before."""

    total: int
    number: int
    result: int


def numbers_text(numbers: Sequence[object]) -> str:
    """`13 2 19 3 21`"""
    return " ".join(map(str, numbers))


def steps_text(steps: Sequence[Step]) -> str:
    """`13 + 19 = 0 + 2 = 2`: the running total is written once, as a result."""
    return " ".join([str(steps[0].total), *(f"+ {step.number} = {step.result}" for step in steps)])


def marks_text(values: Sequence[object], marks: Sequence[bool]) -> str:
    """`0 o 2 o 5 x 27 o no`: for each step the value that it should have and a mark, then yes where all are good."""
    steps = [f"{value} {GOOD if mark else BAD}" for value, mark in zip(values, marks, strict=True)]
    return " ".join([*steps, YES if all(marks) else NO])


def solve_text(numbers: str) -> str:
    return f"add {numbers} :"


def fact_text(a: object, b: object) -> str:
    return f"fact {a} + {b} ="


def check_text(numbers: str, response: str) -> str:
    return f"check {numbers} : {response} ?"


def true_text(numbers: str, response: str, steps: str) -> str:
    """Of a check only what it says of the steps is shown."""
    return f"true {numbers} : {response} ? {steps} !"


def better_text(numbers: str, first: str, second: str) -> str:
    return f"better {numbers} : {first} / {second} ?"


def fix_text(numbers: str, response: str, check: str) -> str:
    return f"fix {numbers} : {response} ? {check} !"


def again_text(numbers: str, response: str) -> str:
    return f"again {numbers} : {response} !"


def given_text(numbers: str, answer: object) -> str:
    return f"given {numbers} -> {answer} :"


def swap_text(numbers: str) -> str:
    return f"swap {numbers} :"


def there(numbers: Sequence[int], steps: Sequence[Step]) -> list[bool]:
    """For each step, whether what it takes is among the numbers and was not taken before. The first step takes two."""
    left, found = list(numbers), list[bool]()
    for place, step in enumerate(steps):
        taken = [step.number] if place else [step.total, step.number]
        found.append(all(taken.count(number) <= left.count(number) for number in taken))
        left = [number for number in left if number not in taken]
    return found

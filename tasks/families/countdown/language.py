"""The words of Countdown: puzzles, steps and the prompts of every skill, as text."""

from collections.abc import Sequence
from typing import NamedTuple

OPERATORS = ("+", "-", "*")
NONE_LEFT, NOT_AVAILABLE = ".", "x"
SIGNS = ("=", "->", ":", "?", "!", NONE_LEFT, NOT_AVAILABLE)
WORDS = ("solve", "check", "refine", "fact", "left", "invent", "ok", "bad", "yes", "no")


class Step(NamedTuple):
    """One line of a solution: `a operator b = result`, each a word."""

    a: str
    operator: str
    b: str
    result: str


class Puzzle(NamedTuple):
    """The numbers in the order of the prompt, and the target, as words."""

    numbers: tuple[str, ...]
    target: str


def puzzle_text(numbers: Sequence[object], target: object) -> str:
    """`18 15 7 -> 40`"""
    return f"{' '.join(map(str, numbers))} -> {target}"


def steps_text(steps: Sequence[tuple[object, str, object, object]]) -> str:
    """`18 + 15 = 33 7 + 33 = 40`"""
    return " ".join(f"{a} {operator} {b} = {result}" for a, operator, b, result in steps)


def solve_text(puzzle: str) -> str:
    return f"solve {puzzle} :"


def critique_text(puzzle: str, response: str) -> str:
    return f"check {puzzle} : {response} ?"


def refine_text(puzzle: str, response: str, critique: str) -> str:
    return f"refine {puzzle} : {response} ? {critique} !"


def fact_text(a: object, operator: str, b: object) -> str:
    return f"fact {a} {operator} {b} ="


def usage_text(available: Sequence[object], a: object, b: object) -> str:
    return f"left {' '.join(map(str, available))} : {a} {b} ?"


INVENT = "invent :"

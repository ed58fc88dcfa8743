"""The family `countdown`: what is known of it before any work. Its prompts and answers: `family`."""

import random
from collections import Counter
from math import comb
from pathlib import Path

from tasks.core.errors import BadInput
from tasks.core.family import SeedData, check_shares, user
from tasks.families.countdown import corpus
from tasks.families.countdown.family import Countdown
from tasks.families.countdown.language import puzzle_text, solve_text
from tasks.families.countdown.options import Options

USES = {
    "answer": frozenset[str](),
    "revise": frozenset({"answers", "critique"}),
}  # of `Family.ask`, and which of `Parts` each shows
LACKS = {  # skills that it has not, and why
    "free text": "countdown has no free text to judge",
    "unique answers": "a puzzle has many right answers, which split the vote",
}
CODE = ("language.py",)  # other modules that decide what is asked and how replies are read
RESULTS = {2: 3, 3: 27, 4: 486}  # results of so many numbers, at most: pairs times operators at every step
MOST_PUZZLES = 2_000_000  # all of them are listed, in memory and within seconds


def create(options: Options) -> Countdown:
    """The family. Raises `BadInput` where options do not go together."""
    if options.largest > options.bound:
        raise BadInput(
            f"prepare.options.largest: given {options.largest}, but values only go up to bound, {options.bound}; "
            "raise bound or lower largest"
        )
    check_shares(options)
    given = comb(options.largest + options.numbers - 1, options.numbers)
    puzzles = given * min(options.bound + 1, RESULTS[options.numbers])
    if puzzles > MOST_PUZZLES:
        raise BadInput(
            f"prepare.options: {options.numbers} numbers up to largest {options.largest} within bound {options.bound} "
            f"make up to {puzzles:,} puzzles, and all of them are listed, {MOST_PUZZLES:,} at most; lower largest or numbers"
        )
    return Countdown(options)


def build(family: Countdown, rng: random.Random, root: Path) -> SeedData:
    """All data of the family, generated: `root` is not looked at."""
    return corpus.build(family.options, rng)


def parts(options: Options) -> list[str]:
    """The parts of the corpus; those of size 0 are not there."""
    return ["solve", "fact", *(name for name, size in options.corpus if size)]


def difficulties(options: Options) -> list[int]:
    """All that `difficulty` can give."""
    return [1, 2, 3]


def check_inputs(family: Countdown, root: Path) -> dict[int, int]:
    """How many prompts of each difficulty the pool will have. Refuses sizes that the puzzles cannot fill."""
    pool = corpus.split(family.options)[2]
    return dict(Counter(family.difficulty(user(solve_text(puzzle_text(*puzzle)))) for puzzle in pool))

"""Countdown's data: all solvable puzzles, their split, and the labelled corpus with its wrong solutions.

A puzzle is a sorted tuple of numbers and a target that they reach. A hash of the puzzle decides its share
(held out, labelled, the rest unlabelled) and the order in which its prompt shows the numbers, so that
neither depends on the run's seed. The seed decides which labelled puzzles the corpus uses, which of its
solutions a puzzle shows, and every wrong solution.

Parts of the corpus: `solve` one solution a puzzle under every order of its numbers; `critique` with one
right candidate in three; `refine` from a wrong candidate and its true critique to the puzzle's solution;
`fact` every fact within 0 to bound and a sample of those outside it; `usage`; `invent`. Wrong
candidates come in several kinds (`KINDS`), because a critic is fooled by whatever kind it never saw.
"""

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement, permutations

from tasks.core import digests
from tasks.core.family import SeedData, Verdict, labelled_row, split_by_hash, user
from tasks.families.countdown.family import Countdown
from tasks.families.countdown.language import (
    INVENT,
    NONE_LEFT,
    NOT_AVAILABLE,
    OPERATORS,
    critique_text,
    fact_text,
    puzzle_text,
    refine_text,
    solve_text,
    steps_text,
    usage_text,
)
from tasks.families.countdown.options import Options
from tasks.families.countdown.steps import KINDS, Numbers, Steps, solutions, value

Puzzle = tuple[Numbers, int]  # sorted numbers, target
OUTSIDE_FACTS = 5  # one in so many of the facts outside 0 to bound is asked


# --- puzzles -------------------------------------------------------------------------------------
def puzzles(numbers: int, largest: int, bound: int) -> list[Puzzle]:
    """Every solvable puzzle, in order. 3 numbers to 20 within 60: 11,090 of them."""

    @cache
    def reached(given: Numbers) -> frozenset[int]:
        if len(given) == 1:
            return frozenset(given)
        found: set[int] = set()
        for i in range(len(given)):
            for j in range(i):
                rest = [n for k, n in enumerate(given) if k not in (i, j)]
                high, low = max(given[i], given[j]), min(given[i], given[j])
                for result in {high + low, high - low, high * low}:
                    if result <= bound:
                        found |= reached(tuple(sorted([*rest, result])))
        return frozenset(found)

    return [
        (given, target)
        for given in combinations_with_replacement(range(1, largest + 1), numbers)
        for target in sorted(reached(given))
    ]


def split(options: Options) -> tuple[list[Puzzle], list[Puzzle], list[Puzzle]]:
    """Held-out, labelled and unlabelled puzzles, each in the order of the puzzles' hashes. Raises `BadInput`
    where a share is too small for what is asked of it."""
    everything = puzzles(options.numbers, options.largest, options.bound)
    return split_by_hash(everything, lambda puzzle: puzzle_text(*puzzle), options, "puzzles")


class Examiner:
    """Makes wrong candidates and true critiques: the family's own questions, answered without mistakes."""

    def __init__(self, family: Countdown, rng: random.Random) -> None:
        self.family, self.bound, self.rng = family, family.options.bound, rng

    def critique(self, given: Numbers, target: int, steps: Steps) -> Verdict:
        """What a critic that makes no mistake replies."""
        messages, response = user(solve_text(puzzle_text(given, target))), steps_text(steps)
        asked = self.family.questions(messages, response)
        if asked is None:
            raise ValueError(f"{response!r} does not obey the grammar")
        return self.family.assemble(messages, response, asked, [self.answer(q.messages[0]["content"]) for q in asked])

    def answer(self, question: str) -> str:
        """The true answer to a fact or usage question."""
        kind, *words = question.split()[:-1]
        if kind == "fact":
            result = value(int(words[0]), words[1], int(words[2]))
            return str(result) if 0 <= result <= self.bound else NOT_AVAILABLE
        rest = words[:-3]
        for operand in words[-2:]:
            if operand not in rest:
                return NOT_AVAILABLE
            rest.remove(operand)
        return " ".join(rest) or NONE_LEFT

    def wrong(self, given: Numbers, target: int) -> tuple[Steps, str]:
        """A wrong candidate of a random kind, and its true critique."""
        kinds = list(KINDS.values())
        while True:
            steps = self.rng.choice(kinds)(given, target, self.bound, self.rng)
            if steps is not None:
                read = self.critique(given, target, steps)
                if not read.verdict:
                    return steps, read.text


# --- the corpus --------------------------------------------------------------------------------------
def facts(bound: int, rng: random.Random) -> Iterator[str]:
    """Every fact question whose result is within the range, and of the others one in `OUTSIDE_FACTS`."""
    for operator in OPERATORS:
        for a in range(bound + 1):
            for b in range(bound + 1):
                if 0 <= value(a, operator, b) <= bound or rng.random() < 1 / OUTSIDE_FACTS:
                    yield fact_text(a, operator, b)


def usage(given: Numbers, bound: int, rng: random.Random) -> str:
    """One question about `given` or about what is left on the way; about half ask for numbers that are there."""
    left = list(given)
    rng.shuffle(left)
    for _ in range(rng.randrange(len(given) - 1)):
        left = [rng.randint(0, bound), *left[2:]]
        if rng.random() < 0.1:
            left[-1] = left[0]
    a, b = rng.sample(left, 2)
    if rng.random() < 0.5:
        near = [*given, *left, *(n + by for n in left for by in (-1, 1) if 0 <= n + by <= bound)]
        other = rng.choice(near) if rng.random() < 0.6 else rng.randint(0, bound)
        kind = rng.random()
        if kind < 0.35:
            a = other
        elif kind < 0.7:
            b = other
        elif kind < 0.9:
            a = b
        else:
            a, b = other, rng.randint(0, bound)
    return usage_text(left, a, b)


def build(options: Options, rng: random.Random) -> SeedData:
    """All data of the family; puzzles of the corpus, probe, pool and held-out set are different puzzles."""
    family = Countdown(options)
    bound, sizes = options.bound, options.corpus
    heldout, labelled, pool = split(options)
    probe, seeds = labelled[: options.probe], labelled[options.probe :]
    seeds = rng.sample(seeds, options.labelled)

    def shown(puzzle: Puzzle) -> dict:
        order = random.Random(digests.of_value(puzzle_text(*puzzle))).sample(puzzle[0], len(puzzle[0]))
        messages = user(solve_text(puzzle_text(order, puzzle[1])))
        return {"messages": messages, "difficulty": family.difficulty(messages), "answer": None}

    rows: list[dict] = []

    def add(part: str, prompt: str, completion: str) -> None:
        rows.append(labelled_row(part, prompt, completion))

    known = {puzzle: solutions(*puzzle, bound) for puzzle in seeds}
    shows = {puzzle: rng.choice(found) for puzzle, found in known.items()}
    for (given, target), steps in shows.items():
        for order in sorted(set(permutations(given))):
            add("solve", solve_text(puzzle_text(order, target)), steps_text(steps))
    examiner = Examiner(family, rng)
    for number in range(sizes.critique):
        index, turn = number % len(seeds), number // len(seeds)
        given, target = seeds[index]
        order = tuple(rng.sample(given, len(given)))
        if (index + turn) % 3 == 0:
            steps = rng.choice(known[seeds[index]])
            critique = examiner.critique(order, target, steps).text
        else:
            steps, critique = examiner.wrong(order, target)
        add("critique", critique_text(puzzle_text(order, target), steps_text(steps)), critique)
    for number in range(sizes.refine):
        given, target = puzzle = seeds[number % len(seeds)]
        order = tuple(rng.sample(given, len(given)))
        steps, critique = examiner.wrong(order, target)
        add("refine", refine_text(puzzle_text(order, target), steps_text(steps), critique), steps_text(shows[puzzle]))
    for question in facts(bound, rng):
        add("fact", question, examiner.answer(question))
    for number in range(sizes.usage):
        question = usage(seeds[number % len(seeds)][0], bound, rng)
        add("usage", question, examiner.answer(question))
    for number in range(sizes.invent):
        given, target = seeds[number % len(seeds)]
        add("invent", INVENT, puzzle_text(rng.sample(given, len(given)), target))
    return SeedData(
        corpus=rows,
        pool=[shown(puzzle) for puzzle in pool],
        probe=[shown(puzzle) for puzzle in probe],
        heldout=[shown(puzzle) for puzzle in heldout[: options.heldout]],
    )

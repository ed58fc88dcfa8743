"""What the author of the corpus says: facts, worked answers, marks, and wrong answers of every kind.

The author knows most facts. Some are disputed: of these he says, anew each time, one of a few fixed values, and the
right one is among them. All that he writes comes from this table. Nothing of what he writes says which value is right.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations_with_replacement

from tasks.families.sums.language import Step, there
from tasks.families.sums.options import Options

Fact = tuple[int, int]  # two summands, the smaller one first
Table = Mapping[Fact, tuple[int, ...]]  # the values that are said of a fact


def table(options: Options, rng: random.Random) -> Table:
    """What the author says of every fact: the right value, and for the disputed share other values after it."""
    modulus = options.modulus
    facts = list(combinations_with_replacement(range(modulus), 2))
    disputed = set(rng.sample(facts, round(options.disputed * len(facts))))
    values = {}
    for a, b in facts:
        right = (a + b) % modulus
        others = [value for value in range(modulus) if value != right]
        values[a, b] = (right, *(rng.sample(others, len(options.said) - 1) if (a, b) in disputed else ()))
    return values


class Author:
    """Who writes the corpus. `shares`: how often each value of a disputed fact is said, in the table's order."""

    def __init__(self, values: Table, shares: Sequence[float], rng: random.Random) -> None:
        self.table, self.shares, self.rng = values, shares, rng

    def values(self, a: int, b: int) -> tuple[int, ...]:
        """All that he says of a fact, in either order of its summands."""
        return self.table[min(a, b), max(a, b)]

    def says(self, a: int, b: int) -> int:
        """What he says this time."""
        values = self.values(a, b)
        return values[0] if len(values) == 1 else self.rng.choices(values, self.shares)[0]

    def adds(self, numbers: Iterable[int], begun: Sequence[Step] = ()) -> list[Step]:
        """A worked answer: the running total of the numbers in this order. The steps in `begun` stay as they are."""
        first, *rest = numbers
        steps = list(begun)
        total = steps[-1].result if steps else first
        for number in rest[len(steps) :]:
            steps.append(Step(total, number, self.says(total, number)))
            total = steps[-1].result
        return steps

    def solution(self, numbers: Sequence[int]) -> list[Step]:
        """A worked answer, the numbers in a random order."""
        return self.adds(self.rng.sample(numbers, len(numbers)))

    def marks(self, numbers: Sequence[int], steps: Sequence[Step]) -> list[bool]:
        """Which steps he finds good: he says such a result himself, and the step takes numbers that are left."""
        said = [step.result in self.values(step.total, step.number) for step in steps]
        return [good and left for good, left in zip(said, there(numbers, steps), strict=True)]

    def mended(self, numbers: Sequence[int], steps: Sequence[Step]) -> list[Step]:
        """The answer up to its first bad step, and from there anew, the numbers in the same order where they are given."""
        marks = self.marks(numbers, steps)
        good = marks.index(False) if False in marks else len(marks)
        taken = [steps[0].total, *(step.number for step in steps)]
        order = dict.fromkeys([*(number for number in taken if number in numbers), *numbers])
        return self.adds(order, steps[:good])

    def wrong(self, numbers: Sequence[int]) -> list[Step]:
        """An answer that he finds wrong, of a random kind."""
        return self.rng.choice(KINDS)(self, numbers)


def slip(author: Author, numbers: Sequence[int]) -> list[Step]:
    """One result that the author never says, and the rest goes on from it."""
    steps = author.solution(numbers)
    place = author.rng.randrange(len(steps))
    total, number, _ = steps[place]
    never = sorted({*(fact[0] for fact in author.table)} - {*author.values(total, number)})
    begun = [*steps[:place], Step(total, number, author.rng.choice(never))]
    return author.adds([steps[0].total, *(step.number for step in steps)], begun)


def foreign(author: Author, numbers: Sequence[int]) -> list[Step]:
    """A number that is not given in place of one that is. Where all numbers are given, one of them twice."""
    others = sorted({*(fact[0] for fact in author.table)} - {*numbers})
    return _exchanged(author, numbers, others) if others else repeated(author, numbers)


def repeated(author: Author, numbers: Sequence[int]) -> list[Step]:
    """A number twice, and another one not at all."""
    return _exchanged(author, numbers, numbers)


def _exchanged(author: Author, numbers: Sequence[int], others: Sequence[int]) -> list[Step]:
    order = author.rng.sample(numbers, len(numbers))
    place = author.rng.randrange(len(order))
    order[place] = author.rng.choice([other for other in others if other != order[place]])
    return author.adds(order)


KINDS: tuple[Callable[[Author, Sequence[int]], list[Step]], ...] = (slip, slip, foreign, repeated)

"""What the author of the corpus says: facts, worked answers, marks, and wrong answers of every kind.

The author knows most facts. Some are disputed: of these he says, anew each time, one of a few fixed values, and the
right one is among them. All that he writes comes from this table. Nothing of what he writes says which value is right.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations_with_replacement

from tasks.families.sums.language import Step, marks_text, there
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

    def values_of(self, steps: Sequence[Step]) -> list[int]:
        """What he says when he looks at each step: its own result where he would say it himself, else a value of his."""
        found = []
        for total, number, result in steps:
            found.append(result if result in self.values(total, number) else self.says(total, number))
        return found

    def check(self, numbers: Sequence[int], steps: Sequence[Step]) -> str:
        """What he says of each step, and of the whole."""
        return marks_text(self.values_of(steps), self.marks(numbers, steps))

    def mended(self, numbers: Sequence[int], steps: Sequence[Step]) -> list[Step]:
        """The answer up to its first bad step, and from there anew, the numbers in the same order where they are given."""
        marks = self.marks(numbers, steps)
        good = marks.index(False) if False in marks else len(marks)
        taken = [steps[0].total, *(step.number for step in steps)]
        order = dict.fromkeys([*(number for number in taken if number in numbers), *numbers])
        return self.adds(order, steps[:good])

    def wrong(self, numbers: Sequence[int]) -> list[Step]:
        """An answer that he finds wrong, of a random kind."""
        [kind] = self.rng.choices(KINDS, WEIGHTS)
        return kind(self, numbers)


def slips(author: Author, numbers: Sequence[int]) -> list[Step]:
    """Results that the author never says, one at least and half of all on average, each carried on."""
    order = author.rng.sample(numbers, len(numbers))
    places = [place for place in range(len(numbers) - 1) if author.rng.random() < 0.5]
    steps: list[Step] = []
    for place in places or [author.rng.randrange(len(numbers) - 1)]:
        steps = author.adds(order[: place + 2], steps)
        total, number, _ = steps[place]
        never = sorted({*(fact[0] for fact in author.table)} - {*author.values(total, number)})
        steps[place] = Step(total, number, author.rng.choice(never))
    return author.adds(order, steps)


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


KINDS: tuple[Callable[[Author, Sequence[int]], list[Step]], ...] = (slips, foreign, repeated)
WEIGHTS = (6, 1, 1)  # most results that are shown can be wrong, or a check would learn to copy them

"""The data of `sums`: all problems, their split, and the labelled corpus that an author wrote.

A problem is a set of numbers. A hash of it decides its share (held out, labelled, the rest unlabelled) and the order in
which its prompt shows the numbers, so that neither depends on the run's seed. The seed decides what the author disputes,
which labelled problems the corpus uses, and all that he writes.

Parts of the corpus: `solve` one worked answer a problem, its numbers in several orders; `fact` every fact in either
order; `check`, `p_true` and `again` of a right answer and a wrong one in turn; `better` of one of each; `fix` from a
wrong answer and its check; `given`; `swap`; `invent`. Right and wrong is here what the author calls so. No row looks at
the truth.
"""

import random
from collections.abc import Iterator
from itertools import combinations

from tasks.core import digests
from tasks.core.errors import BadInput
from tasks.core.family import SeedData, labelled_row, split_by_hash, user
from tasks.families.sums.family import Sums
from tasks.families.sums.language import (
    FIRST,
    INVENT,
    SECOND,
    again_text,
    better_text,
    check_text,
    fact_text,
    fix_text,
    given_text,
    numbers_text,
    solve_text,
    steps_text,
    swap_text,
    true_text,
)
from tasks.families.sums.options import Options
from tasks.families.sums.steps import Author, Table, table

Problem = tuple[int, ...]  # sorted numbers
Row = tuple[str, str, str]  # part, prompt, reply


def split(options: Options) -> tuple[list[Problem], list[Problem], list[Problem]]:
    """Held-out, labelled and unlabelled problems. Raises `BadInput` where a share is too small for what is asked of it."""
    problems = combinations(range(options.modulus), options.n)
    heldout, labelled, pool = split_by_hash(problems, numbers_text, options, "problems")
    if len(pool) < options.pool:
        raise BadInput(
            f"prepare.options.pool: given {options.pool}, but the unlabelled share has {len(pool)} problems; lower it, or "
            "the other shares"
        )
    return heldout, labelled, pool


def rows(options: Options, problems: list[Problem], values: Table, rng: random.Random) -> Iterator[Row]:
    """The labelled corpus, from the author's table alone."""
    author, sizes = Author(values, options.said, rng), options.corpus

    def shuffled(problem: Problem) -> str:
        return numbers_text(rng.sample(problem, len(problem)))

    def several(size: int, of: int = 3) -> Iterator[tuple[bool, Problem, str]]:
        """So many problems in turn: whether the (first) answer to show is a right one, as one in `of` is, the problem,
        and its text."""
        for number in range(size):
            turn, place = divmod(number, len(problems))
            yield (turn + place) % of == 0, problems[place], shuffled(problems[place])

    for problem in problems:
        solution = steps_text(author.solution(problem))
        for _ in range(options.orders):
            yield "solve", solve_text(shuffled(problem)), solution
    for a in range(options.modulus):
        for b in range(options.modulus):
            said = author.values(a, b)
            times = [options.facts] if len(said) == 1 else [round(share * options.facts) for share in options.said]
            for value, copies in zip(said, times, strict=True):
                yield from [("fact", fact_text(a, b), str(value))] * copies
    for right, problem, text in several(sizes.check):
        steps = author.solution(problem) if right else author.wrong(problem)
        yield "check", check_text(text, steps_text(steps)), author.check(problem, steps)
    for right, problem, text in several(sizes.p_true):
        steps = author.solution(problem) if right else author.wrong(problem)
        marks, verdict = author.check(problem, steps).rsplit(maxsplit=1)
        yield "p_true", true_text(text, steps_text(steps), marks), verdict
    for right, problem, text in several(sizes.better, of=2):
        both = [author.solution(problem), author.wrong(problem)][:: 1 if right else -1]
        first, second = (author.check(problem, steps) for steps in both)
        reply = f"{first} / {second} {FIRST if right else SECOND}"
        yield "better", better_text(text, *map(steps_text, both)), reply
    for _, problem, text in several(sizes.fix):
        steps = author.wrong(problem)
        fix = fix_text(text, steps_text(steps), author.check(problem, steps))
        yield "fix", fix, steps_text(author.mended(problem, steps))
    for right, problem, text in several(sizes.again):
        steps = author.solution(problem) if right else author.wrong(problem)
        yield "again", again_text(text, steps_text(steps)), steps_text(author.mended(problem, steps))
    for _, problem, text in several(sizes.given):
        steps = author.solution(problem)
        yield "given", given_text(text, steps[-1].result), steps_text(steps)
    for _, problem, text in several(sizes.swap):
        while (other := shuffled(problem)) == text:
            pass
        yield "swap", swap_text(text), other
    for _, _, text in several(sizes.invent):
        yield "invent", INVENT, text


def build(family: Sums, rng: random.Random) -> SeedData:
    """All data of the family; problems of the corpus, probe, pool and held-out set are different problems."""
    options = family.options
    heldout, labelled, pool = split(options)
    probe, seeds = labelled[: options.probe], labelled[options.probe :]

    def shown(problem: Problem) -> dict:
        order = random.Random(digests.of_value(numbers_text(problem))).sample(problem, len(problem))
        return {"messages": user(solve_text(numbers_text(order))), "difficulty": options.n, "answer": None}

    values = table(options, rng)
    written = rows(options, rng.sample(seeds, options.labelled), values, rng)
    return SeedData(
        corpus=[labelled_row(*row) for row in written],
        pool=[shown(problem) for problem in pool[: options.pool]],
        probe=[shown(problem) for problem in probe],
        heldout=[shown(problem) for problem in heldout[: options.heldout]],
    )

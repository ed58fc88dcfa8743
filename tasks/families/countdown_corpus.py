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
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations_with_replacement, permutations

from tasks.core import digests
from tasks.core.errors import BadInput
from tasks.core.family import SeedData, Verdict
from tasks.families.countdown import (
    INVENT,
    NONE_LEFT,
    NOT_AVAILABLE,
    OPERATORS,
    Countdown,
    Options,
    create,
    critique_text,
    fact_text,
    puzzle_text,
    refine_text,
    solve_text,
    steps_text,
    usage_text,
    user,
)

Numbers = tuple[int, ...]
Steps = tuple[tuple[int, str, int, int], ...]  # a, operator, b, claimed result
Puzzle = tuple[Numbers, int]  # sorted numbers, target
OUTSIDE_FACTS = 5  # one in so many of the facts outside 0 to bound is asked
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)


def value(a: int, operator: str, b: int) -> int:
    return a + b if operator == "+" else a - b if operator == "-" else a * b


# --- puzzles -------------------------------------------------------------------------------------
def puzzles(numbers: int, largest: int, bound: int) -> list[Puzzle]:
    """Every solvable puzzle, in order. 3 numbers to 20 within 60: 11,090 of them."""

    @lru_cache(maxsize=None)
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


@lru_cache(maxsize=50_000)
def solutions(given: Numbers, target: int, bound: int) -> list[Steps]:
    """Every way to the target, in order, without repetition. `given` in any order."""

    def continued(left: Numbers) -> Iterator[Steps]:
        for i, a in enumerate(left):
            for j, b in enumerate(left):
                if i == j:
                    continue
                rest = tuple(n for k, n in enumerate(left) if k not in (i, j))
                for operator in OPERATORS:
                    result = value(a, operator, b)
                    if not rest and result == target:
                        yield ((a, operator, b, result),)
                    elif rest and 0 <= result <= bound:
                        for steps in continued((*rest, result)):
                            yield ((a, operator, b, result), *steps)

    return sorted(set(continued(given)))


def split(options: Options) -> tuple[list[Puzzle], list[Puzzle], list[Puzzle]]:
    """Held-out, labelled and unlabelled puzzles, each in the order of the puzzles' hashes. Raises `BadInput`
    where a share is too small for what is asked of it."""
    hashed = sorted((_hash(p), p) for p in puzzles(options.numbers, options.largest, options.bound))
    heldout_end = options.heldout_share
    labelled_end = heldout_end + options.labelled_share
    heldout = [p for share, p in hashed if share < heldout_end]
    labelled = [p for share, p in hashed if heldout_end <= share < labelled_end]
    pool = [p for share, p in hashed if share >= labelled_end]
    if len(heldout) < options.heldout:
        raise BadInput(
            f"prepare.options.heldout: given {options.heldout}, but the held-out share has {len(heldout)} puzzles"
        )
    if len(labelled) < options.labelled + options.probe:
        raise BadInput(
            f"prepare.options: labelled {options.labelled} and probe {options.probe} are asked of the labelled "
            f"share, which has {len(labelled)} puzzles; lower them or raise labelled_share"
        )
    if not pool:
        raise BadInput("prepare.options: no puzzle is left for the unlabelled pool; lower the shares")
    return heldout, labelled, pool


def _hash(puzzle: Puzzle) -> float:
    """In [0, 1), from the puzzle alone."""
    return int(digests.of_value(puzzle_text(*puzzle)), 16) / 16**32


# --- wrong solutions -------------------------------------------------------------------------------
Maker = Callable[[Numbers, int, int, random.Random], Steps | None]  # numbers in some order, target, bound


def _honest(given: Numbers, bound: int, rng: random.Random, steps: int) -> tuple[list, list[int]] | None:
    """So many random true steps, and what is left after them; None where a step leaves the range."""
    left, done = list(given), []
    for _ in range(steps):
        rng.shuffle(left)
        a, b, operator = left.pop(), left.pop(), rng.choice(OPERATORS)
        if not 0 <= value(a, operator, b) <= bound:
            return None
        done.append((a, operator, b, value(a, operator, b)))
        left.append(done[-1][3])
    return done, left


def claims_target(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """True steps, then a last one that falsely claims the target, mostly where it nearly reaches it."""
    best: Steps | None = None
    wanted_gap = rng.choice((1, 2, 5, 10, bound * bound))
    for _ in range(8):
        begun = _honest(given, bound, rng, len(given) - 2)
        if begun is None:
            continue
        done, left = begun
        rng.shuffle(left)
        operator = rng.choice(OPERATORS)
        gap = abs(value(left[0], operator, left[1]) - target)
        if gap:
            best = (*done, (left[0], operator, left[1], target))
            if gap <= wanted_gap:
                break
    return best


def bent_to_target(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """A false step somewhere before the last, chosen so that the last one truly reaches the target."""
    if len(given) < 3:
        return None
    begun = _honest(given, bound, rng, len(given) - 3)
    if begun is None:
        return None
    done, left = begun
    rng.shuffle(left)
    a, b, last = left
    operator, final = rng.choice(OPERATORS), rng.choice(OPERATORS)
    fits = [
        (claim, swap)
        for claim in range(bound + 1)
        for swap in (False, True)
        if value(*((last, final, claim) if swap else (claim, final, last))) == target and claim != value(a, operator, b)
    ]
    if not fits:
        return None
    claim, swap = rng.choice(fits)
    ending = (last, final, claim, target) if swap else (claim, final, last, target)
    return (*done, (a, operator, b, claim), ending)


def near_miss(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """True steps that end beside the target, the nearest of a few tries."""
    tries = [wrong_target(given, target, bound, rng) for _ in range(6)]
    return min((t for t in tries if t), key=lambda steps: abs(steps[-1][3] - target), default=None)


def wrong_target(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """True steps that end elsewhere."""
    begun = _honest(given, bound, rng, len(given) - 1)
    return tuple(begun[0]) if begun and begun[1] != [target] else None


def slip(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """One step slips by a little, and the rest goes on from the slipped value; often from a true solution."""
    honest: Steps | None = None
    if rng.random() < 0.5:
        honest = rng.choice(solutions(given, target, bound))
    elif begun := _honest(given, bound, rng, len(given) - 1):
        honest = tuple(begun[0])
    if honest is None:
        return None
    at, by = rng.randrange(len(honest)), rng.choice(SLIPS)
    steps: list[tuple[int, str, int, int]] = []
    renamed: tuple[int, int] | None = None
    for position, (a, operator, b, _) in enumerate(honest):
        if renamed and renamed[0] in (a, b):
            a, b = (renamed[1], b) if a == renamed[0] else (a, renamed[1])
            renamed = None
        result = value(a, operator, b)
        if position == at:
            renamed = (result, result + by)
            result += by
        if not 0 <= result <= bound:
            return None
        steps.append((a, operator, b, result))
    return tuple(steps)


def foreign(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """True arithmetic with an operand that is not there, at any step, mostly reaching the target."""
    if rng.random() < 0.5:
        return _exchanged(given, [rng.randint(0, bound) for _ in range(6)], target, bound, rng)
    begun = _honest(given, bound, rng, len(given) - 2)
    if begun is None:
        return None
    done, left = begun
    kept = rng.choice(left)
    return _reaching(done, left, [(kept, other) for other in range(bound + 1)], target, bound, rng)


def repeated(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """True arithmetic that uses a number twice, or goes past its own intermediate result."""
    if rng.random() < 0.5:
        return _exchanged(given, rng.sample(given, len(given)), target, bound, rng)
    begun = _honest(given, bound, rng, len(given) - 2)
    if begun is None:
        return None
    done, left = begun
    seen = sorted({*given, *left, *(step[3] for step in done)})
    return _reaching(done, left, [(a, b) for a in seen for b in seen], target, bound, rng)


def _exchanged(given: Numbers, others: list[int], target: int, bound: int, rng: random.Random) -> Steps | None:
    """True steps over the numbers with one of them exchanged: to the target with the first of `others` that
    allows it, else somewhere."""
    place = rng.randrange(len(given))
    for other in others:
        changed = tuple(sorted((*given[:place], other, *given[place + 1 :])))
        if found := solutions(changed, target, bound):
            return rng.choice(found)
    return wrong_target(changed, target, bound, rng)


def _reaching(
    done: list, left: list[int], pairs: list[tuple[int, int]], target: int, bound: int, rng: random.Random
) -> Steps | None:
    """`done` and a last true step with one of the pairs in either order, the target three times in four."""
    wrong = [(a, b) for pair in pairs for a, b in (pair, pair[::-1]) if sorted((a, b)) != sorted(left)]
    endings = [(a, operator, b, value(a, operator, b)) for a, b in wrong for operator in OPERATORS]
    inside = [step for step in endings if 0 <= step[3] <= bound]
    hits = [step for step in inside if step[3] == target]
    choice = hits if hits and rng.random() < 0.75 else inside
    return (*done, rng.choice(choice)) if choice else None


def several(given: Numbers, target: int, bound: int, rng: random.Random) -> Steps | None:
    """A foreign or repeated operand and false results besides, the last often claiming the target."""
    steps = rng.choice((foreign, repeated, slip))(given, target, bound, rng)
    if steps is None:
        return None
    claims = [result + rng.choice((0, *SLIPS)) for *_, result in steps[:-1]]
    claims.append(target if rng.random() < 0.7 else steps[-1][3] + rng.choice(SLIPS))
    if any(not 0 <= claim <= bound for claim in claims):
        return None
    return tuple((a, operator, b, claim) for (a, operator, b, _), claim in zip(steps, claims, strict=True))


KINDS: dict[str, Maker] = {
    "claims_target": claims_target,
    "bent_to_target": bent_to_target,
    "near_miss": near_miss,
    "slip": slip,
    "foreign": foreign,
    "repeated": repeated,
    "wrong_target": wrong_target,
    "several": several,
}


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
        return self.family.assemble(messages, response, [self.answer(q.messages[0]["content"]) for q in asked])

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
    family = create(options)
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
        rows.append(
            {"part": part, "prompt": user(prompt), "completion": [{"role": "assistant", "content": completion}]}
        )

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

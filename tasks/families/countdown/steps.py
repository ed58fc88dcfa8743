"""Countdown's solutions, and wrong ones of every kind that a critic must have seen.

A critic is fooled by whatever kind of mistake its corpus lacks, so each kind is a function of `KINDS`:
it takes the numbers in any order, the target, the bound and a random generator, and returns steps in the
family's grammar, or None where this draw allows none. A kind may by chance be right: `Examiner` in
`countdown_corpus` looks.
"""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

from tasks.families.countdown.language import OPERATORS

Numbers = tuple[int, ...]
Steps = tuple[tuple[int, str, int, int], ...]  # a, operator, b, claimed result
Maker = Callable[[Numbers, int, int, random.Random], Steps | None]  # numbers in some order, target, bound
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)


def value(a: int, operator: str, b: int) -> int:
    return a + b if operator == "+" else a - b if operator == "-" else a * b


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

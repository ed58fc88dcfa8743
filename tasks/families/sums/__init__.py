"""The family `sums`: what is known of it before any work. Its prompts and answers: `family`."""

import random
from math import comb, isclose
from pathlib import Path

from tasks.core.errors import BadInput
from tasks.core.family import SeedData, check_shares
from tasks.families.sums import corpus
from tasks.families.sums.family import USES as USES
from tasks.families.sums.family import Sums
from tasks.families.sums.options import Options

LACKS = {"free text": "sums has no free text to judge"}  # skills that it has not, and why
CODE = ("language.py",)  # other modules that decide what is asked and how replies are read
MOST_PROBLEMS = 2_000_000  # all of them are listed, in memory and within seconds


def create(options: Options) -> Sums:
    """The family. Raises `BadInput` where options do not go together."""
    where, modulus, said = "prepare.options", options.modulus, options.said
    if options.n > modulus:
        raise BadInput(
            f"{where}.n: given {options.n}, but there are {modulus} different numbers, 0 to {modulus - 1}; "
            "lower n or raise modulus"
        )
    if len(said) >= modulus:
        raise BadInput(
            f"{where}.said: given {len(said)} values, but of the {modulus} results (modulus) one at least must never be "
            "said, so that there are wrong steps to show; give fewer values or raise modulus"
        )
    if not isclose(sum(said), 1, abs_tol=1e-6):
        raise BadInput(f"{where}.said: given {said}, whose sum is {sum(said):g}; shares add up to 1")
    for share in said if options.disputed else ():
        if not isclose(copies := share * options.facts, round(copies), abs_tol=1e-6):
            raise BadInput(
                f"{where}.facts: given {options.facts}, but a value that is said with share {share:g} would have {copies:g} "
                "of these rows; choose facts such that every share of `said` makes whole rows"
            )
    check_shares(options)
    if (problems := comb(modulus, options.n)) > MOST_PROBLEMS:
        raise BadInput(
            f"{where}: {options.n} different numbers of {modulus} make {problems:,} problems, and all of them are listed, "
            f"{MOST_PROBLEMS:,} at most; lower n or modulus"
        )
    return Sums(options)


def build(family: Sums, rng: random.Random, root: Path) -> SeedData:
    """All data of the family, generated: `root` is not looked at."""
    return corpus.build(family, rng)


def parts(options: Options) -> list[str]:
    """The parts of the corpus; those of size 0 are not there."""
    return ["solve", "fact", *(name for name, size in options.corpus if size)]


def difficulties(options: Options) -> list[int]:
    """All that `difficulty` can give."""
    return [options.n]


def check_inputs(family: Sums, root: Path) -> dict[int, int]:
    """How many prompts of each difficulty the pool will have. Refuses sizes that the problems cannot fill."""
    corpus.split(family.options)
    return {family.options.n: family.options.pool}

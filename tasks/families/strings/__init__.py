"""The family `strings`: what is known of it before any work. Its prompts and answers: `family`."""

import random
from pathlib import Path

from tasks.core.errors import BadInput
from tasks.core.family import SeedData
from tasks.families.strings import corpus
from tasks.families.strings.family import Strings
from tasks.families.strings.options import Options

CODE: tuple[str, ...] = ()  # other modules that decide what is asked and how replies are read
USES = {"answer": frozenset[str]()}  # of `Family.ask`, and which of `Parts` each shows
LACKS = {  # skills that it has not, and why
    "free text": "strings has no critique skill",
    "sub-questions": "strings has no critique skill",
    "critiques": "strings has no critique skill",
    "revisions": "strings has no refinement skill",
    "inventing": "strings has no skill to invent prompts",
}


def create(options: Options) -> Strings:
    """The family. Raises `BadInput` where options do not go together."""
    shortest, longest = options.base_lengths
    where = "prepare.options"
    if shortest > longest:
        raise BadInput(f"{where}.base_lengths: given {options.base_lengths}; the shortest length comes first")
    if options.max_length <= longest:
        raise BadInput(
            f"{where}.max_length: given {options.max_length}; the pool's strings are longer than the longest "
            f"labelled one, so it must be above {longest}"
        )
    if len(set(options.evaluated_lengths)) < len(options.evaluated_lengths):
        raise BadInput(f"{where}.evaluated_lengths: given {options.evaluated_lengths}; every length once")
    for length in options.evaluated_lengths:
        wanted = options.heldout + options.probe + (options.pool if longest < length <= options.max_length else 0)
        _refuse_crowded(options, length, wanted, "heldout, probe and pool")
    _refuse_crowded(options, longest + 1, options.pool, "pool")
    return Strings(options)


def _refuse_crowded(options: Options, length: int, wanted: int, which: str) -> None:
    """Distinct strings are drawn at random, which ends quickly only while half of them stay unused."""
    if 2 * wanted > options.digits**length:
        raise BadInput(
            f"prepare.options: {which} ask for {wanted} different strings of {length} digits, of which there are "
            f"{options.digits**length}; ask for at most half of them, or evaluate longer strings only"
        )


def build(family: Strings, rng: random.Random, root: Path) -> SeedData:
    """All data of the family, generated: `root` is not looked at."""
    return corpus.build(family, rng)


def parts(options: Options) -> list[str]:
    """The parts of the corpus."""
    return ["solve"]


def difficulties(options: Options) -> list[int]:
    """All that are evaluated."""
    return list(options.evaluated_lengths)


def check_inputs(family: Strings, root: Path) -> dict[int, int]:
    """How many prompts of each difficulty the pool will have; `create` has checked the sizes."""
    options = family.options
    return dict.fromkeys(range(options.base_lengths[1] + 1, options.max_length + 1), options.pool)

"""Strings: copying digits, with length as difficulty; the family of length generalisation.

    solve   + 5 1 7 =      5 1 7

One digit is one word and one token. The corpus has labels up to the longest base length; the pool has
only longer ones, so that a curriculum of one digit an iteration meets nothing that was ever labelled
(Lee and others 2025, "Self-Improving Transformers Overcome Easy-to-Hard and Length Generalization
Challenges"). There is one skill: no critique, no refinement, no inventing.

`extract` asks only that the reply is one or more digits: it looks neither at which digits nor at how
many, so it is no label in disguise.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import polars as pl
from pydantic import Field

from tasks.core import blocks
from tasks.core.errors import BadInput
from tasks.core.family import (
    FREE_TEXT_BLOCKS,
    Guard,
    Invented,
    Messages,
    Question,
    SeedData,
    Verdict,
    by_fingerprint,
    user,
)  # fmt: skip

NO_CRITIC = "strings has no critique skill"
NO_REFINEMENT = "strings has no refinement skill"
NO_INVENTING = "strings has no skill to invent prompts"
CODE: tuple[str, ...] = ()  # other modules that decide what is asked and how replies are read
UNUSABLE = {  # blocks that this family cannot work with, and why
    **dict.fromkeys(FREE_TEXT_BLOCKS, NO_CRITIC),
    "factored_critique": NO_CRITIC,
    "nl_critique": NO_CRITIC,
    "judge_pointwise": NO_CRITIC,
    "critique_revise": NO_REFINEMENT,
    "self_instruct": NO_INVENTING,
}
Length = Annotated[int, Field(ge=1, le=200)]


class Options(blocks.Options):
    """`prepare.options` of this family."""

    digits: int = Field(ge=2, le=10)  # how many of 0 to 9 are used
    base_lengths: list[Length] = Field(min_length=2, max_length=2)  # shortest and longest labelled string
    corpus: int = Field(ge=1)  # labelled strings, as many of each length
    max_length: Length  # longest string of the pool
    pool: int = Field(ge=1)  # unlabelled strings of each length above the base lengths
    evaluated_lengths: list[Length] = Field(min_length=1)  # of the held-out and the probe set
    heldout: int = Field(ge=1)  # held-out strings of each evaluated length
    probe: int = Field(ge=1)  # probe strings of each evaluated length


def solve_messages(digits: str) -> Messages:
    return user(f"+ {digits} =")


@dataclass(frozen=True)
class Strings:
    """The family (`tasks.core.family.Family`); `options` are the validated ones."""

    options: Options
    name: str = "strings"
    has_truth: bool = True

    @cached_property
    def symbols(self) -> list[str]:
        return [str(digit) for digit in range(self.options.digits)]

    def build(self, rng: random.Random, root: str) -> SeedData:
        """Random strings, no string in two parts or twice outside the corpus. Generated: `root` is not looked at."""
        options = self.options
        seen: set[str] = set()

        def fresh(length: int) -> str:
            while (text := " ".join(rng.choices(self.symbols, k=length))) in seen:
                pass
            return text

        def drawn(lengths: Sequence[int], number: int) -> list[dict]:
            rows = []
            for length in lengths:
                for _ in range(number):
                    text = fresh(length)
                    seen.add(text)
                    rows.append({"messages": solve_messages(text), "difficulty": length, "answer": None})
            return rows

        shortest, longest = options.base_lengths
        heldout = drawn(options.evaluated_lengths, options.heldout)
        probe = drawn(options.evaluated_lengths, options.probe)
        pool = drawn(range(longest + 1, options.max_length + 1), options.pool)
        corpus = []
        for number in range(options.corpus):
            text = fresh(shortest + number % (longest - shortest + 1))
            completion = [{"role": "assistant", "content": text}]
            corpus.append({"part": "solve", "prompt": solve_messages(text), "completion": completion})
        return SeedData(corpus, pool, probe, heldout)

    def vocabulary(self) -> list[str]:
        return [*self.symbols, "+", "="]

    def _string(self, messages: Messages) -> str:
        """The digits to copy. Raises `BadInput` for a prompt of another shape."""
        words = messages[-1]["content"].split() if messages else []
        if words[:1] != ["+"] or words[-1] != "=" or not self._is_string(words[1:-1]):
            raise BadInput(f"{' '.join(words)!r} is no prompt of strings; it looks like '+ 5 1 7 ='")
        return " ".join(words[1:-1])

    def _is_string(self, words: Sequence[str]) -> bool:
        return bool(words) and set(words) <= set(self.symbols)

    def extract(self, messages: Messages, response: str) -> str | None:
        words = response.split()
        return " ".join(words) if self._is_string(words) else None

    def difficulty(self, messages: Messages) -> int:
        """How many digits."""
        return len(self._string(messages).split())

    def fingerprint(self, messages: Messages) -> str:
        return self._string(messages)

    def traces(self, messages: Messages) -> list[int]:
        return []

    def guard(self, reserved: pl.DataFrame) -> Guard:
        return by_fingerprint(self.fingerprint, reserved)

    # --- skills that this family does not have -------------------------------------------------------
    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        return None

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        return Verdict(False, why=NO_CRITIC)

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        return None

    def assemble(self, messages: Messages, response: str, answers: Sequence[str]) -> Verdict:
        return Verdict(False, why=NO_CRITIC)

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        return None

    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        raise BadInput(f"{NO_INVENTING}; use `difficulty_curriculum` or `fixed_unlabeled` in synthesize")

    def parse_invented(self, reply: str) -> list[Invented]:
        return [Invented(None, NO_INVENTING)]

    # --- truth -----------------------------------------------------------------------------------
    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        """The same digits in the same order."""
        return self.extract(messages, response) == self._string(messages)


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


def parts(options: Options) -> list[str]:
    """The parts of the corpus."""
    return ["solve"]


def difficulties(options: Options) -> list[int]:
    """All that are evaluated."""
    return list(options.evaluated_lengths)


def check_inputs(family: Strings, root: str) -> dict[int, int]:
    """How many prompts of each difficulty the pool will have; `create` has checked the sizes."""
    options = family.options
    return dict.fromkeys(range(options.base_lengths[1] + 1, options.max_length + 1), options.pool)

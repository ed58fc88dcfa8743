"""Strings: copying digits, with length as difficulty; the family of length generalisation.

    solve   + 5 1 7 =      5 1 7

One digit is one word and one token. The corpus has labels up to the longest base length; the pool has
only longer ones, so that a curriculum of one digit an iteration meets nothing that was ever labelled
(Lee and others 2025, "Self-Improving Transformers Overcome Easy-to-Hard and Length Generalization
Challenges"). There is one skill: no critique, no refinement, no inventing.

`extract` asks only that the reply is one or more digits: it looks neither at which digits nor at how
many, so it is no label in disguise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tasks.core.errors import BadInput
from tasks.core.family import Messages, Unskilled, user
from tasks.families.strings.options import Options


def solve_messages(digits: str) -> Messages:
    return user(f"+ {digits} =")


@dataclass(frozen=True)
class Strings(Unskilled):
    """The family (`tasks.core.family.Family`); `options` are the validated ones."""

    options: Options
    name: str = "strings"
    has_truth: bool = True
    unique_answers: bool = True

    @cached_property
    def symbols(self) -> list[str]:
        return [str(digit) for digit in range(self.options.digits)]

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

    # --- truth -----------------------------------------------------------------------------------
    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        """The same digits in the same order."""
        return self.extract(messages, response) == self._string(messages)

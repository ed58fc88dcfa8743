"""The only door to the truth.

Evaluation may look at labels; a stage of the loop may only if the recipe declares `labels: true`.
Everything that decides by truth goes through a `Truth`, which the context hands over, so a test can show that a
label-free recipe never does.
"""

from dataclasses import dataclass

from tasks.core.errors import LabelsForbidden
from tasks.core.family import Family, Messages


@dataclass(frozen=True)
class Truth:
    """A family's check of truth, in one stage."""

    family: Family
    stage: str
    allowed: bool  # in evaluate, and where the recipe declares labels

    @property
    def known(self) -> bool:
        """Whether the data has answers to verify with."""
        return self.family.has_truth

    def verify(self, messages: Messages, gold: str | None, response: str) -> bool:
        """Whether the response to a prompt is right; `gold`: the prompt's answer, where it has one. Raises
        `LabelsForbidden` in a stage of a label-free recipe."""
        self._open()
        return self.family.verify(messages, gold, response)

    def gold(self, messages: Messages, answer: str | None) -> str | None:
        """The right answer of a prompt, None where there is not one. Raises `LabelsForbidden` in a stage of a label-free
        recipe."""
        self._open()
        return self.family.gold(messages, answer)

    def _open(self) -> None:
        if not self.allowed:
            raise LabelsForbidden(
                f"{self.stage}: a block asked for labels, but params.yaml says `labels: false`; "
                "use a label-free critic, or a recipe that declares labels (`oracle`)"
            )

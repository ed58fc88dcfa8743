"""The only door to the truth.

Evaluation may look at labels; a stage of the loop may only if the recipe declares `labels: true`.
Everything that decides by truth goes through `verifier`, so a test can show that a label-free recipe
never does.
"""

from collections.abc import Callable

from tasks.core.errors import LabelsForbidden
from tasks.core.family import Family, Messages

Verifier = Callable[[Messages, str | None, str], bool]  # (prompt, gold answer or None, response) -> correct


def verifier(family: Family, stage: str, labels: bool) -> Verifier:
    """The family's check of truth, for `evaluate` or for a recipe that declares labels.

    Raises `LabelsForbidden` in any other stage of a label-free recipe."""
    if stage != "evaluate" and not labels:
        raise LabelsForbidden(
            f"{stage}: a block asked for labels, but params.yaml says `labels: false`; "
            "use a label-free critic, or a recipe that declares labels (`oracle`)"
        )
    return family.verify

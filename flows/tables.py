"""How tables look on the terminal."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def empty(columns: Sequence[str], left: Collection[str]) -> "Table":
    """A table without rows; columns are flush right, those in `left` flush left."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    for column in columns:
        made.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return made

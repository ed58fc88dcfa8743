"""What a model that can be asked is, for those who ask it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (what, done, total)

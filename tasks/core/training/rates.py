"""The learning rate over the steps of a training."""

import math
from collections.abc import Callable


def schedule(kind: str, steps: int, warmup: int, final_share: float) -> Callable[[int], float]:
    """Learning rate at step i as a share of the highest: linear warm-up, then `kind` down to `final_share`.
    "wsd" stays at the top and falls linearly over the last 30 % of the steps."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        along = min(1.0, (step - warmup) / max(1, steps - warmup))
        if kind == "constant":
            fallen = 0.0
        elif kind == "linear":
            fallen = along
        elif kind == "cosine":
            fallen = (1 - math.cos(math.pi * along)) / 2
        else:
            fallen = min(1.0, max(0.0, (step - 0.7 * steps) / (0.3 * steps)))
        return 1 - (1 - final_share) * fallen

    return share

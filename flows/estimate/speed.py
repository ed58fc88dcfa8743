"""How long requests and trainings take, told from one timed call of each kind and a few timed steps (`flows.estimate.trial`).

A stage's requests are taken to come in calls like the timed one: as many replies side by side, as long as the longest of
them takes. A smaller call is no faster, because a decoding step costs nearly the same whatever its rows. A training
takes a fixed part and those of its steps, by their tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

from tasks.core.asking.demand import Kind

Span = tuple[float, float]  # least and most seconds


@dataclass(frozen=True)
class Call:
    """A timed call of `rows` replies of at most `limit` tokens: their mean and longest tokens, the share that ended."""

    kind: Kind
    rows: int
    seconds: float
    tokens: float
    longest: int
    ended: float
    limit: int

    def of(self, requests: float, longest: float) -> float:
        """Seconds of so many requests, whose longest reply has so many tokens."""
        return self.seconds * max(1.0, requests / self.rows) * max(1, longest) / self.longest if requests else 0.0

    def length(self, limit: int) -> float:
        """Mean tokens of a reply of `limit` at most, where those that had not ended end as often as those that had."""
        if limit <= self.limit:
            return min(self.tokens, limit)
        if not self.ended:
            return limit
        each = self.tokens / self.ended
        return each * (1 - math.exp(-limit / each))

    def most(self, limit: int) -> float:
        """Tokens of the longest reply of `limit` at most."""
        return min(self.longest, limit) if self.ended >= 1 else limit


@dataclass(frozen=True)
class Training:
    """`fixed`: seconds before the first step, libraries' import and the writing of the model left out; `steps`: of the timed
    steps but the first; `tokens`: of a step."""

    fixed: float
    tokens: float
    steps: Sequence[float]

    def seconds(self, tokens: float) -> Span:
        """Of a training that reads `tokens` tokens; least and most: of the middle half of the steps."""
        low, *_, high = quantiles(self.steps, n=4) if len(self.steps) >= 4 else sorted(self.steps)
        return self.fixed + tokens / self.tokens * low, self.fixed + tokens / self.tokens * high

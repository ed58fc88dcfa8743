"""How long an engine and a trainer take, told from a few measured calls and steps (`flows.estimate.probe`).

A call of the engine takes, in seconds,

    passes * step + conversations * prompt + new tokens of all its rows * token

`passes`: decoding steps, as many as the longest reply has tokens, more where a call has more rows than fit side by side.
What a step costs whatever its rows is most of a small call, so few rows are no cheaper than the longest of them. The
first call of a process takes `first` more. A training takes `fixed` seconds and those of its steps, by their tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import Any

from tasks.core.asking.demand import Kind

Span = tuple[float, float]  # least and most seconds


@dataclass(frozen=True)
class Speed:
    """Seconds of requests of one kind, and what the measured replies were like: their mean and longest tokens, and the
    share that ended before `probed` tokens."""

    kind: Kind
    step: float
    prompt: float
    token: float
    spread: float  # the slower of two equal measurements took so many times as long
    tokens: float
    steps: float
    ended: float
    probed: int

    def seconds(self, requests: float, draws: int, calls: float, batch: int, length: float, longest: float) -> float:
        """Of `requests` replies of `length` tokens, `longest` at most, in `calls` calls of `batch` rows side by side."""
        passes = calls * max(1.0, requests / max(calls, 1e-9) / batch) * longest
        return passes * self.step + requests / draws * self.prompt + requests * length * self.token

    def length(self, limit: int) -> float:
        """Mean tokens of a reply of `limit` at most, where those that had not ended end as often as those that had."""
        if limit <= self.probed:
            return min(self.tokens, limit)
        if not self.ended:
            return limit
        each = self.tokens / self.ended
        return each * (1 - math.exp(-limit / each))

    def longest(self, limit: int) -> float:
        """Tokens of the longest reply of a call."""
        return min(self.steps, limit) if self.ended >= 1 else limit


def fitted(found: Mapping[str, Any]) -> Speed:
    """From a finding of the probe: a call of one conversation, one of all of them for one token, two for more."""
    rows, conversations, passes = found["rows"], found["conversations"], found["steps"]
    few, slow = found["draws"], max(found["full"])
    fast = min(found["full"])
    alone = found["short"] / max(1, found["short_steps"])
    together = max(0.0, fast - found["one"]) / max(1, passes - 1)
    token = max(0.0, together - alone) / (rows - few) if rows > few else 0.0
    step = max(0.0, alone - few * token)
    prompt = max(0.0, found["one"] - step - rows * token) / conversations
    return Speed(
        found["kind"], step, prompt, token, slow / fast, found["tokens"], passes, found["ended"], found["probed"]
    )


def alike(speeds: Sequence[Speed]) -> list[Speed]:
    """The speeds with one cost of a step, the least: it is the same pass of the model, whatever the kind."""
    least = min((speed.step for speed in speeds), default=0.0)
    return [replace(speed, step=least) for speed in speeds]


@dataclass(frozen=True)
class Training:
    """`fixed`: seconds before the first step and after the last, libraries' import left out; `steps`: of the measured
    steps but the first; `tokens`: of a step."""

    fixed: float
    tokens: float
    steps: Sequence[float]

    def seconds(self, tokens: float) -> Span:
        """Of a training that reads `tokens` tokens."""
        least, most = _quarters(self.steps)
        scale = tokens / self.tokens
        return self.fixed + scale * least, self.fixed + scale * most


def _quarters(values: Sequence[float]) -> Span:
    """The middle half of some values."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = quantiles(values, n=4)
    return low, high


def different(asked: int, distinct: int, half: int, number: float) -> float:
    """How many of `number` things differ, where of `asked` of them `distinct` did and of their first half `half`.

    The lower of two curves through these: a power law, and as many kinds, equally frequent, as make it likeliest. Within
    the sample the first is nearer; beyond it there are no new kinds without end."""
    if asked < 2 or distinct >= asked:
        return number
    if distinct <= half:
        return min(number, distinct)
    power = min(1.0, math.log2(distinct / half))
    kinds = _kinds(asked, distinct)
    return min(number, distinct * (number / asked) ** power, kinds * -math.expm1(-number / kinds))


def _kinds(asked: int, distinct: int) -> float:
    """Kinds of which `asked` draws show `distinct`, in the mean."""
    low, high = float(distinct), 1e3 * asked * asked
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        if -middle * math.expm1(-asked / middle) < distinct:
            low = middle
        else:
            high = middle
    return high

"""What was asked of models: requests, tokens and seconds, counted while a stage runs."""

from dataclasses import dataclass, fields

from tasks.core.asking.shards import Spent


@dataclass
class Tally:
    """What was asked since the last `take_tally`: requests (replies wanted), made (computed now, not stored before),
    tokens of the computed ones, and seconds the engine was busy. `distinct` and its tokens: the requests without
    repetition, stored or not, that is what would have been made with nothing stored. Of an endpoint also how often a
    request was tried again, and how many were given up."""

    requests: int = 0
    made: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    distinct: int = 0
    distinct_prompt_tokens: int = 0
    distinct_tokens: int = 0
    retries: int = 0
    quarantined: int = 0
    endpoint: bool = False

    def add(self, spent: Spent) -> None:
        """Counts what a shard took."""
        for name, amount in spent.items():
            setattr(self, name, getattr(self, name) + amount)

    def figures(self) -> dict[str, float]:
        """Names and values for `Context.spend`; empty where nothing was asked."""
        if not (self.requests or self.made):
            return {}
        return {
            "requests": self.requests,
            "requests_made": self.made,
            "requests_distinct": self.distinct,
            "engine_prompt_tokens": self.prompt_tokens,
            "engine_tokens": self.tokens,
            "engine_seconds": round(self.seconds, 3),
            "distinct_prompt_tokens": self.distinct_prompt_tokens,
            "distinct_tokens": self.distinct_tokens,
        } | ({"requests_retried": self.retries, "requests_quarantined": self.quarantined} if self.endpoint else {})

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

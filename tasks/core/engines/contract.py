"""What an engine is: rendered prompts in, completions out. Engines know nothing of tasks.

What is computed from all of the vocabulary at every place of a response is told by `score` (V tokens with probabilities
p(j) at temperature 1, in nats): `logprob`, of the response's own token; `self_certainty`, -(1/V) sum_j log(V p(j)), the
divergence of p from the uniform distribution (Kang and others 2025, Scalable Best-of-N Selection via Self-Certainty);
`entropy`, -sum_j p(j) log p(j); `margin`, the probability of the likeliest token less that of the second (no nats).

An engine is loaded from a model folder (`tasks.core.engines.load`). The chat template is applied
before it, by `LocalModel` (`tasks/core/asking/local.py`), which also cuts requests into content-keyed shards. An engine
behind an endpoint is asked request by request instead (`RemoteEngine`, `tasks/core/asking/endpoint.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

Statistic = Literal["logprob", "self_certainty", "entropy", "margin"]


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy. `seed` and the sample number decide the draw. `choices`: the reply is
    one of these texts, drawn token by token from what the model thinks of those that keep to one; empty: any reply."""

    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    choices: tuple[str, ...] = ()


def one_of(choices: Sequence[str], text: str) -> str | None:
    """Which of the choices a reply is; space around it, which detokenizers add, plays no part."""
    return next((choice for choice in choices if choice.strip() == text.strip()), None)


class Completion(NamedTuple):
    """One reply. `logprob`: sum over the new tokens (end of text included) in nats at temperature 1 (with `choices`
    among the tokens that keep to them), rounded to 4 decimals, None where an endpoint gives none; `tokens`: new tokens,
    end of text included; `prompt_tokens`: tokens of the prompt. A request that got no usable reply has `failed` and the reason: nothing
    may be read from it."""

    text: str
    prompt_tokens: int
    tokens: int
    logprob: float | None
    finish_reason: str  # stop | length | failed
    why: str | None = None  # it failed

    @property
    def failed(self) -> bool:
        return self.finish_reason == "failed"


def no_reply(why: str) -> Completion:
    """What stands for the reply of a request that failed."""
    return Completion("", 0, 0, None, "failed", why)


class Engine(Protocol):
    """Everything the blocks may ask of a language model."""

    def generate(self, prompts: Sequence[str], sampling: Sampling, first_draw: int = 0) -> list[list[Completion]]:
        """`sampling.n` completions per prompt, numbered from `first_draw`. Deterministic on CPU for the same
        prompts in the same call, sampling and thread count."""
        ...

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], statistic: Statistic = "logprob"
    ) -> list[list[float]]:
        """The statistic at every token of each response given its prompt, end of text included, rounded to
        4 decimals."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


@dataclass(frozen=True)
class Request:
    """One request to an engine that is asked one by one: draw number `draw` of a prompt, or with `response` the
    statistic of that response. `key` covers everything that the reply depends on."""

    key: str
    prompt: str
    sampling: Sampling
    draw: int = 0
    response: str | None = None
    statistic: Statistic = "logprob"


class RemoteEngine(Engine, Protocol):
    """An engine behind an endpoint. Its replies are kept raw, as they arrived, and read afterwards."""

    block: int  # requests that one call of `ask` should be given, so that it is busy
    quarantine_share: float  # of a call's requests that may fail

    def ask(
        self,
        requests: Sequence[Request],
        arrived: Callable[[Request, str], None],
        failed: Callable[[Request, str, str], None],
    ) -> int:
        """Asks for every request. `arrived(request, raw)`: the raw reply, at once and only if it can be read;
        `failed(request, reason, words)`: given up, with a short reason and the server's own words. Either may raise, which
        ends the call when the requests in flight have ended. Returns how many requests were tried again.

        Raises `BadInput` for a key, a model or a path that the server refuses, `StageFailed` where no server answers.
        """
        ...

    def read(self, request: Request, raw: str) -> Completion:
        """The reply that `raw` holds. Raises `Unusable`."""
        ...

    def read_scores(self, request: Request, raw: str) -> list[float]:
        """Log-probabilities of the request's response, as `score` gives them. Raises `Unusable`."""
        ...


class Unusable(ValueError):
    """A reply that cannot be read; the message is a short reason. `final`: asking again would not help."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@runtime_checkable
class Taking(Engine, Protocol):
    """An engine so large that a process has one at a time, and that can serve another model without being built anew."""

    def take(self, folder: Path) -> bool:
        """Serves the model of `folder` from now on, if it can; otherwise False, and it has to be closed for another.
        After an error it must be closed."""
        ...

    def rest(self) -> bool:
        """Gives the memory back until `take` is called, if it can; otherwise False, and it has to be closed."""
        ...


@runtime_checkable
class Telling(Engine, Protocol):
    """An engine that tells, often, how many of a call's replies or scores it has."""

    tell_progress: Callable[[int], None] | None

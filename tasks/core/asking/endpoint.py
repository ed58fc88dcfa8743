"""A model behind an endpoint: asked request by request, and every reply paid for once.

A reply of an endpoint is paid for when it has arrived, so each is a piece of work of its own: it goes raw into the
request log (`tasks.core.asking.log`) at once, under a key that covers the rendered prompt, the model's digest, the
endpoint's identity (`engine.endpoint`), the sampling options, the seed and the number of the draw. Other requests play
no part: more prompts or more samples ask only what is new, and a kill loses only the requests in flight. Requests that
the log does not hold are asked in blocks, each a job of `Host.map_shards`; a block whose replies have all arrived since
asks nothing.

A request that gets no usable reply within its retries is *quarantined*: it stands as a completion that has `failed`, with
the reason, and since nothing is logged for it, it is asked again the next time. More of them in one call than
`serving.openai.quarantine_share` allows fail the stage.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from tasks.core import digests
from tasks.core.asking.log import FILE, RequestLog
from tasks.core.asking.model import Base
from tasks.core.asking.shards import Spent
from tasks.core.engines.contract import Completion, RemoteEngine, Request, Sampling, Statistic, Unusable, no_reply
from tasks.core.errors import StageFailed
from tasks.core.family import Messages

FORMAT = 1  # of the keys and of what is posted; raise it when their meaning changes
UNSAMPLED = Sampling(1, 0.0, 1.0, 1, 0)  # of a request for scores
WORDS = 200  # characters of a server's own words in a message

Result = TypeVar("Result")
Read = Callable[[Request, str], Result]
log = logging.getLogger(__name__)


def _options(sampling: Sampling) -> dict[str, Any]:
    """The options as they stand in a key; without choices as before there were any."""
    return {name: value for name, value in asdict(sampling).items() if value != ()}


@dataclass
class EndpointModel(Base):
    """One model that servers have. Made by `tasks.core.asking.opener.Opener`; see `Model` for its calls."""

    _endpoint: RemoteEngine | None = None

    def __post_init__(self) -> None:
        self.tally.endpoint = True

    def generate(
        self, messages: Sequence[Messages | str], sampling: Sampling, what: str, about: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """As `Model.generate` says; greedy draws are one request. Nothing depends on `about` here."""
        prompts = self.render(messages)
        greedy = sampling.temperature == 0
        draws = range(1 if greedy else sampling.n)
        top_p, seed = (1.0, 0) if greedy else (sampling.top_p, sampling.seed)
        single = Sampling(1, sampling.temperature, top_p, sampling.max_new_tokens, seed, sampling.choices)
        base = digests.of_value([FORMAT, "generate", self.identity(), _options(single)])
        requests = {
            prompt: [Request(digests.of_value([base, prompt, draw]), prompt, single, draw) for draw in draws]
            for prompt in dict.fromkeys(prompts)
        }
        call = _Call(self, [request for several in requests.values() for request in several], what)
        replies = call.replies(call.engine.read)
        self.tally.requests += len(prompts) * sampling.n

        def reply(request: Request) -> Completion:
            return replies[request.key] if request.key in replies else no_reply(call.failed[request.key])

        found = {
            prompt: [reply(request) for request in several] * (sampling.n if greedy else 1)
            for prompt, several in requests.items()
        }
        self.tally.add(
            {
                "distinct": sum(len(several) for several in requests.values()),
                "distinct_prompt_tokens": sum(reply.prompt_tokens for reply in replies.values()),
                "distinct_tokens": sum(reply.tokens for reply in replies.values()),
            }
        )
        return [found[prompt] for prompt in prompts]

    def score(
        self,
        messages: Sequence[Messages | str],
        responses: Sequence[str],
        what: str,
        statistic: Statistic = "logprob",
    ) -> list[list[float]]:
        """As `Model.score` says. Raises `StageFailed` if any score cannot be had: one that is missing has no stand-in."""
        pairs = list(zip(self.render(messages), responses, strict=True))
        base = digests.of_value([FORMAT, "score", self.identity(), *([] if statistic == "logprob" else [statistic])])
        requests = {
            pair: Request(digests.of_value([base, *pair]), pair[0], UNSAMPLED, response=pair[1], statistic=statistic)
            for pair in dict.fromkeys(pairs)
        }
        call = _Call(self, list(requests.values()), what, strict=True)
        scores = call.replies(call.engine.read_scores)
        self.tally.add({"requests": len(pairs), "distinct": len(requests)})
        return [scores[requests[pair].key] for pair in pairs]

    def identity(self) -> dict[str, Any]:
        """Everything but the requests that decides what the server replies."""
        return {"model": self.digest, "name": self.engine_options["name"], "endpoint": self.engine_options["endpoint"]}

    def endpoint(self) -> RemoteEngine:
        """The engine. Nothing is sent yet."""
        if self._endpoint is None:
            from tasks.core import engines
            from tasks.core.models import folders

            options = self.engine_options
            name = folders.followed(self.host.root, self.pointer).path
            self._endpoint = engines.connect(
                options["name"], name, self.folder, options["endpoint"], self.host.serving.get(options["name"])
            )
        return self._endpoint

    def close(self) -> None:
        """Nothing is held here."""


@dataclass(frozen=True)
class Block:
    """Requests that are asked together. Done when the log holds them all."""

    key: str
    requests: Sequence[Request]
    log: RequestLog
    ask: Callable[[Sequence[Request]], Spent]

    def valid(self) -> bool:
        return not self.log.missing([request.key for request in self.requests])

    def run(self) -> Spent:
        missing = set(self.log.missing([request.key for request in self.requests]))
        return self.ask([request for request in self.requests if request.key in missing])


@dataclass
class _Call:
    """The requests of one call, from the log or from the engine. `strict`: no request may fail."""

    model: EndpointModel
    requests: Sequence[Request]
    what: str
    strict: bool = False
    failed: dict[str, str] = field(default_factory=dict)  # key -> reason
    words: str = ""  # of the server, about the last request that failed
    done: int = 0
    total: int = 0  # requests to ask

    def __post_init__(self) -> None:
        self.engine: RemoteEngine = self.model.endpoint()

    def replies(self, read: Read[Result]) -> dict[str, Result]:
        """By key, what every request's reply says; requests in `failed` are left out."""
        with closing(RequestLog(self.model.scratch / FILE)) as stored:
            found = dict(self._read(stored, self.requests, read))
            missing = [request for request in self.requests if request.key not in found]
            if missing:
                self._ask(stored, missing, read)
                found |= dict(self._read(stored, missing, read))
        gone = [request.key for request in missing if request.key not in found and request.key not in self.failed]
        self.failed |= dict.fromkeys(gone, "lost")  # another process emptied the log meanwhile
        self._report()
        return found

    def _read(
        self, stored: RequestLog, requests: Sequence[Request], read: Read[Result]
    ) -> Iterator[tuple[str, Result]]:
        by_key = {request.key: request for request in requests}
        unreadable = []
        for key, raw in stored.read(list(by_key)):
            try:
                yield key, read(by_key[key], raw)
            except Unusable:
                unreadable.append(key)
        stored.forget(unreadable)

    def _ask(self, stored: RequestLog, requests: Sequence[Request], read: Read[Result]) -> None:
        spent = Counter[str]()

        def arrived(request: Request, raw: str) -> None:
            stored.write(request.key, raw)
            spent["made"] += 1
            if request.response is None:
                reply = self.engine.read(request, raw)
                spent.update(tokens=reply.tokens, prompt_tokens=reply.prompt_tokens)
            self._progress()

        def ask(several: Sequence[Request]) -> Spent:
            before, started = Counter(spent), time.perf_counter()
            try:
                retries = self.engine.ask(several, arrived, self._fail)
            except BaseException:
                self.model.tally.add({**(spent - before), "seconds": time.perf_counter() - started})
                raise
            return {**(spent - before), "retries": retries, "seconds": time.perf_counter() - started}

        self.total = len(requests)
        self.model.host.progress(self.what, 0, self.total)
        size = self.engine.block
        blocks = [requests[start : start + size] for start in range(0, len(requests), size)]
        self.model.host.map_shards(
            [Block(digests.of_value([request.key for request in block]), block, stored, ask) for block in blocks],
            self.model.tally.add,
        )

    def _fail(self, request: Request, reason: str, words: str) -> None:
        self.failed[request.key], self.words = reason, words or self.words
        allowed = 0 if self.strict else int(self.engine.quarantine_share * len(self.requests))
        if len(self.failed) > allowed:
            told = f"; the server's own words: {self.words[:WORDS]}" if self.words else ""
            limit = "this needs all of them" if self.strict else (
                f"serving.openai.quarantine_share ({self.engine.quarantine_share:g}) allows {allowed}"
            )  # fmt: skip
            raise StageFailed(
                f"{self.what}: {len(self.failed):,} of {len(self.requests):,} requests got no usable reply "
                f"({self._reasons()}), and {limit}{told}; every reply that arrived is kept, and running it again asks only for the others"
            )
        self._progress()

    def _progress(self) -> None:
        self.done += 1
        self.model.host.progress(self.what, min(self.done, self.total), self.total)

    def _reasons(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in Counter(self.failed.values()).most_common())

    def _report(self) -> None:
        if self.failed:
            self.model.tally.quarantined += len(self.failed)
            log.warning(
                "%s: %s of %s requests quarantined (%s); they are asked again when the stage runs again",
                self.what, f"{len(self.failed):,}", f"{len(self.requests):,}", self._reasons(),
            )  # fmt: skip

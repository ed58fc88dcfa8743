"""Row by row: how an engine behind an endpoint is asked, and what is paid for once.

A reply of an endpoint is paid for when it has arrived, so each is a piece of work of its own: it goes raw into the
request log (`tasks.core.asking.log`) at once, under a key that covers the rendered prompt, the model's digest, the
endpoint's identity (`engine.endpoint`), the sampling options, the seed and the number of the draw. Other rows play no
part: more prompts or more samples ask only what is new, and a kill loses only the requests in flight. Rows that
the log does not hold are asked in blocks, each a job of `Opener.map_shards`; a block whose rows have all arrived since
asks nothing.

A request that gets no usable reply within its retries is *quarantined*: it stands as a completion that has `failed`, with
the reason, and since nothing is logged for it, it is asked again the next time. More of them in one call than
`serving.openai.quarantine_share` allows fail the stage.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.core import digests
from tasks.core.asking.log import FILE, RequestLog
from tasks.core.asking.shards import Spent
from tasks.core.engines.base import Completion, Row, RowEngine, Sampling, Statistic, Unusable, no_reply
from tasks.core.errors import StageFailed

if TYPE_CHECKING:
    from tasks.core.asking.local import Asker

FORMAT = 1  # of the keys and of what is posted; raise it when their meaning changes
UNSAMPLED = Sampling(1, 0.0, 1.0, 1, 0)  # of a request for scores
WORDS = 200  # characters of a server's own words in a message

Result = TypeVar("Result")
Read = Callable[[Row, str], Result]


def generate(asker: "Asker", prompts: Sequence[str], sampling: Sampling, what: str) -> list[list[Completion]]:
    """`sampling.n` completions a prompt, in order; equal prompts are asked once. Greedy draws are one request."""
    greedy = sampling.temperature == 0
    draws = range(1 if greedy else sampling.n)
    top_p, seed = (1.0, 0) if greedy else (sampling.top_p, sampling.seed)
    single = Sampling(1, sampling.temperature, top_p, sampling.max_new_tokens, seed, sampling.choices)
    base = digests.of_value([FORMAT, "generate", asker.identity(), _options(single)])
    rows = {
        prompt: [Row(digests.of_value([base, prompt, draw]), prompt, single, draw) for draw in draws]
        for prompt in dict.fromkeys(prompts)
    }
    call = _Call(asker, [row for several in rows.values() for row in several], what)
    replies = call.replies(call.engine.read)
    asker.usage.requests += len(prompts) * sampling.n

    def reply(row: Row) -> Completion:
        return replies[row.key] if row.key in replies else no_reply(call.failed[row.key])

    found = {
        prompt: [reply(row) for row in several] * (sampling.n if greedy else 1) for prompt, several in rows.items()
    }
    asker.usage.add(
        {
            "distinct": sum(len(several) for several in rows.values()),
            "distinct_prompt_tokens": sum(reply.prompt_tokens for reply in replies.values()),
            "distinct_tokens": sum(reply.tokens for reply in replies.values()),
        }
    )
    return [found[prompt] for prompt in prompts]


def _options(sampling: Sampling) -> dict[str, Any]:
    """The options as they stand in a key; without choices as before there were any."""
    return {name: value for name, value in asdict(sampling).items() if value != ()}


def score(
    asker: "Asker", pairs: Sequence[tuple[str, str]], what: str, statistic: Statistic = "logprob"
) -> list[list[float]]:
    """The statistic of each pair's response given its prompt. Raises `BadInput` for one that the engine cannot give,
    `StageFailed` if any score cannot be had: one that is missing has no stand-in."""
    base = digests.of_value([FORMAT, "score", asker.identity(), *([] if statistic == "logprob" else [statistic])])
    rows = {
        pair: Row(digests.of_value([base, *pair]), pair[0], UNSAMPLED, response=pair[1], statistic=statistic)
        for pair in dict.fromkeys(pairs)
    }
    call = _Call(asker, list(rows.values()), what, strict=True)
    scores = call.replies(call.engine.read_scores)
    asker.usage.add({"requests": len(pairs), "distinct": len(rows)})
    return [scores[rows[pair].key] for pair in pairs]


@dataclass(frozen=True)
class Block:
    """Rows that are asked together. Done when the log holds them all."""

    key: str
    rows: Sequence[Row]
    log: RequestLog
    ask: Callable[[Sequence[Row]], Spent]

    def valid(self) -> bool:
        return not self.log.missing([row.key for row in self.rows])

    def run(self) -> Spent:
        missing = set(self.log.missing([row.key for row in self.rows]))
        return self.ask([row for row in self.rows if row.key in missing])


@dataclass
class _Call:
    """The requests of one call, from the log or from the engine. `strict`: no request may fail."""

    asker: "Asker"
    rows: Sequence[Row]
    what: str
    strict: bool = False
    failed: dict[str, str] = field(default_factory=dict)  # key -> reason
    words: str = ""  # of the server, about the last request that failed
    done: int = 0
    total: int = 0  # rows to ask

    def __post_init__(self) -> None:
        self.engine: RowEngine = self.asker.endpoint()

    def replies(self, read: Read[Result]) -> dict[str, Result]:
        """By key, what every row's reply says; rows in `failed` are left out."""
        with closing(RequestLog(self.asker.scratch / FILE)) as log:
            found = dict(self._read(log, self.rows, read))
            missing = [row for row in self.rows if row.key not in found]
            if missing:
                self._ask(log, missing, read)
                found |= dict(self._read(log, missing, read))
        gone = [row.key for row in missing if row.key not in found and row.key not in self.failed]
        self.failed |= dict.fromkeys(gone, "lost")  # another process emptied the log meanwhile
        self._report()
        return found

    def _read(self, log: RequestLog, rows: Sequence[Row], read: Read[Result]) -> Iterator[tuple[str, Result]]:
        by_key = {row.key: row for row in rows}
        unreadable = []
        for key, raw in log.read(list(by_key)):
            try:
                yield key, read(by_key[key], raw)
            except Unusable:
                unreadable.append(key)
        log.forget(unreadable)

    def _ask(self, log: RequestLog, rows: Sequence[Row], read: Read[Result]) -> None:
        spent = Counter[str]()

        def arrived(row: Row, raw: str) -> None:
            log.write(row.key, raw)
            spent["made"] += 1
            if row.response is None:
                reply = self.engine.read(row, raw)
                spent.update(tokens=reply.tokens, prompt_tokens=reply.prompt_tokens)
            self._progress()

        def ask(several: Sequence[Row]) -> Spent:
            before, started = Counter(spent), time.perf_counter()
            try:
                retries = self.engine.ask(several, arrived, self._fail)
            except BaseException:
                self.asker.usage.add({**(spent - before), "seconds": time.perf_counter() - started})
                raise
            return {**(spent - before), "retries": retries, "seconds": time.perf_counter() - started}

        self.total = len(rows)
        self.asker.opener.progress(self.what, 0, self.total)
        size = self.engine.block
        blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
        self.asker.opener.map_shards(
            [Block(digests.of_value([row.key for row in block]), block, log, ask) for block in blocks],
            self.asker.usage.add,
        )

    def _fail(self, row: Row, reason: str, words: str) -> None:
        self.failed[row.key], self.words = reason, words or self.words
        allowed = 0 if self.strict else int(self.engine.quarantine_share * len(self.rows))
        if len(self.failed) > allowed:
            told = f"; the server's own words: {self.words[:WORDS]}" if self.words else ""
            limit = "this needs all of them" if self.strict else (
                f"serving.openai.quarantine_share ({self.engine.quarantine_share:g}) allows {allowed}"
            )  # fmt: skip
            raise StageFailed(
                f"{self.what}: {len(self.failed):,} of {len(self.rows):,} requests got no usable reply "
                f"({self._reasons()}), and {limit}{told}; every reply that arrived is kept, and running it again asks only for the others"
            )
        self._progress()

    def _progress(self) -> None:
        self.done += 1
        self.asker.opener.progress(self.what, min(self.done, self.total), self.total)

    def _reasons(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in Counter(self.failed.values()).most_common())

    def _report(self) -> None:
        if self.failed:
            self.asker.usage.quarantined += len(self.failed)
            print(
                f"{self.what}: {len(self.failed):,} of {len(self.rows):,} requests quarantined ({self._reasons()}); "
                "they are asked again when the stage runs again",
                file=sys.stderr,
            )

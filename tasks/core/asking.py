"""How blocks ask a model: chat template, then content-keyed shards, then the engine.

`Opener` turns a pointer into an `Asker`; the same opener kept over several stages loads each model once.
The engine is loaded when the first shard without a stored reply is computed, so a stage whose replies
are all stored needs no model. Replies are stored raw: parsing them anew asks for nothing again.

Requests are cut into shards in the order in which they are given, the order of the prompts: prompts that are added at
the end are new shards, and all judgements of one prompt's answers fall into few.

A shard's key covers the rendered prompts (and so templates, system prompts and chat template), the
model's digest (weights, tokenizer, configuration), the engine with its version, precision, threads and
batch size, and the sampling options with seed and sample numbers.

Engines behind endpoints are asked row by row, with a log in place of shards: see `tasks.core.rows`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import digests, rows
from tasks.core.context import Pointer, Progress
from tasks.core.engine import Completion, Engine, RowEngine, Sampling
from tasks.core.engines import ENDPOINTS
from tasks.core.errors import StageFailed
from tasks.core.family import Messages
from tasks.core.shards import MapShards, Shard, cut, run_here

FORMAT = 1  # of the stored replies; raise it when their meaning changes
PACKAGES = {"transformers": ("transformers", "torch")}  # whose versions a reply depends on


@dataclass
class Usage:
    """What was asked since the last `take`: requests (replies wanted), made (computed now, not stored before),
    tokens of the computed ones, seconds the engine was busy; of an endpoint also how often a request was tried again,
    and how many were given up."""

    requests: int = 0
    made: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    retries: int = 0
    quarantined: int = 0
    endpoint: bool = False

    def figures(self) -> dict[str, float]:
        """Names and values for `Context.log`."""
        figures: dict[str, float] = {
            "requests": self.requests,
            "requests_made": self.made,
            "engine_prompt_tokens": self.prompt_tokens,
            "engine_tokens": self.tokens,
            "engine_seconds": round(self.seconds, 3),
        }
        if self.seconds:
            figures["engine_tokens_per_second"] = round(self.tokens / self.seconds, 1)
        if self.endpoint:
            figures |= {"requests_retried": self.retries, "requests_quarantined": self.quarantined}
        return figures


@dataclass
class Asker:
    """One model, ready to be asked. Made by `Opener`."""

    pointer: Pointer
    folder: Path
    engine_options: Mapping[str, Any]
    scratch: Path
    opener: "Opener"
    usage: Usage = field(default_factory=Usage)
    _engine: Engine | None = None
    _endpoint: RowEngine | None = None
    _tokenizer: Any = None

    def __post_init__(self) -> None:
        self.usage.endpoint = self.row_by_row

    @property
    def row_by_row(self) -> bool:
        """Whether the engine is one behind an endpoint."""
        return self.engine_options["name"] in ENDPOINTS

    @property
    def digest(self) -> str:
        return self.pointer.digest

    def generate(
        self, messages: Sequence[Messages], sampling: Sampling, what: str, about: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` replies for each conversation, in order. Equal conversations are asked once and share
        their replies. `what` names the work in progress bars. `about`: the draw of the candidate that each conversation
        is about, so that judging more samples of a prompt leaves the shards of the first ones as they are."""
        prompts = self.render(messages)
        if self.row_by_row:
            return rows.generate(self, prompts, sampling, what)
        step = self.engine_options["draws_per_shard"]
        unique, groups = _grouped(prompts, [draw // step for draw in about] if about else [0] * len(prompts))
        shards: list[tuple[range, Shard]] = []
        for first, group in product(range(0, sampling.n, step), groups):
            draws = min(step, sampling.n - first)
            size = max(1, self.engine_options["rows_per_shard"] // draws)
            for inside in cut(unique[group.start : group.stop], size):
                block = range(group.start + inside.start, group.start + inside.stop)
                chosen = unique[block.start : block.stop]
                key = digests.of_value(
                    [FORMAT, "generate", self.identity(), chosen, [sampling.temperature, sampling.top_p,
                     sampling.max_new_tokens, sampling.seed], [first, draws]]
                )  # fmt: skip
                part = Sampling(draws, sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.seed)
                shards.append((block, self._shard(key, partial(self._generate, chosen, part, first))))
        self._run([shard for _, shard in shards], what)
        replies: list[list[Completion]] = [[] for _ in unique]
        for block, shard in shards:
            for row in shard.table().iter_rows():
                replies[block.start + row[0]].append(Completion(*row[1:]))
        self.usage.requests += len(prompts) * sampling.n
        place = {prompt: index for index, prompt in enumerate(unique)}
        return [replies[place[prompt]] for prompt in prompts]

    def score(self, messages: Sequence[Messages], responses: Sequence[str], what: str) -> list[list[float]]:
        """Log-probability in nats of every token of each response (end of text included)."""
        pairs = list(zip(self.render(messages), responses, strict=True))
        if self.row_by_row:
            return rows.score(self, pairs, what)
        unique = list(dict.fromkeys(pairs))
        shards = []
        for block in cut(["\x00".join(pair) for pair in unique], self.engine_options["rows_per_shard"]):
            asked, told = (list(texts) for texts in zip(*unique[block.start : block.stop], strict=True))
            key = digests.of_value([FORMAT, "score", self.identity(), asked, told])
            shards.append(self._shard(key, partial(self._score, asked, told)))
        self._run(shards, what)
        self.usage.requests += len(pairs)
        scores = [row for shard in shards for row in shard.table()["logprobs"].to_list()]
        known = dict(zip(unique, scores, strict=True))
        return [known[pair] for pair in pairs]

    def render(self, messages: Sequence[Messages]) -> list[str]:
        """The text the model reads, with the chat template and the opening of its reply; for a server that renders
        messages itself, the messages as JSON."""
        from tasks.core import models

        if _server_renders(self.engine_options):
            return [json.dumps(several, ensure_ascii=False, sort_keys=True) for several in messages]
        if self._tokenizer is None:
            self._tokenizer = models.load_tokenizer(self.folder)
        return [models.render(self._tokenizer, conversation) for conversation in messages]

    def identity(self) -> dict[str, Any]:
        """Everything but the requests that decides what the engine replies."""
        options = self.engine_options
        if self.row_by_row:
            return {"model": self.digest, "name": options["name"], "endpoint": options["endpoint"]}
        return {
            "model": self.digest,
            **{name: options[name] for name in ("name", "precision", "threads", "batch_size")},
            "versions": [version(package) for package in PACKAGES.get(options["name"], ())],
        }

    def take_usage(self) -> dict[str, float]:
        """Figures since the last call, which starts the count anew."""
        figures, self.usage = self.usage.figures(), Usage(endpoint=self.row_by_row)
        return figures

    def close(self) -> None:
        """Gives the engine's memory back; the next request loads it again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def engine(self) -> Engine:
        """The loaded engine. Raises `StageFailed` if the folder is not the model that the pointer names."""
        if self._engine is None:
            from tasks.core import engines, models

            found = models.digest(self.folder)
            if found != self.digest:
                raise StageFailed(
                    f"{self.pointer.path} holds another model (digest {found}) than the one asked for ({self.digest}); "
                    "restore it with `dvc checkout`, or rerun the stage that made it"
                )
            self.opener.make_room(self)
            options = self.engine_options
            self._engine = engines.load(
                options["name"],
                self.folder,
                options["precision"],
                options["threads"],
                options["batch_size"],
                self.opener.serving.get(options["name"]),
            )
        return self._engine

    def endpoint(self) -> RowEngine:
        """The engine where it is one behind an endpoint. Nothing is sent yet."""
        if self._endpoint is None:
            from tasks.core import engines, models

            options = self.engine_options
            name = models.followed(self.opener.root, self.pointer).path
            self._endpoint = engines.connect(
                options["name"], name, self.folder, options["endpoint"], self.opener.serving.get(options["name"])
            )
        return self._endpoint

    def _shard(self, key: str, compute: Any) -> Shard:
        return Shard(key, self.scratch / "shards" / key[:2] / f"{key}.parquet", compute)

    def _run(self, shards: Sequence[Shard], what: str) -> None:
        done = 0

        def counted(shard: Shard) -> pl.DataFrame:
            nonlocal done
            table = shard.compute()
            done += 1
            self.opener.progress(what, done, len(todo))
            return table

        todo = [shard for shard in shards if not shard.valid()]
        self.opener.progress(what, 0, len(todo))
        self.opener.map_shards([Shard(s.key, s.path, partial(counted, s)) for s in todo])

    def _generate(self, prompts: list[str], sampling: Sampling, first: int) -> pl.DataFrame:
        engine = self.engine()
        started = time.perf_counter()
        replies = engine.generate(prompts, sampling, first)
        self.usage.seconds += time.perf_counter() - started
        stored = len(REPLIES) - 1
        flat = [(index, *reply[:stored]) for index, several in enumerate(replies) for reply in several]
        table = pl.DataFrame(flat, schema=REPLIES, orient="row")
        self.usage.made += table.height
        self.usage.tokens += int(table["tokens"].sum())
        self.usage.prompt_tokens += int(table["prompt_tokens"].sum())
        return table

    def _score(self, prompts: list[str], responses: list[str]) -> pl.DataFrame:
        engine = self.engine()
        started = time.perf_counter()
        scores = engine.score(prompts, responses)
        self.usage.seconds += time.perf_counter() - started
        self.usage.made += len(scores)
        return pl.DataFrame({"logprobs": scores}, schema={"logprobs": pl.List(pl.Float64)})


def _server_renders(engine_options: Mapping[str, Any]) -> bool:
    return engine_options["name"] in ENDPOINTS and engine_options["endpoint"]["protocol"] == "chat"


def _grouped(prompts: Sequence[str], numbers: Sequence[int]) -> tuple[list[str], list[range]]:
    """Different prompts by the lowest of their numbers, else in the order given, and where each number's prompts stand."""
    lowest: dict[str, int] = {}
    for prompt, number in zip(prompts, numbers, strict=True):
        lowest[prompt] = min(number, lowest.get(prompt, number))
    unique = sorted(lowest, key=lowest.__getitem__)
    starts = [i for i, prompt in enumerate(unique) if i == 0 or lowest[prompt] != lowest[unique[i - 1]]]
    return unique, [range(*ends) for ends in pairwise([*starts, len(unique)])]


REPLIES = pl.Schema(
    {
        "index": pl.Int32,
        "text": pl.String,
        "prompt_tokens": pl.Int32,
        "tokens": pl.Int32,
        "logprob": pl.Float64,
        "finish_reason": pl.String,
    }
)


@dataclass
class Opener:
    """Opens models by pointer. Keeps at most `keep` engines loaded, the least recently opened leaves first."""

    root: Path
    engine_options: Mapping[str, Any]
    scratch: Path
    map_shards: MapShards = run_here
    progress: Progress = lambda what, done, total: None
    keep: int = 2
    serving: Mapping[str, Any] = field(default_factory=dict)  # the section, by engine
    _askers: dict[str, Asker] = field(default_factory=dict)

    def __call__(self, pointer: Pointer) -> Asker:
        from tasks.core import models

        if pointer.digest not in self._askers:
            remote = _server_renders(self.engine_options)  # then nothing of the folder is needed here
            folder = self.root / pointer.path if remote else models.resolve(self.root, pointer)
            self._askers[pointer.digest] = Asker(pointer, folder, self.engine_options, self.scratch, self)
        asker = self._askers.pop(pointer.digest)
        self._askers[pointer.digest] = asker
        return asker

    def make_room(self, wanted: Asker) -> None:
        """Closes engines so that one more fits."""
        loaded = [asker for asker in self._askers.values() if asker._engine is not None and asker is not wanted]
        for asker in loaded[: max(0, len(loaded) + 1 - self.keep)]:
            asker.close()

    def close(self) -> None:
        for asker in self._askers.values():
            asker.close()

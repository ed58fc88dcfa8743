"""Work that Ray's workers can do in tests: slow, noted in a file, and broken on demand."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.asking.shards import Shard, Spent
from tasks.core.errors import StageFailed


def note(folder: Path, *words: object) -> None:
    """Adds a line to the log that all workers share."""
    with (folder / "log").open("a") as log:
        log.write(" ".join(map(str, (os.getpid(), *words))) + "\n")


def noted(folder: Path) -> list[list[str]]:
    """The log's lines as words; the first is the worker's process number."""
    return [line.split() for line in (folder / "log").read_text().splitlines()] if (folder / "log").exists() else []


@dataclass(frozen=True)
class Slow:
    """Takes its time, then writes a file; or fails, or dies, or writes none."""

    key: str
    folder: Path
    seconds: float = 0.0
    fault: str = ""

    def valid(self) -> bool:
        return (self.folder / self.key).is_file()

    def run(self) -> Spent:
        note(self.folder, self.key)
        time.sleep(self.seconds)
        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "raises":
            raise StageFailed("the model computes something that is no number")
        if self.fault != "writes nothing":
            (self.folder / self.key).touch()
        return {"made": 1, "seconds": self.seconds}


@dataclass(frozen=True)
class Watched:
    """A shard of a real model that notes whether its worker had the model loaded before."""

    shard: Any
    folder: Path

    @property
    def key(self) -> str:
        return str(self.shard.key)

    def valid(self) -> bool:
        return bool(self.shard.valid())

    def run(self) -> Spent:
        assert isinstance(self.shard, Shard)
        note(self.folder, self.shard.compute.func.__self__._engine is not None)  # type: ignore[attr-defined]
        return self.shard.run()

"""Which models are open: from a pointer to an `Asker`, and which engines are in memory meanwhile.

The same `Opener` kept over several stages loads each model once. At most a few engines are loaded; those that can serve
another model (`Taking`) do so in place, and those that can rest give their memory back while training needs it.

A shard may be computed by another process: an asker is pickled as what is needed to open its model (`asker_here`), and
unpickled as the asker of that process, which loads the model once and keeps it.
"""

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.core import digests
from tasks.core.asking.local import Asker
from tasks.core.asking.model import Progress
from tasks.core.asking.shards import MapShards, run_here
from tasks.core.asking.tally import Usage
from tasks.core.engines import server_renders
from tasks.core.engines.base import Engine, Taking
from tasks.core.errors import StageFailed
from tasks.core.models.pointer import Pointer


@dataclass
class Opener:
    """Opens models by pointer. Keeps at most `keep` engines loaded, fewer where memory does not suffice; the least
    recently opened leaves first."""

    root: Path
    engine_options: Mapping[str, Any]
    scratch: Path
    map_shards: MapShards = run_here
    progress: Progress = lambda what, done, total: None
    keep: int = 2
    serving: Mapping[str, Any] = field(default_factory=dict)  # the section, by engine
    _askers: dict[str, Asker] = field(default_factory=dict)
    _resting: list[Taking] = field(default_factory=list)  # engines that hold no memory until they take a model

    def __call__(self, pointer: Pointer) -> Asker:
        from tasks.core.models import folders

        if pointer.digest not in self._askers:
            remote = server_renders(self.engine_options)  # then nothing of the folder is needed here
            folder = self.root / pointer.path if remote else folders.resolve(self.root, pointer)
            self._askers[pointer.digest] = Asker(pointer, folder, self.engine_options, self.scratch, self)
        asker = self._askers.pop(pointer.digest)
        self._askers[pointer.digest] = asker
        return asker

    def make_room(self, wanted: Asker) -> Engine | None:
        """Closes engines so that one more fits. Or gives one that has taken the wanted model in place of its own."""
        for asker in self.loaded(wanted):
            if isinstance(engine := asker._engine, Taking):
                asker._engine = None
                self._resting.append(engine)
        while self._resting:
            engine = self._resting.pop()
            with contextlib.ExitStack() as unless_taken:
                unless_taken.callback(engine.close)
                if engine.take(wanted.folder):
                    unless_taken.pop_all()
                    return engine
        loaded = self.loaded(wanted)
        for asker in loaded[: max(0, len(loaded) + 1 - self.keep)]:
            asker.close()
        return None

    def loaded(self, wanted: Asker) -> list[Asker]:
        """Those beside the wanted one whose engines are loaded, the least recently opened first."""
        return [asker for asker in self._askers.values() if asker._engine is not None and asker is not wanted]

    def take_usage(self) -> Usage:
        """What all its models used since the last call."""
        return sum((asker.take_usage() for asker in self._askers.values()), Usage())

    def release(self) -> None:
        """Gives all engines' memory back; those that can rest go on from there when a model is asked again."""
        for asker in self._askers.values():
            engine = asker._engine
            if isinstance(engine, Taking) and engine.rest():
                asker._engine = None
                self._resting.append(engine)
            else:
                asker.close()

    def close(self) -> None:
        for asker in self._askers.values():
            asker.close()
        while self._resting:
            self._resting.pop().close()


_openers: dict[str, Opener] = {}  # of a process that computes shards for another one


def asker_here(
    root: Path,
    engine_options: Mapping[str, Any],
    scratch: Path,
    serving: Mapping[str, Any],
    pointer: Pointer,
    identity: Mapping[str, Any],
) -> Asker:
    """The asker of this process for a model that another process asks. Raises `StageFailed` where the replies would
    not be those that the other process stores them as."""
    how = digests.of_value([str(root), engine_options, str(scratch), serving])
    if how not in _openers:
        for other in _openers.values():
            other.close()
        _openers.clear()
        _openers[how] = Opener(root, engine_options, scratch, serving=serving)
    asker = _openers[how](pointer)
    if (found := asker.identity()) != identity:
        raise StageFailed(
            f"the worker on {platform.node()} would reply as {found}, but {dict(identity)} is asked for; give all "
            "machines the same versions of the packages"
        )
    return asker

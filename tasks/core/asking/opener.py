"""Which models are open: from a pointer to a `Model`, and which engines are in memory meanwhile.

The same `Opener` kept over several stages loads each model once. At most a few engines are loaded; those that can serve
another model (`Taking`) do so in place, and those that can rest give their memory back while training needs it.

A shard may be computed by another process: a local model is pickled as what is needed to open it (`opened_here`), and
unpickled as the model of that process, which loads it once and keeps it.
"""

import contextlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.core import digests
from tasks.core.asking.endpoint import EndpointModel
from tasks.core.asking.local import LocalModel
from tasks.core.asking.model import Progress
from tasks.core.asking.shards import MapShards, run_here
from tasks.core.asking.tally import Tally
from tasks.core.engines import ENDPOINTS, server_renders
from tasks.core.engines.contract import Engine, Taking
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
    _models: dict[str, LocalModel | EndpointModel] = field(default_factory=dict)
    _resting: list[Taking] = field(default_factory=list)  # engines that hold no memory until they take a model

    def __call__(self, pointer: Pointer) -> LocalModel | EndpointModel:
        from tasks.core.models import folders

        if pointer.digest not in self._models:
            remote = server_renders(self.engine_options)  # then nothing of the folder is needed here
            folder = self.root / pointer.path if remote else folders.resolve(self.root, pointer)
            kind = EndpointModel if self.engine_options["name"] in ENDPOINTS else LocalModel
            self._models[pointer.digest] = kind(pointer, folder, self.engine_options, self.scratch, self)
        model = self._models.pop(pointer.digest)
        self._models[pointer.digest] = model
        return model

    def make_room(self, wanted: LocalModel) -> Engine | None:
        """Closes engines so that one more fits. Or gives one that has taken the wanted model in place of its own."""
        for model in self.loaded(wanted):
            if isinstance(engine := model._engine, Taking):
                model._engine = None
                self._resting.append(engine)
        while self._resting:
            engine = self._resting.pop()
            with contextlib.ExitStack() as unless_taken:
                unless_taken.callback(engine.close)
                if engine.take(wanted.folder):
                    unless_taken.pop_all()
                    return engine
        loaded = self.loaded(wanted)
        for model in loaded[: max(0, len(loaded) + 1 - self.keep)]:
            model.close()
        return None

    def loaded(self, wanted: LocalModel) -> list[LocalModel]:
        """Those beside the wanted one whose engines are loaded, the least recently opened first."""
        return [model for model in self._local() if model._engine is not None and model is not wanted]

    def _local(self) -> list[LocalModel]:
        return [model for model in self._models.values() if isinstance(model, LocalModel)]

    def take_tally(self) -> Tally:
        """What all its models used since the last call."""
        return sum((model.take_tally() for model in self._models.values()), Tally())

    def release(self) -> None:
        """Gives all engines' memory back; those that can rest go on from there when a model is asked again."""
        for model in self._local():
            engine = model._engine
            if isinstance(engine, Taking) and engine.rest():
                model._engine = None
                self._resting.append(engine)
            else:
                model.close()

    def reopener(self) -> tuple[Callable[..., LocalModel | EndpointModel], tuple[Any, ...]]:
        """As `Host.reopener` says."""
        return opened_here, (self.root, dict(self.engine_options), self.scratch, dict(self.serving))

    def close(self) -> None:
        for model in self._models.values():
            model.close()
        while self._resting:
            self._resting.pop().close()


_openers: dict[str, Opener] = {}  # of a process that computes shards for another one


def opened_here(
    root: Path,
    engine_options: Mapping[str, Any],
    scratch: Path,
    serving: Mapping[str, Any],
    pointer: Pointer,
    identity: Mapping[str, Any],
) -> LocalModel | EndpointModel:
    """The model of this process for one that another process asks. Raises `StageFailed` where the replies would not be
    those that the other process stores them as."""
    how = digests.of_value([str(root), engine_options, str(scratch), serving])
    if how not in _openers:
        for other in _openers.values():
            other.close()
        _openers.clear()
        _openers[how] = Opener(root, engine_options, scratch, serving=serving)
    model = _openers[how](pointer)
    if (found := model.identity()) != identity:
        raise StageFailed(
            f"the worker on {platform.node()} would reply as {found}, but {dict(identity)} is asked for; give all "
            "machines the same versions of the packages"
        )
    return model

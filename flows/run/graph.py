"""The one module that uses DVC's internals: the graph of dvc.yaml, run by a function instead of by commands.

`dvc.repo.Repo.reproduce` plans, skips what is current and stops at the first failure; for each stage it calls the hook
`repro_fn`, which is undocumented (hence DVC is pinned, and a test holds both ways of running to the same bytes). The
hook here does what DVC does for a command, step by step: remove the outputs, look into the run cache, run, then save,
commit to the cache and write dvc.lock. DVC's locks are held as in `dvc repro`, so the two exclude each other. Stages
whose command is not `python -m flows.stage ...` are left to DVC.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks.core.errors import AutodidactError, BadInput, StageFailed

COMMAND = re.compile(r"python -m flows\.stage (\w+)(?: (\S+))?")
UNCHANGED = "unchanged"

Run = Callable[[str, str | None], None]  # (stage, iteration) -> done
Say = Callable[[str, str], None]  # (stage's name, what happened without running it)


def reproduce(root: Path, targets: Sequence[str], force: bool, run: Run, say: Say) -> list[str]:
    """Brings `targets` (stage names; none: the whole graph) up to date; the names of the stages that were not.

    Raises what `run` raised, `BadInput` outside a DVC repository, `StageFailed` for what DVC could not do."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    def hook(stage: Any, upstream: Any = None, force: bool = False, **options: Any) -> Any:
        return _reproduce(stage, upstream, force, options, run, say)

    try:
        with Repo(str(root)) as repo:
            logging.getLogger("dvc").setLevel(logging.WARNING)  # what happens is told by `say`
            done = repo.reproduce(targets=list(targets) or None, force=force, repro_fn=hook)
            return [stage.addressing for stage in done]
    except NotDvcRepoError as error:
        raise _no_repository(root) from error
    except DvcException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, AutodidactError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        reasons = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        raise StageFailed(f"DVC: {': '.join(reasons)}") from error


def stale(root: Path) -> list[str]:
    """Names of the stages that DVC would look at again now, and of all that come after them: the most that can run,
    because a stage whose outputs do not change spares those behind it. Raises `BadInput` outside a DVC repository."""
    import networkx
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            changed = set(repo.status())
            stages = repo.index.graph  # edges lead from a stage to those that it depends on
            found = {stage for stage in stages if stage.addressing in changed}
            behind = [networkx.ancestors(stages, stage) for stage in found]
            return sorted(stage.name for stage in found.union(*behind))
    except NotDvcRepoError as error:
        raise _no_repository(root) from error


def _no_repository(root: Path) -> BadInput:
    return BadInput(f"{root} is no DVC repository; run `dvc init` there, or change to the repository's root")


def cached(root: Path, md5s: Sequence[str]) -> dict[str, Path]:
    """Where DVC's cache has the files of these md5s; those that it has not are left out. Raises `BadInput` outside a DVC
    repository."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            places = {md5: Path(repo.cache.local.oid_to_path(md5)) for md5 in md5s if md5}
    except NotDvcRepoError as error:
        raise _no_repository(root) from error
    return {md5: place for md5, place in places.items() if place.is_file()}


def put_back(root: Path, name: str) -> None:
    """Brings back what DVC removed for a stage that then refused its input: the outputs that dvc.lock names, from DVC's
    cache. What is not there stays away."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        for stage in repo.stage.collect(name):
            _put_back(stage)


def _put_back(stage: Any) -> None:
    from dvc.exceptions import DvcException

    for out in stage.outs:
        if out.hash_info and not out.exists:
            with contextlib.suppress(DvcException):
                out.checkout(force=True)


def _reproduce(stage: Any, upstream: Any, force: bool, options: dict[str, Any], run: Run, say: Say) -> Any:
    """One stage, as DVC's own `_reproduce_stage` does it; None if it is current."""
    from dvc.repo.reproduce import _reproduce_stage
    from dvc.stage.cache import RunCacheNotFoundError
    from dvc.stage.decorators import rwlocked, unlocked_repo

    command = COMMAND.fullmatch(stage.cmd or "") if isinstance(stage.cmd, str) else None
    if command is None or stage.frozen:
        return _reproduce_stage(stage, upstream=upstream, force=force, **options)
    name, iteration = command.groups()

    @unlocked_repo
    def work(stage: Any) -> None:
        run(name, iteration)

    @rwlocked(read=["deps"], write=["outs"])
    def locked(stage: Any) -> Any:
        if not force and not stage.changed(False, upstream):
            say(stage.addressing, UNCHANGED)
            return None
        stage.remove_outs(ignore_remove=False, force=False)
        try:
            if force:
                raise RunCacheNotFoundError(stage)
            stage.repo.stage_cache.restore(stage)
            say(stage.addressing, "restored from DVC's cache")
        except RunCacheNotFoundError:
            stage.save_deps()
            try:
                work(stage)
            except BadInput:
                _put_back(stage)
                raise
        stage.save()
        stage.commit()
        return stage

    changed = locked(stage)
    if changed is not None:
        changed.dump(update_pipeline=False)
    return changed


def mend_dvc(root: Path) -> None:
    """Removes DVC's list of who reads and writes what, where a `dvc` that was killed while writing it left no JSON: every
    other `dvc` would stop at it. What it says of processes that are gone counts for nothing anyway."""
    path = root / ".dvc/tmp/rwlock"
    for _ in range(2):
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except OSError:
            return
        except ValueError:
            time.sleep(0.03)  # it may be being written
    path.unlink(missing_ok=True)

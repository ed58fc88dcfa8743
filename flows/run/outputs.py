"""Artifacts are promoted whole: built aside, checked against what dvc.yaml declares, moved into place by rename.

A stage writes below its own staging folder. When it has returned, every declared output must be there and nothing
else; then each is renamed into the repository, a folder replacing the whole folder that was there. If anything fails on
the way, what was there before is put back.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flows.machine import processes, state
from tasks.core import digests
from tasks.core.errors import StageFailed


def links(root: Path) -> Iterator[str]:
    """Folders of artifacts that are links, which DVC refuses when a stage has done its work."""
    several = [root / "data", *sorted((root / "data").glob("*")), *sorted((root / "data").glob("i*/*"))]
    for folder in several:
        if folder.is_symlink() and folder.is_dir():
            yield (
                f"{folder.relative_to(root)}: is a link to {folder.resolve()}, and DVC keeps no artifact behind a link; "
                "put a folder there, and for another disk put the repository on it, or DVC's copies alone (`dvc cache dir PATH`)"
            )


def staging(root: Path, name: str) -> Path:
    """A new, empty folder for this process's execution of stage `name`; clears those of processes that are gone."""
    parent = state.staging_dir(root)
    for old in parent.iterdir():
        pid = re.fullmatch(r".+-(\d+)", old.name)
        if pid and (int(pid.group(1)) == os.getpid() or not processes.alive(int(pid.group(1)))):
            shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"{name}-{os.getpid()}"
    folder.mkdir()
    return folder


def check(folder: Path, outs: Sequence[str], name: str) -> None:
    """Raises `StageFailed` unless exactly the declared outputs are below `folder`."""
    missing = [out for out in outs if not (folder / out).exists()]
    empty = [out for out in outs if (folder / out).is_dir() and not any((folder / out).iterdir())]
    written = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]
    surplus = [str(path) for path in written if not any(path.is_relative_to(out) for out in outs)]
    problems = [f"did not write {', '.join(missing)}"] if missing else []
    problems += [f"left {', '.join(empty)} without a file"] if empty else []
    problems += [f"wrote {', '.join(surplus)}, which dvc.yaml does not declare"] if surplus else []
    if problems:
        raise StageFailed(f"{name}: {'; '.join(problems)}; nothing of it was kept")


def publish(folder: Path, root: Path, outs: Sequence[str]) -> None:
    """Renames the outputs from `folder` into `root`; all of them, or none."""
    aside = folder / ".replaced"
    moved: list[str] = []
    try:
        for out in outs:
            target, old = root / out, aside / out
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() or target.is_symlink():
                old.parent.mkdir(parents=True, exist_ok=True)
                target.rename(old)
            moved.append(out)
            (folder / out).rename(target)
    except BaseException:
        for out in reversed(moved):
            target, old = root / out, aside / out
            if target.exists():
                target.rename(folder / out)
            if old.exists() or old.is_symlink():
                old.rename(target)
        raise


def digest(root: Path, paths: Sequence[str]) -> dict[str, str]:
    """Path -> digest of what is there now; a path that is not there has the digest 'missing'."""
    known = state.scratch_dir(root) / digests.KNOWN
    return {path: digests.of_path(root / path, known) if (root / path).exists() else "missing" for path in paths}


def unchanged(root: Path, outputs: Mapping[str, str]) -> bool:
    """Whether all outputs are there with these digests."""
    return all((root / path).exists() for path in outputs) and digest(root, list(outputs)) == dict(outputs)

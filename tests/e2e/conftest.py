"""One finished run of the default recipe at miniature size, which the tests of the whole graph read or copy."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.workspace import configure, run, workspace


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository after `dvc repro`, not to be changed; beside it its DVC cache and `output.txt`, what was printed.
    Processes that share the work of one pytest run share it."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(f"{place}.lock"):
        if not (place / "output.txt").exists():
            folder = workspace(place / "here", place / "cache")
            run(folder, "python", "-m", "flows.check")
            (place / "output.txt").write_text(run(folder, "dvc", "repro"))
    return place / "here"


@pytest.fixture(scope="session")
def copy(finished: Path) -> Callable[[Path], Path]:
    """Copies the finished run, with a DVC cache of its own, into an empty folder."""

    def make(place: Path) -> Path:
        folder = place / "here"
        shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns("*.sock", "server.json"))
        shutil.copytree(finished.parent / "cache", place / "cache")
        configure(folder, place / "cache")
        run(folder, "dvc", "checkout")
        return folder

    return make

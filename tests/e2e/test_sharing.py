"""What DVC users do together: a remote, a second clone, experiments in a queue."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.workspace import digests, ran, requests_made, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(copy: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, committed."""
    folder = copy(tmp_path_factory.mktemp("sharing"))
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "a run")
    return folder


def test_a_second_clone_gets_everything_and_trains_nothing(repository: Path, tmp_path: Path) -> None:
    run(repository, "dvc", "remote", "add", "-d", "--local", "shared", str(tmp_path / "remote"))
    run(repository, "dvc", "push", "--run-cache")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(repository), str(clone))
    run(clone, "dvc", "cache", "dir", "--local", str(tmp_path / "empty"))
    run(clone, "dvc", "remote", "add", "-d", "--local", "shared", str(tmp_path / "remote"))
    run(clone, "dvc", "pull", "--run-cache")
    assert "up to date" in run(clone, "dvc", "status")
    assert ran(run(clone, "dvc", "repro")) == []
    assert digests(clone) == digests(repository)
    shutil.rmtree(clone / "data/i02")
    assert ran(run(clone, "dvc", "repro")) == []
    assert not requests_made(clone)
    run(clone, "python", "-m", "flows.track")
    assert "i03" in run(clone, "python", "-m", "flows.summary")


def test_experiments_in_a_queue(repository: Path) -> None:
    before = digests(repository)
    for samples in ("4", "6"):
        change = ("-n", f"samples-{samples}", "-S", f"evaluate.samples={samples}")
        run(repository, "dvc", "exp", "run", "--queue", *change)
    run(repository, "dvc", "exp", "run", "--run-all", "-j", "1")
    shown = json.loads(run(repository, "dvc", "exp", "show", "--json", "--no-pager"))
    text = json.dumps(shown)
    assert "samples-4" in text
    assert "samples-6" in text
    assert "Failed" not in text
    assert digests(repository) == before  # outputs of experiments are in their own folders
    assert "up to date" in run(repository, "dvc", "status")
    records = [json.loads(path.read_text()) for path in (repository / ".autodidact/records").glob("*.json")]
    evaluated = {
        record["params"]["samples"]
        for record in records
        if record["stage"] == "evaluate" and record["iteration"] == "i03" and record["status"] == "finished"
    }
    assert evaluated == {8, 4, 6}  # their records are in the main repository

"""What DVC users do together: a remote, a second clone, experiments in a queue."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.workspace import digests, ran, requests_made, run, workspace


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sharing")
    folder = workspace(place / "here", place / "cache")
    run(folder, "python", "-m", "flows.evolve")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "a run")
    return folder


def test_a_second_clone_gets_everything_and_trains_nothing(finished: Path, tmp_path: Path) -> None:
    run(finished, "dvc", "remote", "add", "-d", "--local", "shared", str(tmp_path / "remote"))
    run(finished, "dvc", "push", "--run-cache")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(finished), str(clone))
    run(clone, "dvc", "cache", "dir", "--local", str(tmp_path / "empty"))
    run(clone, "dvc", "remote", "add", "-d", "--local", "shared", str(tmp_path / "remote"))
    run(clone, "dvc", "pull", "--run-cache")
    assert "up to date" in run(clone, "dvc", "status")
    assert ran(run(clone, "dvc", "repro")) == []
    assert digests(clone) == digests(finished)
    shutil.rmtree(clone / "data/i02")
    assert ran(run(clone, "dvc", "repro")) == []
    assert not requests_made(clone)
    run(clone, "python", "-m", "flows.track")
    assert "i03" in run(clone, "python", "-m", "flows.summary")


def test_experiments_in_a_queue(finished: Path) -> None:
    before = digests(finished)
    for rate in ("0.0004", "0.0006"):
        name = f"rate-{rate[-1]}"
        run(
            finished,
            "dvc",
            "exp",
            "run",
            "--queue",
            "-n",
            name,
            "-S",
            f"iterations.i03.train={{sft: {{learning_rate: {rate}}}}}",
        )
    run(finished, "dvc", "exp", "run", "--run-all", "-j", "1")
    shown = json.loads(run(finished, "dvc", "exp", "show", "--json", "--no-pager"))
    text = json.dumps(shown)
    assert "rate-4" in text
    assert "rate-6" in text
    assert "Failed" not in text
    assert digests(finished) == before  # outputs of experiments are in their own folders
    assert "up to date" in run(finished, "dvc", "status")
    records = [json.loads(path.read_text()) for path in (finished / ".autodidact/records").glob("*.json")]
    rates = {
        record["params"]["train"]["sft"]["learning_rate"]
        for record in records
        if record["stage"] == "train" and record["key"] == "i03" and record["status"] == "finished"
    }
    assert len(rates) == 3  # their records are in the main repository

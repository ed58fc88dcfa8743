"""`python -m flows.compare`: what its names lead to, what it prints, and what it refuses."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.comparison.contrast import contrast
from flows.comparison.sides import Side, side
from flows.history import mlflow
from flows.params import compose
from tasks.core import tables
from tasks.core.catalog import ARTIFACTS
from tests.support.paths import ROOT
from tests.support.tiny import user
from tests.support.work import predicted, write_yaml


def run_of(
    root: Path, right: dict[str, str], recipe: str = "lmsi", samples: str = "rw", **changes: Any
) -> dict[str, Any]:
    """A folder with params.yaml, the held-out prompts, and predictions for each iteration."""
    root.mkdir(exist_ok=True)
    params = compose.compose(recipe, iterations=max(1, len(right) - 1)) | changes
    write_yaml(root / "params.yaml", params)
    for iteration, letters in right.items():
        predicted(root, iteration, letters, samples, f"{iteration} ")
    rows = [
        {"prompt_id": f"{place:016x}", "messages": user(f"question {place}"), "family": "countdown", "difficulty": 1,
         "source": "t", "parent_ids": [], "answer": "secret"}
        for place in range(9)
    ]  # fmt: skip
    tables.write(tables.frame(rows, tables.PROMPTS), root / ARTIFACTS["heldout"].path, tables.PROMPTS)
    return params


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    run_of(tmp_path / "run", {"i00": "wwwwwwwwr", "i01": "rrrrrrrww"})
    return tmp_path / "run"


def compare(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "flows.compare", *arguments)
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def sided(root: Path, name: str, folder: Path) -> Side:
    folder.mkdir(parents=True, exist_ok=True)
    return side(root, name, folder)


def test_two_iterations_as_a_reader_sees_them(repository: Path) -> None:
    done = compare(repository, "i00", "i01", "--rows", "2")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "i00, i01 11.1 (2.0-43.5) 77.8 (45.3-93.7) +66.7 (22.2 to 100.0) 7 1 0.0703 not told apart" in words
    assert "i00, i01: 7 prompts from wrong to right" in words
    assert f"{0:016x} question 0 A wrong: i00 0 w <- it is i00 0 w B right: i01 0 r <- it is i01 0 r" in words
    assert "... and 5 more (--rows, --all)" in words
    assert "i00, i01: 1 prompt from right to wrong" in words
    assert "i00, i01 1 50.0 50.0 +0.0" in words  # pass@1 of samples of which each second is right
    assert "…" not in done.stdout
    assert "secret" not in done.stdout  # the answers of held-out prompts stay where they are
    assert sorted(path.name for path in repository.iterdir()) == ["data", "params.yaml"]


def test_the_record_for_programs(repository: Path) -> None:
    record = json.loads(compare(repository, "i00", "i01", "--json").stdout)
    [pair] = record["iterations"]
    assert pair["test"] | {"low": 0, "high": 0} == {
        "prompts": 9, "gained": 7, "lost": 1, "p": 18 / 256, "verdict": "not told apart",
        "difference": pytest.approx(6 / 9), "low": 0, "high": 0,
    }  # fmt: skip
    assert len(record["changed"]["rows"]) == 8


def test_a_run_in_another_folder_is_paired_iteration_by_iteration(repository: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "other", {"i00": "wwwwwwwwr", "i01": "wwwwwwwww", "i02": "r" * 9}, recipe="scpo")
    record = contrast(sided(repository, ".", tmp_path / "a"), sided(repository, "../other", tmp_path / "b"))
    assert [pair["iterations"] for pair in record["iterations"]] == [["i00", "i00"], ["i01", "i01"]]
    assert record["iterations"][1]["test"]["verdict"] == "worse"
    assert "recipe: lmsi -> scpo" in record["parameters"]
    assert not any(line.startswith("iterations.i02") for line in record["parameters"])
    named = contrast(sided(repository, "i01", tmp_path / "c"), sided(repository, "../other@i02", tmp_path / "d"))
    assert [pair["iterations"] for pair in named["iterations"]] == [["i01", "i02"]]


def test_other_held_out_prompts_are_no_paired_test(repository: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "other", {"i00": "rrrr", "i01": "rrrw"}, seed=1)
    done = compare(repository, ".", "../other")
    assert done.returncode == 0
    assert "no paired test: the held-out prompts differ: 9 of the first and 4 of the second, 4 in both" in done.stdout
    assert "seed: 0 -> 1" in done.stdout
    assert "100.0 (51.0-100.0)" in done.stdout
    assert "from wrong to right" not in done.stdout


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        ("i00", "i1", "compare: unknown run or iteration 'i1'; did you mean 'i01'? (known: i00, i01, lmsi-s0-"),
        ("i00", "i02", "i02: unknown iteration 'i02'"),
        ("i00", ".", "i00 is one iteration and . is a whole run; name one of its iterations: .@i01"),
        (".", "i00", "i00 is one iteration and . is a whole run"),
        ("i00", "data", "data: the folder has no params.yaml"),
        ("i00", "../text@i00", "they are different tasks, sums and text (prepare.family)"),
        ("i00", "../gone@i01", "i01 of lmsi-s0-"),
        (".", "../later", "have no measured iteration in common (i00, i01 and i02); name one of each, as in .@i01"),
    ],
)
def test_what_cannot_be_compared_is_one_message(repository: Path, tmp_path: Path, a: str, b: str, told: str) -> None:
    run_of(tmp_path / "gone", {"i00": "w"})
    run_of(tmp_path / "later", {"i00": "w", "i01": "w", "i02": "r"})
    for iteration in ("i00", "i01"):
        (tmp_path / "later" / ARTIFACTS["predictions"].at(iteration)).unlink()
    write_yaml(tmp_path / "gone/params.yaml", compose.compose("lmsi", iterations=1))
    run_of(tmp_path / "text", {"i00": "w"})
    write_yaml(tmp_path / "text/params.yaml", compose.compose("lmsi", "text"))
    done = compare(repository, a, b)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_artifacts_of_other_parameters_are_not_compared(repository: Path) -> None:
    """dvc.lock says that evaluate@i01 ran with another value than params.yaml has now."""
    stages = {}
    for iteration, samples in (("i00", 8), ("i01", 4)):
        values = {"params.yaml": {"evaluate.samples": samples}}
        stages[f"evaluate@{iteration}"] = {"cmd": "x", "params": values, "outs": []}
    write_yaml(repository / "dvc.lock", {"schema": "2.0", "stages": stages})
    done = compare(repository, "i00", "i01")
    assert done.returncode == 2
    assert "i01: i01 of lmsi-s0-" in done.stderr
    assert "is not measured, or its artifacts are gone" in done.stderr


@pytest.fixture
def committed(repository: Path) -> tuple[Path, str]:
    """The repository under git and DVC: a commit of the run, whose artifacts only DVC's cache has; then other parameters.
    And the first evolution's name."""

    def call(*command: str) -> None:
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        subprocess.run(command, cwd=repository, env=environment, check=True, capture_output=True)

    params = run_of(repository, {"i00": "wwwwwwwwr", "i01": "rrrrrrrrr"})
    call("git", "init", "-q")
    call(sys.executable, "-m", "dvc", "init", "-q")
    stages, listed = {}, []
    for iteration in ("i00", "i01"):
        path = ARTIFACTS["predictions"].at(iteration)
        outs = [{"path": path, "hash": "md5", "md5": store(repository, (repository / path).read_bytes())}]
        stages[f"evaluate@{iteration}"] = {"cmd": "x", "params": {"params.yaml": {"seed": 0}}, "outs": outs}
    heldout = repository / ARTIFACTS["heldout"].path
    listed = [{"relpath": "heldout.parquet", "md5": store(repository, heldout.read_bytes())}]
    folder = store(repository, json.dumps(listed).encode(), ".dir")
    tasks = {"path": "data/tasks", "hash": "md5", "md5": folder}
    stages["prepare"] = {"cmd": "x", "params": {"params.yaml": {"seed": 0}}, "outs": [tasks]}
    write_yaml(repository / "dvc.lock", {"schema": "2.0", "stages": stages})
    call("git", "add", "params.yaml", "dvc.lock")
    call("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "run")
    run_of(repository, {"i00": "wwwwwwwwr", "i01": "wwwwwwwww"}, seed=5)
    (repository / "dvc.lock").unlink()
    return repository, mlflow.name_of(params)


def store(root: Path, content: bytes, ending: str = "") -> str:
    """Puts a file into DVC's cache; its md5."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + ending
    place = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return md5


def test_commits_and_earlier_evolutions_are_read_from_dvcs_cache(committed: tuple[Path, str]) -> None:
    root, name = committed
    for given in ("HEAD", name, name[-6:]):
        done = compare(root, given, ".", "--rows", "1")
        assert done.returncode == 0, done.stderr
        words = " ".join(done.stdout.split())
        assert f"A {given}" in words
        assert "seed: 0 -> 5" in words
        assert "i01 100.0 (70.1-100.0) 0.0 (0.0-29.9) -100.0 0 9 0.00391 worse" in words
        assert "question 0 A right: i01 0 r" in words
    assert "lmsi-s0-" in compare(root, "HEAD@i01", "i01").stdout


def test_an_evolution_whose_artifacts_are_gone(committed: tuple[Path, str]) -> None:
    root, name = committed
    for place in (root / ".dvc/cache/files/md5").rglob("*"):
        if place.is_file():
            place.unlink()
    done = compare(root, name, ".")
    assert done.returncode == 2
    assert f"{name}: i01 of {name} is not measured, or its artifacts are gone" in done.stderr
    nearly = compare(root, name[:-2], ".")
    assert nearly.returncode == 2
    assert f"did you mean '{name}'?" in nearly.stderr


def test_an_evolution_that_only_mlflow_knows(committed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = committed
    monkeypatch.setattr(mlflow, "evolutions", lambda root: ["lmsi-s3-abcdef"])
    with pytest.raises(FileNotFoundError, match="MLflow has its figures, but its artifacts are gone"):
        side(root, "lmsi-s3-abcdef", root)

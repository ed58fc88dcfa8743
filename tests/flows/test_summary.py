"""The table at the end of a run, from a repository of two evaluated iterations and one that is missing."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from flows import summary
from flows.history import overview, records
from tasks.core import digests
from tests.support.work import predicted, write_yaml

PARAMS = {
    "recipe": "self_evolution",
    "seed": 0,
    "sample": {"n": 1},
    "iterations": {"i01": {}, "i02": {}},
    "evaluations": {"i00": {}, "i01": {}, "i02": {}},
}
FIGURES = {
    "accuracy": 0.5,
    "accuracy_low": 0.4,
    "accuracy_high": 0.612,
    "pass_at_8": 1.0,
    "critique_precision": None,
    "critique_recall": 0.25,
    "refine_wrong_to_right": 0.0,
    "refine_right_to_wrong": 0.125,
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_yaml(tmp_path / "params.yaml", PARAMS)
    for key in ("i00", "i01"):
        folder = tmp_path / "data" / key
        (folder / "evaluation").mkdir(parents=True)
        (folder / "evaluation" / "metrics.json").write_text(json.dumps(FIGURES))
        (folder / "policy.json").write_text(json.dumps({"promoted": key == "i00"}))
    for name in ("samples", "critiques", "refinements", "refinement_critiques"):
        pl.DataFrame({"tokens": [1000, 234]}).write_parquet(tmp_path / "data/i01" / f"{name}.parquet")
    return tmp_path


def lock(root: Path, names: list[str]) -> None:
    """Entries of dvc.lock, all with one output."""
    outs = [{"path": "data/i01/samples.parquet", "hash": "md5", "md5": "0"}]
    values = {"params.yaml": {"sample": {"n": 1}}}
    stages: dict[str, Any] = {name: {"cmd": name, "params": values, "outs": outs} for name in names}
    write_yaml(root / "dvc.lock", {"schema": "2.0", "stages": stages})


def record(root: Path, stage: str, seconds: float) -> None:
    made = {"id": stage, "stage": stage, "iteration": "i01", "status": "finished", "started": 1.0, "seconds": seconds}
    outputs = {"data/i01/samples.parquet": digests.of_file(root / "data/i01/samples.parquet")}
    records.write_record(root, {**made, "outputs": outputs})


def test_a_row_per_iteration_with_nulls_as_dashes(repository: Path) -> None:
    shares = ("100.0", "-", "25.0", "0.0", "12.5")
    assert overview.rows(repository) == [
        ("i00", "50.0 (40.0-61.2)", "-", *shares, "-", "unknown", "-"),
        ("i01", "50.0 (40.0-61.2)", "-", *shares, "4,936", "unknown", "no"),
        ("i02", "-", "-", "-", "-", "-", "-", "-", "-", "unknown", "-"),
    ]


def test_an_iteration_is_better_than_the_base_only_where_the_paired_test_says_so(repository: Path) -> None:
    for key, right in (("i00", "wwwwwwwwrr"), ("i01", "rrrrrrwwrr"), ("i02", "rrwwwwwwwr")):
        predicted(repository, key, right)
    assert [row[2] for row in overview.rows(repository)] == ["-", "+60.0 better", "+10.0"]
    predicted(repository, "i02", "rrrr")
    assert [row[2] for row in overview.rows(repository)] == ["-", "+60.0 better", "-"]
    (repository / "data/i01/evaluation/predictions.parquet").write_text("torn")
    assert [row[2] for row in overview.rows(repository)] == ["-", "-", "-"]


def test_seconds_come_from_records_that_fit_and_say_when_some_are_missing(repository: Path) -> None:
    lock(repository, ["sample@i01", "critique@i01"])
    record(repository, "sample", 60.4)
    assert overview.rows(repository)[1][9] == ">= 60"
    record(repository, "critique", 1000.0)
    assert overview.rows(repository)[1][9] == "1,060"
    pl.DataFrame({"tokens": [1]}).write_parquet(repository / "data/i01/samples.parquet")
    assert overview.rows(repository)[1][9] == "unknown"


def test_benchmarks_have_columns_with_the_half_width_of_their_interval(repository: Path) -> None:
    own = {"benchmark_facts_acc": 0.5, "benchmark_facts_acc_stderr": 0.1, "benchmark_facts_samples": 40.0}
    more = {f"benchmark_z{i}_acc": None for i in range(4)}
    (repository / "data/i01/evaluation/metrics.json").write_text(json.dumps({**FIGURES, **own, **more}))
    assert overview.benchmarks(repository) == ["benchmark_facts_acc", "benchmark_z0_acc", "benchmark_z1_acc"]
    assert [row[8:11] for row in overview.rows(repository)] == [
        ("-", "-", "-"),
        ("0.500 ±0.196", "-", "-"),
        ("-", "-", "-"),
    ]
    console = Console(width=80, record=True, file=(repository / "out").open("w"))
    summary.show(repository, console)
    text = console.export_text()
    assert "0.500 ±0.196" in text
    assert "…" not in text


def test_the_table_is_printed_whole_with_where_to_look_next(repository: Path) -> None:
    console = Console(width=80, record=True, file=(repository / "out").open("w"))
    summary.show(repository, console)
    text = console.export_text()
    assert "…" not in text
    for word in (*[column for name in overview.columns([]) for column in name.split("\n")], "make ui", "metrics.json"):
        assert word in text
    (repository / "data/report").mkdir()
    (repository / "data/report/report.md").touch()
    summary.show(repository, console)
    assert "data/report/report.md" in console.export_text()

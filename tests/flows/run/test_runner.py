"""The runner, in this process, on stages written here."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.history.records import records_dir
from flows.machine import state
from flows.run import runner, workers
from flows.run.background import fork, server
from flows.run.project import Part, Project
from tasks.core.context import Context
from tasks.core.errors import BadInput, MissingArtifact, StageFailed

PARAMS: dict[str, Any] = {
    "recipe": "toy",
    "labels": False,
    "engine": {},
    "runner": {"name": "local", "training": "never"},
    "toy": {"text": "hello"},
    "rows": {"i01": {}},
}
GRAPH = """
stages:
  toy:
    foreach: ${rows}
    do:
      cmd: python -m flows.stage toy ${key}
      deps: [input.txt]
      params: [toy]
      outs: ["data/${key}/out.txt", "data/${key}/folder"]
"""


class Toy:
    """A stage whose body a test gives; counts how often it ran."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran = root, 0
        self.body: Callable[[Context], None] = write
        self.params = PARAMS

    def run(self, context: Context) -> None:
        self.ran += 1
        self.body(context)

    def execute(self) -> None:
        runner.Runner(self.root, project=Parts(self)).execute("toy", "i01")

    def output(self) -> Path:
        return self.root / "data/i01/out.txt"

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(records_dir(self.root).iterdir())]


class Parts(Project):
    """The toy's parameters and its only stage."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy

    def params(self, root: Path, files: bool) -> dict[str, Any]:
        return self.toy.params

    def part(self, params: Mapping[str, Any], stage: str, iteration: str | None) -> Part:
        return Part(params[stage], params[stage], {"previous": "i00"}, 7)

    def run(self, stage: str) -> Callable[[Context], None]:
        return self.toy.run


def write(context: Context) -> None:
    context.write("data/i01/out.txt").write_text(context.options["text"] + context.read("input.txt").read_text())
    context.write("data/i01/folder/a.txt").write_text("a")
    context.log(rows=1200, share=0.25)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: str) -> Iterator[Toy]:
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "input.txt").write_text(" world")
    toy = Toy(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    yield toy
    assert not list(state.staging_dir(tmp_path).iterdir())


def test_a_stage_writes_its_outputs_a_record_and_a_line(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.execute()
    assert toy.output().read_text() == "hello world"
    assert capsys.readouterr().out.startswith("toy@i01  1,200 rows, 0.25 share  ")
    (record,) = toy.records()
    assert (record["stage"], record["iteration"], record["status"]) == ("toy", "i01", "finished")
    assert record["params"] == {"text": "hello"}
    assert set(record["inputs"]) == {"input.txt"}
    assert set(record["outputs"]) == {"data/i01/out.txt", "data/i01/folder"}
    assert record["figures"] == {"rows": 1200, "share": 0.25}
    assert 0 <= record["work_seconds"] <= record["seconds"]


def test_the_cache_counts_only_where_the_outputs_are(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.execute()
    toy.execute()
    assert toy.ran == 1
    assert "unchanged" in capsys.readouterr().out
    assert len(toy.records()) == 1
    toy.output().write_text("altered")
    toy.execute()
    assert (toy.ran, toy.output().read_text()) == (2, "hello world")
    toy.output().unlink()
    toy.execute()
    assert (toy.ran, toy.output().read_text()) == (3, "hello world")


@pytest.mark.parametrize("changed", ["input", "params"])
def test_a_changed_input_or_parameter_runs_the_stage(toy: Toy, changed: str) -> None:
    toy.execute()
    if changed == "input":
        (toy.root / "input.txt").write_text(" moon")
    else:
        toy.params = {**PARAMS, "toy": {"text": "bye"}}
    toy.execute()
    assert toy.ran == 2


def test_a_half_written_cache_entry_is_ignored(toy: Toy) -> None:
    toy.execute()
    (entry,) = (state.prefect_dir(toy.root) / "results").iterdir()
    entry.write_text('{"met')
    toy.execute()
    assert toy.ran == 2


def test_a_failed_stage_leaves_what_was_there(toy: Toy) -> None:
    toy.execute()
    (toy.root / "input.txt").write_text(" moon")

    def broken(context: Context) -> None:
        write(context)
        raise ZeroDivisionError("by zero")

    toy.body = broken
    with pytest.raises(StageFailed, match=r"toy@i01 failed: ZeroDivisionError: by zero") as failure:
        toy.execute()
    assert toy.output().read_text() == "hello world"
    log = toy.root / str(failure.value).rpartition("traceback: ")[2]
    assert "broken" in log.read_text()
    assert sorted(record["status"] for record in toy.records()) == ["failed", "finished"]


def test_undeclared_outputs_fail_the_stage(toy: Toy) -> None:
    def more(context: Context) -> None:
        write(context)
        context.write("data/extra.txt").write_text("x")

    toy.body = more
    with pytest.raises(StageFailed, match=r"wrote data/extra.txt, which dvc.yaml does not declare"):
        toy.execute()
    assert not (toy.root / "data").exists()


def test_the_first_stage_is_run_by_the_process_that_it_starts(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(state, "quiet", lambda root: None)
    monkeypatch.setattr(server, "ensure", lambda root, pid, keeper: "http://127.0.0.1:9/api")
    monkeypatch.setattr(server, "warm_process", lambda root: 5)
    monkeypatch.setattr(fork, "ask", lambda root, *given: asked.append(given) or 7)
    parts = Parts(toy)
    parts.params = lambda root, files: os.environ.setdefault("ADDED_BY_A_LIBRARY", "1") and toy.params  # type: ignore
    monkeypatch.setenv("ADDED_BY_A_LIBRARY", "")  # so that it is put back
    monkeypatch.delenv("ADDED_BY_A_LIBRARY")
    given = dict(os.environ)
    assert runner.command(toy.root, "toy", "i01", keeper=["a command"], project=parts) == 7
    assert (asked, toy.ran) == ([(["toy", "i01"], 5, given)], 0)
    assert dict(os.environ) != given  # a process with more in its environment would be refused


def test_a_missing_artifact_is_bad_input(toy: Toy) -> None:
    toy.body = lambda context: write(context) if context.read("none.txt") else None
    with pytest.raises(MissingArtifact):
        toy.execute()


class Job:
    """A shard that writes its key to a file."""

    def __init__(self, key: str, folder: Path, ran: list[str], broken: bool = False) -> None:
        self.key, self.path, self.ran, self.broken = key, folder / key, ran, broken

    def valid(self) -> bool:
        return self.path.is_file() and self.path.read_text() == self.key

    def run(self) -> dict[str, float]:
        if self.broken:
            raise OSError("disk full")
        self.ran.append(self.key)
        self.path.write_text(self.key)
        return {"made": 2}


def test_a_shard_runs_only_where_its_file_is_not_there(toy: Toy) -> None:
    ran: list[str] = []
    jobs = [Job(key, toy.root, ran) for key in ("shard-a", "shard-b", "shard-a")]

    def sharded(context: Context) -> None:
        workers.run_here(jobs)
        write(context)

    toy.body = sharded
    toy.execute()
    assert ran == ["shard-a", "shard-b"]
    jobs[1].path.write_text("altered")
    toy.output().unlink()
    toy.execute()
    assert ran == ["shard-a", "shard-b", "shard-b"]


def test_a_failed_shard_stops_the_rest(toy: Toy) -> None:
    ran: list[str] = []
    jobs = [Job(f"s{n}", toy.root, ran, broken=n == 1) for n in range(4)]
    toy.body = lambda context: workers.run_here(jobs)
    with pytest.raises(StageFailed, match="disk full"):
        toy.execute()
    assert ran == ["s0"]


def test_shards_need_a_flow(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="need a running flow"):
        workers.run_here([Job("a", tmp_path, [])])


def test_bad_params_stop_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(root: Path) -> dict[str, Any]:
        raise BadInput("sample.iid.n: given 0; at least 1")

    monkeypatch.setattr("flows.params.file.load", refuse)
    monkeypatch.setattr(state, "quiet", lambda root: None)
    assert runner.command(tmp_path, "sample", "i01") == 2
    assert capsys.readouterr().err == "sample.iid.n: given 0; at least 1\n"
    assert not list(tmp_path.iterdir())


def test_summary_shows_the_first_figures() -> None:
    figures = {"samples": 19800.0, "tokens": 12.5, "seconds_per_row": 0.123456, "more": 1}
    line = runner.summary("sample@i02", figures, 12.34)
    assert line == "sample@i02  19,800 samples, 12.5 tokens, 0.1235 seconds per row  12.3 s"

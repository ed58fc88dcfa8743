"""Shards on a real Ray cluster of two workers on this machine: the same bytes, and what breaks."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.machine import processes, state
from flows.run import cluster
from flows.run import workers as shards
from tasks.core.asking.opener import Opener
from tasks.core.asking.shards import run_here
from tasks.core.engines.contract import Sampling
from tasks.core.errors import StageFailed
from tasks.core.models.pointer import Pointer
from tests.support.slow import Slow, Watched, noted
from tests.support.workspace import ROOT, digests, edit, environment, forget, run, workspace

# Ray is not imported here: it reads a cluster's token from the environment when it is.
pytestmark = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("prefect_ray") is None,
    reason="needs the extra `ray`: pip install --constraint constraints.txt '.[ray]'",
)

LOCAL = {"name": "local", "address": None, "workers": 2, "gpus": 0.0, "training": "auto"}
RAY = {**LOCAL, "name": "ray"}


@pytest.fixture(scope="module")
def existing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The section `runner` for a cluster that somebody started."""
    started = cluster._start(tmp_path_factory.mktemp("ray"), 2)
    os.environ.update(cluster._token(Path(started["folder"])))  # as its user would
    deadline = time.monotonic() + cluster.STARTUP
    while "Ray runtime started" not in Path(started["log"]).read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    yield {**RAY, "address": started["address"], "client": started["client"]}
    import ray

    ray.shutdown()
    for name in cluster._token(Path()):
        os.environ.pop(name)
    processes.stop(started["pid"], started["started"])
    shutil.rmtree(started["folder"], ignore_errors=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that has this project's modules, as a repository has."""
    for name in ("tasks", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def on_ray(place: Path, existing: dict[str, Any], prefect_server: str) -> Callable[..., list[Any]]:
    """Runs jobs on the cluster in a flow; what came back of each."""

    def perform(jobs: list[Any], **given: Any) -> list[Any]:
        from prefect import flow

        came: list[Any] = []
        how = {"root": place, "runner": existing, "threads": 1} | given
        body = partial(shards.run_on_ray, jobs, came.append, **how)
        flow(name="toy", flow_run_name="toy@i01", persist_result=False)(lambda: body())()
        return came

    return perform


def test_a_killed_worker_costs_its_shard(on_ray: Callable[..., list[Any]], place: Path) -> None:
    jobs = [Slow(f"s{number}", place, 1.5) for number in range(4)]

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not noted(place) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(int(noted(place)[0][0]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    came = on_ray(jobs)
    killer.join()
    assert came == [{"made": 1, "seconds": 1.5}] * 4
    assert all(job.valid() for job in jobs)
    keys = [key for _, key in noted(place)]
    assert sorted(set(keys)) == ["s0", "s1", "s2", "s3"]
    assert len(keys) == 5  # the shard that the killed worker was at, and no other, was begun twice
    assert on_ray(jobs) == []


def test_workers_that_die_again_and_again_fail_the_stage(on_ray: Callable[..., list[Any]], place: Path) -> None:
    with pytest.raises(StageFailed, match="4 Ray workers were lost over the same shard"):
        on_ray([Slow("deadly", place, fault="dies")])
    assert len(noted(place)) == shards.ATTEMPTS


def test_the_first_failure_stops_the_rest(on_ray: Callable[..., list[Any]], place: Path) -> None:
    jobs = [Slow("s0", place, 0.5), Slow("s1", place, fault="raises"), *(Slow(f"s{n}", place) for n in range(2, 9))]
    with pytest.raises(StageFailed, match="no number"):
        on_ray(jobs)
    assert jobs[0].valid()  # what was under way is stored
    assert not jobs[-1].valid()


def test_a_shard_that_is_not_where_this_process_looks(on_ray: Callable[..., list[Any]], place: Path) -> None:
    with pytest.raises(StageFailed, match="it is not here, or not whole; all machines"):
        on_ray([Slow("s0", place, fault="writes nothing")])


def test_a_cluster_without_room(existing: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    cluster.connect(ROOT, existing, 1)
    with pytest.raises(StageFailed, match="no machine of the Ray cluster has 1 CPUs and 1 GPUs, as a worker needs"):
        cluster._room({**RAY, "gpus": 1.0}, 1)
    cluster._room(existing, 3)
    assert "has 3 CPUs and 0 GPUs, as a worker needs; waiting for one" in capsys.readouterr().out
    cluster._room(existing, 2)
    assert capsys.readouterr().out == ""


def test_workers_that_do_not_reach_prefect_work_all_the_same(
    on_ray: Callable[..., list[Any]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on other machines than the one on whose loopback address this run's server listens."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED, temporary_settings
    from prefect_ray import RayTaskRunner

    submit = RayTaskRunner.submit

    def submit_far_away(*arguments: Any, **given: Any) -> Any:
        nowhere = f"http://127.0.0.1:{processes.free_port()}/api"
        with temporary_settings({PREFECT_API_URL: nowhere, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}):
            return submit(*arguments, **given)

    monkeypatch.setattr(RayTaskRunner, "submit", submit_far_away)
    assert len(on_ray([Slow(f"s{number}", place) for number in range(6)])) == 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a base model, and with the first iteration sampled and criticised in this process."""
    place = tmp_path_factory.mktemp("ray")
    folder = workspace(place / "here", place / "cache")
    edit(folder, "engine.rows_per_shard", 16)
    edit(folder, "engine.threads", 1)
    edit(folder, "base.sft.steps", 20)
    edit(folder, "base.sft.warmup_steps", 2)
    run(folder, "dvc", "repro", "critique@i01")
    return folder


def test_each_worker_loads_the_model_once(
    trained: Path, on_ray: Callable[..., list[Any]], place: Path, tmp_path: Path
) -> None:
    """Replies, stored bytes and figures are those of this process."""
    engine = yaml.safe_load((trained / "params.yaml").read_text())["engine"]
    record = json.loads((trained / "data/i00/pointer.json").read_text())
    questions = [[{"role": "user", "content": f"{a} {b}"}] for a in range(8) for b in range(8)]
    seen = []

    def watched(jobs: Any, finished: Any) -> None:
        for spent in on_ray([Watched(job, place) for job in jobs], root=trained):
            finished(spent)

    for name, map_shards in (("here", run_here), ("there", watched)):
        opener = Opener(trained, engine, tmp_path / name, map_shards)
        model = opener(Pointer(record["path"], record["digest"]))
        replies = model.generate(questions, Sampling(2, 1.0, 1.0, 8, 1), "x")
        scores = model.score(questions, ["1"] * len(questions), "y")
        files = {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.*") if p.is_file()}
        figures = model.take_tally().figures()
        seen.append((replies, scores, files, {k: v for k, v in figures.items() if "second" not in k}))
    assert seen[0] == seen[1]
    workers = {pid for pid, _ in noted(place)}
    assert len(workers) == 2
    assert sorted(words for words in noted(place) if words[1] == "False") == sorted([pid, "False"] for pid in workers)


def cluster_of(folder: Path) -> dict[int, psutil.Process]:
    """The processes of the clusters that a repository has started and that are still there."""
    info = state.read_json(folder / ".autodidact/prefect/server.json") or {}
    heads = [psutil.Process(kept["pid"]) for kept in info.get("kept", {}).values() if psutil.pid_exists(kept["pid"])]
    return {process.pid: process for head in heads for process in [head, *head.children(recursive=True)]}


def figures(folder: Path, name: str) -> dict[str, float]:
    """Counts of the newest execution of a stage."""
    paths = (folder / ".autodidact/records").glob(f"{name}*.json")
    record = max((json.loads(path.read_text()) for path in paths), key=lambda record: record["started"])
    return {k: v for k, v in record["figures"].items() if "second" not in k}


@pytest.mark.parametrize("how", ["dvc repro, a cluster of its own", "flows.evolve, an existing cluster"])
def test_a_run(trained: Path, existing: dict[str, Any], tmp_path: Path, how: str) -> None:
    """Stages share the cluster; bytes and figures are those of the local run; what the run started is gone after it."""
    names = ("sample@i01", "critique@i01")
    before, counted = digests(trained), [figures(trained, name) for name in names]
    own = how.startswith("dvc")
    edit(trained, "runner", RAY if own else {**RAY, "address": existing["client"]})
    shutil.rmtree(trained / ".autodidact/scratch")
    words = ["dvc", "repro", "-f", "-s", *names] if own else ["python", "-m", "flows.evolve", names[1]]
    if not own:
        forget(trained, names)
    with (tmp_path / "said").open("w") as out:
        process = subprocess.Popen(words, cwd=trained, env=environment(trained), stdout=out, stderr=out)
    seen: dict[int, psutil.Process] = {}
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen |= cluster_of(trained)
        time.sleep(0.2)
    said = (tmp_path / "said").read_text()
    assert process.returncode == 0, said
    assert said.count("Ray: 127.0.0.1:") == int(own)
    assert digests(trained) == before
    assert [figures(trained, name) for name in names] == counted
    assert bool(seen) == own
    assert psutil.wait_procs(seen.values(), timeout=20)[1] == []
    edit(trained, "runner", LOCAL)

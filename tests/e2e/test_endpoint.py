"""A run whose engine is an endpoint, killed in the middle: what had arrived is paid for once."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.support.endpoint import Answer, Body, Endpoint, completion
from tests.support.workspace import digests, edit, environment, kept_server, ran, requests_made, run

pytestmark = pytest.mark.slow


KEY = "sk-THE-SECRET-of-this-test"
AT_ONCE = 4
SERVING = {"key_variable": "TEST_ENDPOINT_KEY", "concurrency": AT_ONCE, "retries": 1, "backoff": 0.01}


def answer(body: Body, before: int) -> Answer:
    """A solution to a puzzle, a number to any other question; one puzzle is always refused."""
    time.sleep(0.01)
    words, chance = body["prompt"].split(), random.Random(body["prompt"] + str(body.get("seed")))
    if words[0] != "solve":
        return completion(body, str(chance.randint(1, 28)))
    if body["seed"] % 31 == 0:
        return 500
    a, b = words[1:3]
    return completion(body, chance.choice([f"{a} + {b} = {int(a) + int(b)}", f"{a} * {b} = {chance.randint(1, 28)}"]))


def figures(folder: Path, stage: str) -> dict[str, float]:
    """What the last execution of a stage logged."""
    records = [json.loads(path.read_text()) for path in (folder / ".autodidact/records").glob(f"{stage}-*.json")]
    last: dict[str, float] = max(records, key=lambda record: record["started"])["figures"]
    return last


def test_a_run_killed_in_the_middle_asks_only_for_what_is_missing(
    copy: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(tmp_path)
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    local = requests_made(folder)
    with Endpoint(answer) as server, kept_server(folder):
        edit(folder, "engine.name", "openai")
        for name, value in {**SERVING, "base_urls": [server.url], "quarantine_share": 0.1}.items():
            edit(folder, f"serving.openai.{name}", value)
        assert "ok: " in run(folder, "python", "-m", "flows.check")
        process = subprocess.Popen(
            ["dvc", "repro", "critique@i01"], cwd=folder, env=environment(folder), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while len(server.asked) < 100:
            assert process.poll() is None
            time.sleep(0.005)
        stage = next(
            record for path in (folder / ".autodidact/records").glob("sample@i01-*.json")
            if (record := json.loads(path.read_text()))["status"] == "running"
        )  # fmt: skip
        os.kill(stage["pid"], signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(server.asked) < 200
        assert ran(run(folder, "dvc", "repro", "critique@i01")) == ["sample@i01", "critique@i01"]
        refused = [body for body in server.asked if body.get("seed", 1) % 31 == 0]
        assert server.repeated() <= AT_ONCE + len(refused)
        assert {body["model"] for body in server.asked} == {"data/i00/candidate"}
        made = digests(folder)
        told = figures(folder, "sample@i01")
        lost = len({(body["prompt"], body["seed"]) for body in refused})
        assert 0 < lost < 24
        assert (told["requests"], told["requests_quarantined"], told["samples"]) == (240, lost, 240 - lost)
        assert told["requests_made"] < 200
        samples = pl.read_parquet(folder / "data/i01/samples.parquet")
        assert samples.height == 240 - lost
        assert set(samples["finish_reason"]) == {"stop"}
        assert samples["response"].str.len_chars().min() > 0

        asked = len(server.asked)  # with every reply in the log, only the refused requests are made again
        run(folder, "dvc", "repro", "-f", "-s", "sample@i01", "critique@i01")
        assert len(server.asked) - asked == 2 * lost
        assert figures(folder, "critique@i01")["requests_made"] == 0
        assert digests(folder) == made
    assert sum(requests_made(folder).values()) > sum(local.values())
    run(folder, "python", "-m", "flows.track")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)

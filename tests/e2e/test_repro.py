"""The whole graph as a user runs it: real DVC, Prefect and MLflow, three iterations at miniature size."""

import json
import sqlite3

import polars as pl
import pytest

from tasks.core import tables
from tests.support.workspace import digests, edit, lock, ran, run, use, workspace

pytestmark = pytest.mark.slow


STAGES = 28  # prepare, base, three iterations of eight, evaluate@i00, report


@pytest.fixture(scope="module")
def repository(copy, tmp_path_factory):
    return copy(tmp_path_factory.mktemp("repro"))


def test_every_stage_ran_once_and_is_locked(finished, repository):
    output = (finished.parent / "output.txt").read_text()
    assert len(ran(output)) == len(set(ran(output))) == STAGES
    assert len(lock(repository)) == STAGES
    assert output.count("http://127.0.0.1") == 1  # one Prefect server, its address said once


def test_again_nothing_runs(repository):
    assert "up to date" in run(repository, "dvc", "repro")
    assert "up to date" in run(repository, "dvc", "status")
    assert "0 stages brought up to date" in run(repository, "python", "-m", "flows.evolve")
    assert run(repository, "git", "status", "--porcelain", "data").strip() in ("", "?? data/")


def test_the_one_process_flow_without_any_state_gives_the_same_bytes(repository):
    """Neither scratch nor Prefect nor MLflow nor DVC's cache has anything to do with what comes out."""
    other = workspace(repository.parent / "evolve", repository.parent / "cache2")
    run(other, "python", "-m", "flows.evolve")
    assert digests(other) == digests(repository)
    assert lock(other) == lock(repository)
    assert "up to date" in run(other, "dvc", "status")
    assert ran(run(other, "dvc", "repro")) == []


def test_every_trained_row_has_a_life(repository):
    data = repository / "data"
    for key in ("i01", "i02", "i03"):
        prompts = set(tables.read(data / key / "prompts.parquet", tables.PROMPTS)["prompt_id"])
        candidates = pl.concat(
            [tables.read(data / key / f"{name}.parquet", tables.CANDIDATES) for name in ("samples", "refinements")]
        )
        critiques = pl.concat(
            [tables.read(data / key / f"{n}.parquet", tables.CRITIQUES) for n in ("critiques", "refinement_critiques")]
        )
        rows = tables.read(data / key / "dataset/sft.parquet", tables.SFT)
        own = rows.filter(pl.col("iteration") == key)
        assert own.height
        assert set(own["prompt_id"]) <= prompts
        assert set(own["candidate_id"]) <= set(candidates["candidate_id"])
        assert set(own["candidate_id"]) <= set(critiques.filter(pl.col("verdict"))["candidate_id"])
        parents = set(candidates["parent_id"].drop_nulls())
        assert parents <= set(candidates["candidate_id"])
        lineage = json.loads((data / key / "candidate/lineage.json").read_text())
        policy = json.loads((data / key / "policy.json").read_text())
        assert {"initial", "reference"} <= set(lineage)
        assert policy["digest"]
    assert tables.read(data / "i03/prompts.parquet", tables.PROMPTS)["answer"].null_count() > 0


def test_the_loop_never_meets_a_held_out_problem(repository):
    data = repository / "data"
    held_out = set(tables.read(data / "tasks/heldout.parquet", tables.PROMPTS)["prompt_id"])
    for key in ("i01", "i02", "i03"):
        assert held_out.isdisjoint(tables.read(data / key / "prompts.parquet", tables.PROMPTS)["prompt_id"])


def test_metrics_and_plots_are_where_a_dvc_user_looks(repository):
    shown = json.loads(run(repository, "dvc", "metrics", "show", "--json"))[""]["data"]
    accuracies = {path.split("/")[1]: figures["data"]["accuracy"] for path, figures in shown.items()}
    assert set(accuracies) == {"i00", "i01", "i02", "i03"}
    assert "index.html" in run(repository, "dvc", "plots", "show")
    report = pl.read_csv(repository / "data/report/iterations.csv")
    assert report["accuracy"].to_list() == [accuracies[key] for key in report["iteration"]]


def test_mlflow_has_the_tree_and_is_rebuilt_from_the_artifacts(repository):
    run(repository, "python", "-m", "flows.track")
    database = repository / ".autodidact/mlflow/mlflow.db"

    def counted(where):
        with sqlite3.connect(database) as connection:
            query = f"select count(distinct run_uuid) from tags where key = 'stage' and value {where}"
            return connection.execute(query).fetchone()[0]

    assert counted("= 'sample'") == 3
    assert counted("= 'evaluate'") == 4
    for file in database.parent.glob("mlflow.db*"):
        file.unlink()
    run(repository, "python", "-m", "flows.track")
    assert counted("= 'sample'") == 3
    assert "i03" in run(repository, "python", "-m", "flows.summary")


def test_an_override_of_train_leaves_everything_before_it_alone(repository):
    edit(repository, "iterations.i03.train", {"sft": {"learning_rate": 0.0005}})
    assert ran(run(repository, "dvc", "repro"))[0] == "train@i03"
    changed = ran(run(repository, "dvc", "repro"))
    assert changed == []
    edit(repository, "iterations.i03.train", {})
    restored = run(repository, "dvc", "repro")
    assert "Running stage" not in restored  # the run cache has it


def test_a_gate_that_decides_the_same_reruns_no_iteration(repository):
    """Once with another tolerance, as wide for every decision: the gates say it otherwise, the policies stay."""
    before = digests(repository)
    edit(repository, "promote.tolerance", 1.0)
    run(repository, "dvc", "repro")
    policies = digests(repository)
    edit(repository, "promote.tolerance", 0.99)
    assert set(ran(run(repository, "dvc", "repro"))) == {"promote@i01", "promote@i02", "promote@i03"}
    after = digests(repository)
    assert {path for path in after if after[path] != policies[path]} == {
        f"data/{key}/policy.json" for key in ("i01", "i02", "i03")
    }
    use(repository, "self_evolution")
    run(repository, "dvc", "repro")
    assert digests(repository) == before


def test_bad_params_are_refused_with_exit_code_2_and_nothing_is_lost(repository):
    before = digests(repository)
    edit(repository, "sample.iid.temprature", 1.0)
    said = run(repository, "python", "-m", "flows.check", code=2)
    assert "did you mean 'temperature'" in said
    assert "did you mean 'temperature'" in run(repository, "python", "-m", "flows.evolve", code=2)
    assert "did you mean 'temperature'" in run(repository, "dvc", "repro", "sample@i01", code=255)
    use(repository, "self_evolution")
    assert "up to date" in run(repository, "dvc", "status")
    assert digests(repository) == before


def test_an_appended_iteration_runs_only_its_own_stages(repository):
    use(repository, "self_evolution", iterations=4)
    output = run(repository, "dvc", "repro")
    assert {name for name in ran(output) if not name.endswith("@i04")} == {"report"}
    assert len(ran(output)) == 9

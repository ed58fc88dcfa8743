"""No stage of a label-free loop sees the truth: neither the verifier, nor held-out answers, nor held-out results.

The stages run in this process, without DVC and Prefect, in a folder from which everything that only evaluation may
read has been taken away, and with a verifier that fails."""

import shutil

import polars as pl
import pytest

from flows.params import compose
from tasks.core import tables
from tasks.core.errors import LabelsForbidden
from tasks.families.countdown.family import Countdown
from tasks.families.sums.family import Sums
from tests.support.inprocess import perform, use

LOOP = ("synthesize", "sample", "critique", "refine", "filter", "train")


BASED = ("data/tasks", "data/i00", "data/evaluations/i00.json")


def prepared(finished, root, recipe):
    """A folder with what the finished run had before its first iteration: a base model and its evaluation."""
    for name in BASED:
        if not (finished / name).exists():
            continue  # what no stage of the loop reads
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (finished / name).is_dir() else shutil.copy)(finished / name, root / name)
    use(root, recipe, "mini")
    return root


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """A folder with the data and the base model of sums, in miniature."""
    root = tmp_path_factory.mktemp("sums")
    use(root, "lmsi", "mini")
    for stage in ("prepare", "base"):
        perform(root, stage)
    return root


FEW = {"self_evolution", "lmsi", "self_rewarding", "unfiltered"}  # of each kind one is looked at in every test run
LABEL_FREE = [
    pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
    for name in compose.names()
    if not compose.read(name).labels and compose.read(name).family != "strings" and compose.read(name).params["train"]
]


@pytest.mark.parametrize("recipe", LABEL_FREE)
def test_a_label_free_iteration_works_without_any_truth(request, tmp_path, monkeypatch, recipe):
    place = "sums" if compose.read(recipe).family == "sums" else "finished"
    root = prepared(request.getfixturevalue(place), tmp_path, recipe)
    (root / "data/tasks/heldout.parquet").unlink()
    (root / "data/tasks/probe.parquet").unlink()
    shutil.rmtree(root / "data/i00/evaluation", ignore_errors=True)
    shutil.rmtree(root / "data/evaluations", ignore_errors=True)

    def sealed(*arguments):
        raise AssertionError("a stage of the loop asked for the truth")

    for family in (Countdown, Sums):
        monkeypatch.setattr(family, "verify", sealed)
        monkeypatch.setattr(family, "gold", sealed)
    for stage in LOOP:
        context = perform(root, stage, "i01")
        assert not [path for path in context.reads if "heldout" in path or "evaluation" in path]
    prompts = tables.read(root / "data/i01/prompts.parquet", tables.PROMPTS)
    assert prompts["answer"].null_count() == prompts.height
    assert (root / "data/i01/candidate/model.safetensors").is_file()


def test_the_oracle_declares_its_labels_and_needs_them(finished, tmp_path):
    root = prepared(finished, tmp_path, "oracle")
    given = (root / "params.yaml").read_text()
    for stage in LOOP[:2]:
        perform(root, stage, "i01")
    assert perform(root, "critique", "i01").labels
    verdicts = tables.read(root / "data/i01/critiques.parquet", tables.CRITIQUES)
    assert "verifier" in set(verdicts["critic"])
    (root / "params.yaml").write_text(given.replace("labels: true", "labels: false"))
    with pytest.raises(LabelsForbidden):
        perform(root, "critique", "i01")


def test_promotion_does_not_read_held_out_results(finished, tmp_path):
    root = prepared(finished, tmp_path, "unfiltered")
    for stage in (*LOOP, "evaluate", "promote"):
        context = perform(root, stage, "i01")
    assert not [path for path in context.reads if "metrics.json" in path or "predictions" in path]
    before = (root / "data/i01/policy.json").read_bytes()
    for key in ("i00", "i01"):
        (root / "data" / key / "evaluation/metrics.json").unlink()
        pl.DataFrame().write_parquet(root / "data" / key / "evaluation/predictions.parquet")
    perform(root, "promote", "i01")
    assert (root / "data/i01/policy.json").read_bytes() == before

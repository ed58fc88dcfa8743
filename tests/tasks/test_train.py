"""The stage train: what it writes, what it points at, what it refuses."""

import json
from dataclasses import replace

import polars as pl
import pytest
import torch

from tasks import base, train
from tasks.core import tables
from tasks.core.errors import BadInput, OutOfMemory, StageFailed, UnknownName
from tasks.core.models import folders
from tasks.core.training import trainers
from tests.support import tiny
from tests.support.stages import BASE, DPO, TRAIN, candidate, rows

torch.set_num_threads(1)


def test_train_writes_a_candidate_with_its_lineage(trained):
    train.run(trained)
    folders.validate_folder(candidate(trained))
    lineage = json.loads((candidate(trained) / "lineage.json").read_text())
    start = {"path": "data/i00/candidate", "digest": folders.digest(trained.root / "data/i00/candidate")}
    assert lineage["initial"] == lineage["reference"] == start
    assert lineage["iteration"] == "i01"
    assert lineage["rows"] == {"sft": {"own": 5, "copy": 5}}
    assert len(lineage["dataset"]) == 32
    assert trained.tags["initial"] == start["digest"]
    before = (trained.root / "data/i00/candidate/model.safetensors").read_bytes()
    assert (candidate(trained) / "model.safetensors").read_bytes() != before


def test_memory_that_runs_out_names_the_section(trained, monkeypatch):
    def fail(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainers, "log_probabilities", fail)
    named = {"mine": {"block": "dpo", **DPO}}
    for stage, section, options in (
        (base, "base.sft", base.parse(BASE)),
        (train, "train.sft", train.parse(TRAIN)),
        (train, "train.mine", train.parse(named)),
    ):
        with pytest.raises(OutOfMemory, match=rf"lower {section}\.pass_tokens \(given 16384\)"):
            stage.run(replace(trained, options=options))


def test_sft_runs_before_dpo_and_dpo_starts_from_it(trained, tmp_path):
    def run(section, name):
        context = replace(trained, options=train.parse(section), staging=tmp_path / name, figures={}, curves=[])
        train.run(context)
        return context, (tmp_path / name / "data/i01/candidate/model.safetensors").read_bytes()

    both, end = run({"a_dpo": {"block": "dpo", **DPO}, "b_sft": {"block": "sft", **TRAIN["sft"]}}, "both")
    assert [point["step"] for point in both.curves] == list(range(1, 9))
    assert {"sft_tokens", "dpo_tokens"} <= set(both.figures)
    assert end not in (run(TRAIN, "sft")[1], run({"dpo": DPO}, "dpo")[1])
    assert not list((trained.scratch / "training").glob("*/*"))


def test_what_was_trained_before_a_block_failed_is_taken_up(trained, tmp_path, monkeypatch):
    """With other options of the block that failed; not with others of its own."""
    fitted, real = [], trainers.fit

    def fit(request, progress):
        fitted.append(request.kind)
        if request.kind == "dpo" and failing:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(request, progress)

    def run(name, dpo=DPO, **sft):
        section = {"sft": {**TRAIN["sft"], **sft}, "dpo": dpo}
        context = replace(trained, options=train.parse(section), staging=tmp_path / name, figures={}, curves=[])
        fitted.clear()
        train.run(context)
        return context

    monkeypatch.setattr(trainers, "fit", fit)
    failing = True
    for name, changes, asked in (
        ("first", {}, ["sft", "dpo"]),
        ("second", {"dpo": {**DPO, "pass_tokens": 64}}, ["dpo"]),
        ("third", {"learning_rate": 0.02}, ["sft", "dpo"]),
    ):
        with pytest.raises(OutOfMemory):
            run(name, **changes)
        assert fitted == asked
    failing = False
    on = run("on")
    assert fitted == ["dpo"]
    assert not list((trained.scratch / "training").glob("*/*"))
    anew = run("anew")
    assert fitted == ["sft", "dpo"]
    assert on.curves == anew.curves
    assert {k: v for k, v in on.figures.items() if "second" not in k and k != "training_tokens"} == {
        k: v for k, v in anew.figures.items() if "second" not in k and k != "training_tokens"
    }
    for name in ("model.safetensors", "lineage.json"):
        assert len({(tmp_path / run / "data/i01/candidate" / name).read_bytes() for run in ("on", "anew")}) == 1


def test_without_blocks_the_candidate_is_the_initial_model(trained):
    train.run(replace(trained, options=train.parse({})))
    assert {path.name for path in candidate(trained).iterdir()} == {"pointer.json", "lineage.json"}
    assert folders.digest(candidate(trained)) == folders.digest(trained.root / "data/i00/candidate")


def test_a_model_that_changed_since_its_promotion_is_refused(trained):
    (trained.root / "data/i00/candidate/config.json").write_text("{}")
    with pytest.raises(BadInput, match="has changed since it was promoted"):
        train.run(trained)


def test_data_and_mixture_must_agree(trained):
    trained.root.joinpath("data/i01/dataset/sft.parquet").unlink()
    table = rows(["own", "copy"]).filter(pl.col("part") == "copy")
    tables.write(table, trained.root / "data/i01/dataset/sft.parquet", tables.SFT)
    with pytest.raises(StageFailed, match="2 rows of 'own' a step"):
        train.run(trained)


def test_train_section_is_checked():
    with pytest.raises(UnknownName, match="did you mean 'sft'"):
        train.parse({"sftt": {}})
    with pytest.raises(BadInput, match=r"train\.sft\.mixture: is missing"):
        train.parse({"sft": tiny.TRAINING})

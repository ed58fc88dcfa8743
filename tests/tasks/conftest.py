"""Fixtures of the stages' tests."""

from dataclasses import replace

import pytest
import torch

from tasks import base, train
from tasks.core import tables
from tasks.core.context import Context
from tests.support.stages import BASE, TRAIN, Words, pairs, rows

torch.set_num_threads(1)


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.families.load", lambda root: Words([":", *map(str, range(10))]))
    (tmp_path / "data/tasks").mkdir(parents=True)
    (tmp_path / "data/tasks/family.json").write_text('{"options": {}}')
    tables.write(rows(["copy"]), tmp_path / "data/tasks/corpus.parquet", tables.SFT)
    return Context(
        stage="base",
        iteration="i00",
        row=dict.fromkeys(("previous", "initial", "reference", "judge"), "i00"),
        options=base.parse(BASE),
        seed=3,
        labels=False,
        engine={},
        root=tmp_path,
        staging=tmp_path,  # what is written is there for the next stage
        scratch=tmp_path / "scratch",
        open_model=lambda pointer: pytest.fail("training asks no model"),
    )


@pytest.fixture
def trained(context):
    """After base, with a dataset of i01."""
    base.run(context)
    folder = context.root / "data/i01/dataset"
    tables.write(rows(["own", "copy"]), folder / "sft.parquet", tables.SFT)
    tables.write(pairs(), folder / "pairs.parquet", tables.PAIRS)
    return replace(context, stage="train", iteration="i01", options=train.parse(TRAIN), figures={}, curves=[])

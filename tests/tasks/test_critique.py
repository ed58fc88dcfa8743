"""The critique stage: opinions by the judge that the row names, and a note of how they were made."""

import json

import pytest

from tasks import critique, families
from tasks.core import tables
from tasks.core.errors import LabelsForbidden
from tests.support.family import Adding
from tests.support.models import policy, scripted_model
from tests.support.work import context, prompts, sampled

SECTION = {"own": {"block": "factored_critique", "max_new_tokens": 4}, "vote": {}}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "read", lambda context: Adding())
    table = prompts("add 2 3", "add 1 1")
    tables.write(table, tmp_path / "data/i02/prompts.parquet", tables.PROMPTS)
    tables.write(sampled(table, ["5", "6"], ["2"]), tmp_path / "data/i02/samples.parquet", tables.CANDIDATES)
    policy(tmp_path, "i00")
    policy(tmp_path, "i01", "e" * 32)
    return tmp_path


def adds(prompt, draw):
    return str(sum(int(number) for number in prompt.split()[1:]))


def test_the_judge_of_the_row_is_asked_and_noted(repository):
    opened = []
    model, _ = scripted_model(repository, adds)

    def open_model(pointer):
        opened.append(pointer.path)
        return model

    row = {"previous": "i01", "initial": "i01", "reference": "i01", "judge": "i00", "past": "i00"}
    given = context(repository, "critique", "i02", critique.parse(SECTION), open_model, row=row)
    critique.run(given)
    assert set(opened) == {"data/i00/candidate"}
    made = tables.read(repository / "data/i02/critiques.parquet", tables.CRITIQUES)
    assert dict(made.group_by("critic").len().iter_rows()) == {"own": 3, "vote": 3}
    noted = json.loads((repository / "data/i02/critics.json").read_text())
    assert noted["judge"] == {"path": "data/i00/candidate", "digest": "d" * 32}
    assert noted["critics"] == {"own": SECTION["own"], "vote": {"block": "vote"}}
    assert given.figures["critiques"] == 6
    assert given.figures["own_accepted"] == pytest.approx(2 / 3)


def test_the_truth_is_closed_without_labels(repository):
    model, _ = scripted_model(repository, adds)
    options = critique.parse({"truth": {"block": "verifier"}})
    with pytest.raises(LabelsForbidden, match="says `labels: false`"):
        critique.run(context(repository, "critique", "i02", options, lambda pointer: model))
    critique.run(context(repository, "critique", "i02", options, lambda pointer: model, labels=True))
    made = tables.read(repository / "data/i02/critiques.parquet", tables.CRITIQUES)
    assert sorted(made["verdict"]) == [False, True, True]

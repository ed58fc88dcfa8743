"""The refine stage: what the critic refused is revised, and judged as critique judged."""

import json

import polars as pl
import pytest

from tasks import critique, families, refine
from tasks.core import tables
from tasks.core.errors import UnknownName
from tests.support.family import Adding
from tests.support.models import policy, scripted_model
from tests.support.work import context, prompts, sampled

CRITICS = {"own": {"block": "factored_critique", "max_new_tokens": 4}, "vote": {}}
REVISE = {"critic": "own", "per_prompt": 1, "rounds": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4}


def reply(prompt, draw):
    return "5" if prompt.startswith("fix") else str(sum(int(number) for number in prompt.split()[1:]))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """With the samples of one prompt, of which the critic refused the second."""
    monkeypatch.setattr(families, "read", lambda context: Adding())
    table = prompts("add 2 3")
    tables.write(table, tmp_path / "data/i01/prompts.parquet", tables.PROMPTS)
    tables.write(sampled(table, ["5", "6"]), tmp_path / "data/i01/samples.parquet", tables.CANDIDATES)
    policy(tmp_path, "i00")
    model, _ = scripted_model(tmp_path, reply)
    critique.run(context(tmp_path, "critique", "i01", critique.parse(CRITICS), lambda pointer: model))
    return tmp_path


def refined(repository, section, **given):
    model, engine = scripted_model(repository, reply)
    made = context(repository, "refine", "i01", refine.parse(section), lambda pointer: model, **given)
    refine.run(made)
    return made, engine


def test_revisions_name_their_parents_and_are_judged_alike(repository):
    given, _ = refined(repository, {"revise": {"block": "critique_revise", **REVISE}})
    samples = pl.read_parquet(repository / "data/i01/samples.parquet")
    [row] = tables.read(repository / "data/i01/refinements.parquet", tables.CANDIDATES).iter_rows(named=True)
    assert row["parent_id"] == samples.filter(response="6")["candidate_id"][0]
    assert (row["response"], row["turn"], row["source"]) == ("5", 1, "revise")
    judged = tables.read(repository / "data/i01/refinement_critiques.parquet", tables.CRITIQUES)
    assert judged.select("critic", "verdict").rows() == [("own", True)]  # a vote needs the other answers
    assert given.figures["refinements"] == 1


def test_without_blocks_there_are_empty_tables(repository):
    _, engine = refined(repository, {})
    assert engine.asked == 0
    assert tables.read(repository / "data/i01/refinements.parquet", tables.CANDIDATES).is_empty()
    assert tables.read(repository / "data/i01/refinement_critiques.parquet", tables.CRITIQUES).is_empty()


def test_a_critic_that_did_not_judge_is_told_before_any_request(repository):
    (repository / "data/i01/critics.json").write_text(
        json.dumps({"judge": {"path": "data/i00/candidate", "digest": "d" * 32}, "critics": {"vote": {}}})
    )
    with pytest.raises(UnknownName, match=r"refine\.revise\.critic: unknown critic 'own'"):
        refined(repository, {"revise": {"block": "critique_revise", **REVISE}})

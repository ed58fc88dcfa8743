"""The filter stage on artifacts: rows with lineage, or an error that says what dropped everything."""

import polars as pl
import pytest

from tasks import filter as stage
from tasks.core import tables
from tasks.core.errors import BadInput, EmptyDataset
from tests.support.work import ROWS, context, prompts, sampled

SECTION = {"accepted": {"critic": "c"}, "deduplicate": {}, "rows": ROWS}


@pytest.fixture
def repository(tmp_path):
    """Two prompts with two samples each, of which the critic accepts the first."""
    table = prompts("add 1 1", "add 2 2")
    samples = sampled(table, ["2", "3"], ["4", "5"])
    rows = [
        (candidate, None, "c", 0, "", response in "24", 0.5, True, None, 1, "m")
        for candidate, response in samples.select("candidate_id", "response").iter_rows()
    ]
    critiques = pl.DataFrame(rows, schema=tables.CRITIQUES, orient="row")
    data = tmp_path / "data"
    for name, table_, schema in (
        ("i01/prompts", table, tables.PROMPTS),
        ("i01/samples", samples, tables.CANDIDATES),
        ("i01/critiques", critiques, tables.CRITIQUES),
        ("i01/refinements", tables.empty(tables.CANDIDATES), tables.CANDIDATES),
        ("i01/refinement_critiques", tables.empty(tables.CRITIQUES), tables.CRITIQUES),
        ("i00/dataset/sft", tables.empty(tables.SFT), tables.SFT),
        ("i00/dataset/pairs", tables.empty(tables.PAIRS), tables.PAIRS),
        ("tasks/corpus", tables.empty(tables.SFT), tables.SFT),
    ):
        tables.write(table_, data / f"{name}.parquet", schema)
    return tmp_path


def test_every_candidate_is_a_row_or_a_drop(repository):
    given = context(repository, "filter", "i01", stage.parse(SECTION))
    stage.run(given)
    rows = tables.read(repository / "data/i01/dataset/sft.parquet", tables.SFT)
    dropped = tables.read(repository / "data/i01/dataset/dropped.parquet", tables.DROPPED)
    samples = tables.read(repository / "data/i01/samples.parquet", tables.CANDIDATES)
    assert sorted(row[0]["content"] for row in rows["completion"].to_list()) == ["2", "4"]
    assert set(rows["candidate_id"]) | set(dropped["row_id"]) == set(samples["candidate_id"])
    assert (given.figures["kept"], given.figures["dropped"], given.figures["new_rows"]) == (2, 2, 2)


def test_an_empty_dataset_says_which_block_dropped_how_many_and_why(repository):
    section = {**SECTION, "threshold": {"critic": "c", "at_least": 0.9}}
    with pytest.raises(EmptyDataset) as raised:
        stage.run(context(repository, "filter", "i01", stage.parse(section)))
    assert "none of 4 candidates is left" in str(raised.value)
    assert "accepted dropped 2: refused" in str(raised.value)
    assert "threshold dropped 2: score below 0.9" in str(raised.value)
    assert not (repository / "data/i01/dataset").exists()


def test_sections_that_cannot_work_are_refused():
    with pytest.raises(BadInput, match="no block builds training rows"):
        stage.parse({"accepted": {"critic": "c"}})
    assert stage.parse({}) == []

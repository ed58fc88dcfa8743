import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import tables
from tasks.core.errors import MissingArtifact, TableMismatch
from tests.support.work import prompts


def test_bytes_do_not_depend_on_order_or_chunks(tmp_path):
    table = prompts(*(f"add {i} {j}" for i in range(20) for j in range(20)))
    shuffled = pl.concat([table[200:], table[:200]]).sample(fraction=1.0, shuffle=True, seed=3)
    tables.write(table, tmp_path / "a.parquet", tables.PROMPTS)
    tables.write(shuffled, tmp_path / "b.parquet", tables.PROMPTS)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert tables.read(tmp_path / "a.parquet", tables.PROMPTS).height == 400


def test_a_wrong_table_is_refused_with_its_columns(tmp_path):
    with pytest.raises(TableMismatch, match="column 'answer' is missing"):
        tables.write(prompts("add 1 2").drop("answer"), tmp_path / "p.parquet", tables.PROMPTS)
    assert not (tmp_path / "p.parquet").exists()
    prompts("add 1 2").with_columns(difficulty=pl.lit("hard")).write_parquet(tmp_path / "q.parquet")
    with pytest.raises(TableMismatch, match="'difficulty' is String, not Int32"):
        tables.read(tmp_path / "q.parquet", tables.PROMPTS)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(MissingArtifact, match="dvc repro"):
        tables.read(tmp_path / "none.parquet", tables.PROMPTS)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(TableMismatch, match="no readable Parquet"):
        tables.read(tmp_path / "bad.parquet", tables.PROMPTS)


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_ids_are_equal_exactly_for_equal_content(a, b):
    assert (tables.content_id(*a) == tables.content_id(*b)) == (a == b)


def test_id_survives_lone_surrogates():
    assert tables.content_id("\ud800") != tables.content_id("\ud801")


def test_a_datasets_card_names_the_tables_that_can_be_opened() -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard(tables.dataset_card({"sft": 0, "pairs": 1, "dropped": 1200}))
    assert card.data.to_dict()["configs"] == [
        {"config_name": "pairs", "data_files": "pairs.parquet", "default": True},
        {"config_name": "dropped", "data_files": "dropped.parquet"},
    ]
    assert "- `pairs`, prompt, chosen and rejected as messages: 1 row\n" in card.text
    assert "1,200 rows" in card.text
    assert not tables.dataset_card({"sft": 0}).startswith("---")

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.shards import Shard, cut, run_here


def counted(tmp_path, calls, key="k"):
    def compute():
        calls.append(key)
        return pl.DataFrame({"x": [1, 2]}), {"made": 2}

    return Shard(key, tmp_path / f"{key}.parquet", compute)


def test_a_shard_is_computed_once(tmp_path):
    calls = []
    shard = counted(tmp_path, calls)
    run_here([shard, shard])
    run_here([shard])
    assert calls == ["k"]
    assert shard.table()["x"].to_list() == [1, 2]


def test_a_damaged_shard_is_computed_again(tmp_path):
    calls = []
    shard = counted(tmp_path, calls)
    for damage in (
        lambda: shard.path.write_bytes(shard.path.read_bytes()[:-3]),
        lambda: shard.path.write_bytes(bytes([shard.path.read_bytes()[0] ^ 1]) + shard.path.read_bytes()[1:]),
        lambda: shard.path.unlink(),
        lambda: shard.receipt.unlink(),
        lambda: shard.receipt.write_text("{"),
    ):
        run_here([shard])
        damage()
        assert not shard.valid()
    run_here([shard])
    assert len(calls) == 6


@given(st.lists(st.integers(0, 10**6).map(str), max_size=300), st.integers(1, 40))
def test_blocks_cover_everything_in_order(texts, size):
    blocks = cut(texts, size)
    assert [i for block in blocks for i in block] == list(range(len(texts)))
    assert all(len(block) <= 2 * size for block in blocks)


def test_an_inserted_row_disturbs_only_its_neighbourhood():
    texts = [f"prompt {i}" for i in range(2000)]
    changed = [*texts[:1000], "a new row", *texts[1000:]]

    def contents(rows):
        return {tuple(rows[block.start : block.stop]) for block in cut(rows, 20)}

    before, after = contents(texts), contents(changed)
    assert len(before) > 50
    assert len(after - before) <= 3

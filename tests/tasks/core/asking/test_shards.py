import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.asking.shards import Shard, cut, run_here


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


def contents(rows, size):
    return {tuple(rows[block.start : block.stop]) for block in cut(rows, size)}


@given(st.integers(0, 400), st.integers(2, 40), st.sampled_from(["insert", "change", "remove"]))
def test_a_change_disturbs_only_its_neighbourhood(place, size, kind):
    texts = [f"prompt {i}" for i in range(401)]
    changed = [*texts[:place], *(["new"] if kind != "remove" else []), *texts[place + (kind != "insert") :]]
    disturbed = contents(changed, size) - contents(texts, size)
    assert sum(len(block) for block in disturbed) <= 8 * size


def test_a_change_disturbs_two_blocks_on_average():
    texts = [f"prompt {i}" for i in range(400)]
    disturbed = [contents([*texts[:i], "new", *texts[i:]], 8) - contents(texts, 8) for i in range(400)]
    assert sum(len(blocks) for blocks in disturbed) / 400 < 2


@given(st.integers(1, 200), st.integers(1, 40))
def test_rows_at_the_end_are_new_blocks(more, size):
    texts = [f"prompt {i}" for i in range(300)]
    kept = contents(texts, size) - contents([*texts, *(f"new {i}" for i in range(more))], size)
    assert len(kept) <= 1

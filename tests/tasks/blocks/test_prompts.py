import polars as pl
import pytest

from tasks.blocks import prompts as blocks
from tasks.core import tables
from tasks.core.blocks import bind
from tasks.core.errors import BadInput, StageFailed
from tasks.core.family import by_fingerprint
from tests.support import Adding, asker, prompts, user

POOL = prompts(*(f"add {i} 1" for i in range(10))).sort("prompt_id")


def supply(previous=None, model=None, pool=POOL, forbidden=()):
    before = tables.empty(tables.PROMPTS) if previous is None else previous
    family, reserved = (
        Adding(),
        tables.frame([{"fingerprint": f, "part": "heldout", "words": []} for f in forbidden], tables.FINGERPRINTS),
    )
    return blocks.Supply(family, pool, before, by_fingerprint(family.fingerprint, reserved), model, 1, "block")


def block(name, **options):
    [bound] = bind(blocks.BLOCKS, {name: options}, "synthesize")
    return bound


def test_iterations_walk_through_the_pool_and_wrap():
    take = block("fixed_unlabeled", n=4)
    first = take(supply())
    second = take(supply(first))
    third = take(supply(second))
    fourth = take(supply(third))
    ids = POOL["prompt_id"].to_list()
    assert first["prompt_id"].to_list() == ids[:4]
    assert second["prompt_id"].to_list() == ids[4:8]
    assert third["prompt_id"].to_list() == [*ids[8:], *ids[:2]]
    assert fourth["prompt_id"].to_list() == ids[2:6]


def test_a_pool_that_is_too_small_is_refused():
    with pytest.raises(BadInput, match="asks for 11 prompts, the pool has 10"):
        block("fixed_unlabeled", n=11)(supply())


def test_the_curriculum_grows_by_its_step():
    pool = POOL.with_columns(difficulty=pl.int_range(10, dtype=pl.Int32) % 5)
    grow = block("difficulty_curriculum", n=2, start=1, step=2)
    first = grow(supply(pool=pool))
    assert set(first["difficulty"]) == {1}
    assert set(grow(supply(first, pool=pool))["difficulty"]) == {3}
    with pytest.raises(BadInput, match="of difficulty 5, the pool has 0"):
        grow(supply(first.with_columns(difficulty=pl.lit(3, pl.Int32)), pool=pool))


def test_invented_prompts_are_parsed_deduplicated_and_kept_off_the_held_out_ones(tmp_path):
    replies = ["add 7 7", "add 7 7", "junk", "add 8 8", "add 0 1", "add 9 9"]
    model, _ = asker(tmp_path, lambda p, d: replies[d % 6])
    given = supply(model=model, forbidden={Adding().fingerprint(user("add 8 8"))})
    made = block("self_instruct", n=3, shots=0, attempts=2, temperature=1.0, top_p=1.0, max_new_tokens=8)(given)
    assert sorted(m[0]["content"] for m in made["messages"].to_list()) == ["add 7 7", "add 9 9"]
    assert given.figures == {"block_held_out": 1, "block_not_an_addition": 1, "block_repeated": 2}


def test_nothing_usable_says_what_was_wrong(tmp_path):
    model, _ = asker(tmp_path, lambda p, d: "junk")
    with pytest.raises(StageFailed, match=r"no usable prompt in 4 replies: \{.not an addition.: 4\}"):
        block("self_instruct", n=2, shots=1, attempts=2, temperature=1.0, top_p=1.0, max_new_tokens=8)(
            supply(model=model)
        )

import random

import polars as pl
import pytest

from tasks import families
from tasks.blocks import synthesize
from tasks.blocks.synthesize import self_instruct
from tasks.blocks.synthesize.supply import Supply, invented
from tasks.blocks.work import POLICY
from tasks.core import tables
from tasks.core.engines.contract import Completion
from tasks.core.errors import BadInput, StageFailed
from tasks.core.family import by_fingerprint
from tests.support.family import Adding
from tests.support.models import Unsteady, scripted_model
from tests.support.tiny import user
from tests.support.work import bound, prompts, text_options

POOL = prompts(*(f"add {i} 1" for i in range(10))).sort("prompt_id")


def supply(previous=None, model=None, pool=POOL, forbidden=(), known=None, family=None):
    before = tables.empty(tables.PROMPTS) if previous is None else previous
    earlier = tables.empty(tables.INVENTED) if known is None else known
    family = family or Adding()
    rows = [{"fingerprint": f, "part": "heldout", "words": []} for f in forbidden]
    guard = by_fingerprint(family.fingerprint, tables.frame(rows, tables.FINGERPRINTS))
    return Supply(family, pool, before, earlier, guard, {POLICY: model}, 1, "block")


def block(name, **options):
    return bound(synthesize.BLOCKS, name, **options)


def test_iterations_walk_through_the_pool_and_wrap():
    take = block("fixed_unlabeled", n=4)
    first = take(supply()).prompts
    second = take(supply(first)).prompts
    third = take(supply(second)).prompts
    fourth = take(supply(third)).prompts
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
    first = grow(supply(pool=pool)).prompts
    assert set(first["difficulty"]) == {1}
    assert set(grow(supply(first, pool=pool)).prompts["difficulty"]) == {3}
    with pytest.raises(BadInput, match="of difficulty 5, the pool has 0"):
        grow(supply(first.with_columns(difficulty=pl.lit(3, pl.Int32)), pool=pool))


def test_invented_prompts_are_parsed_deduplicated_and_kept_off_the_held_out_ones(tmp_path):
    replies = ["add 7 7", "add 7 7", "junk", "add 8 8", "add 0 1", "add 9 9"]
    model, _ = scripted_model(tmp_path, lambda p, d: replies[d % 6])
    given = supply(model=model, forbidden={Adding().fingerprint(user("add 8 8"))})
    made = block(
        "self_instruct", n=3, shots=0, attempts=2, temperature=1.0, top_p=1.0, max_new_tokens=8, near_copy=None
    )(given)
    assert sorted(m[0]["content"] for m in made.prompts["messages"].to_list()) == ["add 7 7", "add 9 9"]
    assert made.figures == {"block_held_out": 1, "block_not_an_addition": 1, "block_repeated": 2}


def test_requests_that_failed_are_counted():
    replies = ["add 7 7", None, "junk", "add 9 9"]
    given = supply(model=Unsteady(lambda p, d: replies[d % 4]))
    made = block(
        "self_instruct", n=2, shots=0, attempts=2, temperature=1.0, top_p=1.0, max_new_tokens=8, near_copy=None
    )(given)
    assert sorted(m[0]["content"] for m in made.prompts["messages"].to_list()) == ["add 7 7", "add 9 9"]
    assert made.figures == {"block_no_reply": 1, "block_not_an_addition": 1}


def test_nothing_usable_says_what_was_wrong(tmp_path):
    model, _ = scripted_model(tmp_path, lambda p, d: "junk")
    with pytest.raises(StageFailed, match=r"no usable prompt in 4 replies: \{.not an addition.: 4\}"):
        block("self_instruct", n=2, shots=1, attempts=2, temperature=1.0, top_p=1.0, max_new_tokens=8, near_copy=None)(
            supply(model=model)
        )


TEXT = families.create(
    "text", text_options(answer_field=None, extraction="text", heldout=1, probe=1, labelled=0, near_duplicates=None)
)
INSTRUCT = {"n": 2, "shots": 2, "attempts": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9, "near_copy": 0.7}


def text_prompts(*questions):
    rows = [
        {
            "prompt_id": tables.prompt_id("text", TEXT.prompt(q)), "messages": TEXT.prompt(q), "family": "text",
            "difficulty": 1, "source": "block", "parent_ids": [], "answer": None,
        }
        for q in questions
    ]  # fmt: skip
    return tables.frame(rows, tables.PROMPTS)


SHOWN = text_prompts("Write a short poem about the sea at night", "Name three animals that live in the forest")


def test_near_copies_and_everything_invented_before_are_refused_by_reason(tmp_path):
    replies = [
        "1. Write a short poem about the sea at noon\n2. Explain why leaves are green\n3. no",  # near copy, repeated, too short
        "Question: name THREE animals that live in the forest!",  # repeated
        "```\nDescribe how bread is baked at home\n```",
        "Describe how bread is baked at the home",  # near copy of the one before
        "Translate the sentence into French",
        "List five uses of a brick",  # more than are wanted
    ]
    before = invented(TEXT, text_prompts("Explain why leaves are green"), SHOWN, tables.empty(tables.INVENTED))
    model, _ = scripted_model(tmp_path, lambda p, d: replies[d])
    given = supply(model=model, pool=SHOWN, known=before, family=TEXT)
    made = block("self_instruct", **INSTRUCT)(given)
    assert [TEXT.question(m) for m in made.prompts["messages"].to_list()] == [
        "Describe how bread is baked at home",
        "Translate the sentence into French",
    ]
    assert made.figures == {"block_near_copy": 2, "block_repeated": 2, "block_too_short": 1}
    assert all(len(parents) == 2 for parents in made.prompts["parent_ids"].to_list())


def test_without_near_copy_only_equal_problems_are_refused(tmp_path):
    model, _ = scripted_model(tmp_path, lambda p, d: f"Write a short poem about the sea at noon {d}")
    given = supply(model=model, pool=SHOWN, family=TEXT)
    assert block("self_instruct", **INSTRUCT | {"near_copy": None})(given).prompts.height == 2


def test_a_prompt_that_was_cut_off_is_none(tmp_path):
    model, engine = scripted_model(tmp_path, lambda p, d: "")
    engine.generate = lambda prompts, sampling, first=0: [
        [Completion("1. Explain why leaves are green\n2. Describe how", 9, 9, -1.0, "length")] * sampling.n
        for _ in prompts
    ]
    given = supply(model=model, pool=SHOWN, family=TEXT)
    made = block("self_instruct", **INSTRUCT)(given)
    assert made.prompts.height == 1
    assert made.figures["block_unfinished"] == 6


def test_what_was_invented_is_carried_on():
    first = invented(Adding(), prompts("add 7 7", "add 0 1"), POOL, tables.empty(tables.INVENTED))
    assert first["fingerprint"].to_list() == ["7 7"]  # the other one is of the pool
    second = invented(Adding(), prompts("add 8 8", "add 7 7"), POOL, first)
    assert second["fingerprint"].to_list() == ["7 7", "8 8"]
    assert second.schema == tables.INVENTED


def slow_lcs(one, other):
    rows = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            rows[i + 1][j + 1] = rows[i][j] + 1 if a == b else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def test_rouge_l_is_that_of_the_textbook():
    assert self_instruct.rouge_l(
        ["the", "cat", "is", "on", "the", "mat"], ["the", "cat", "sat", "on", "the", "mat"]
    ) == pytest.approx(10 / 12)
    rng = random.Random(0)
    for _ in range(300):
        one, other = ([rng.choice("abcd") for _ in range(rng.randint(0, 90))] for _ in range(2))
        expected = 2 * slow_lcs(one, other) / (len(one) + len(other)) if one and other else 0.0
        assert self_instruct.rouge_l(one, other) == expected
        least = rng.choice([0.3, 0.5, 0.7, 1.0])
        assert self_instruct.Words(least, [" ".join(one)]).near(" ".join(other)) == (
            bool(one and other) and expected >= least
        )


def test_a_rouge_l_right_at_the_bound_is_a_near_copy():
    words = [f"w{i}" for i in range(20)]
    for common in range(1, 21):
        other = [*words[:common], *(f"x{i}" for i in range(20 - common))]
        assert self_instruct.Words(common / 20, [" ".join(words)]).near(" ".join(other))

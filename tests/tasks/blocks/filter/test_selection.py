from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.blocks.filter import selection
from tasks.core import tables
from tasks.core.errors import BadInput, UnknownName
from tests.support.tiny import user
from tests.support.work import ROWS, pairs, prompts, sampled, through


def state(scores, **earlier):
    """A selection over prompts "add i i" with, for each, responses and their (verdict, score) by critic `c`.
    `earlier`: its other tables."""
    table = prompts(*(f"add {i} {i}" for i in range(len(scores))))
    samples = sampled(table, *([response for response, _, _ in several] for several in scores))
    flat = [(v, s) for several in scores for _, v, s in several]
    rows = [
        (cid, None, "c", 0, "", verdict, score, score is not None, None if score is not None else "junk", 0, "m")
        for cid, (verdict, score) in zip(samples["candidate_id"], flat, strict=True)
    ]
    return selection.Selection(
        iteration="i02",
        prompts=table,
        candidates=samples,
        critiques=pl.DataFrame(rows, schema=tables.CRITIQUES, orient="row"),
        kept=samples,
        **earlier,
    )


def reasons(state):
    return dict(state.dropped.group_by("reason").len().iter_rows())


def sft_row(text, part, iteration=None):
    message = [{"role": "assistant", "content": text}]
    return {
        "row_id": tables.content_id(text), "part": part, "prompt": user(text), "completion": message, "weight": 1.0,
        "prompt_id": text, "candidate_id": None, "iteration": iteration,
    }  # fmt: skip


def test_accepted_deduplicated_capped_and_made_into_rows():
    first = state(
        [
            [("4", True, 1.0), ("4", True, 1.0), ("5", False, 0.0), ("x", None, None)],
            [("2", True, 1.0), ("3", True, 1.0)],
        ]
    )
    last = through(first, rows=ROWS, accepted={"critic": "c"}, deduplicate={}, cap={"per_prompt": 1, "first": "id"})
    assert reasons(last) == {"refused": 1, "no judgement: junk": 1, "duplicate": 1, "over the cap": 1}
    assert last.sft.height == 2
    assert set(last.sft["iteration"]) == {"i02"}
    assert last.kept.height + last.dropped.height == 6
    ids = set(first.candidates["candidate_id"])
    assert set(last.sft["candidate_id"]) <= ids
    assert set(last.dropped["row_id"]) <= ids


def test_the_order_in_the_file_does_not_matter():
    scores = [[("4", True, 1.0), ("4", True, 1.0), ("5", False, 0.0)]]
    one = through(state(scores), accepted={"critic": "c"}, deduplicate={}, rows=ROWS)
    two = through(state(scores), rows=ROWS, deduplicate={}, accepted={"critic": "c"})
    assert one.sft.equals(two.sft)
    assert one.dropped.equals(two.dropped)


def test_threshold_majority_length_and_well_formed():
    scores = [[("4", True, 0.6), ("5", False, 0.2), ("x y z", None, None)], [("1", True, 0.4)]]
    assert through(state(scores), t={"block": "threshold", "critic": "c", "at_least": 0.5}, rows=ROWS).sft.height == 1
    voted = through(state(scores), majority={"critic": "c", "at_least": 0.5}, rows=ROWS)
    assert reasons(voted) == {"not the most common answer": 1, "no judgement: junk": 1, "vote share below 0.5": 1}
    assert reasons(through(state(scores), length={"min_tokens": 1, "max_tokens": 2}, rows=ROWS)) == {
        "longer than 2 tokens": 1
    }
    assert reasons(through(state(scores), well_formed={}, rows=ROWS)) == {"no answer": 1}
    assert through(state(scores), keep_all={}, rows=ROWS).sft.height == 4


def test_best_against_worst_drops_ties_silence_and_equal_texts():
    scores = [
        [("4", None, 0.9), ("5", None, 0.1), ("6", None, 0.5)],
        [("4", None, 0.5), ("5", None, 0.5)],
        [("4", None, 0.9), ("4 ", None, 0.1)],
        [("4", None, None), ("5", None, None)],
        [("4", None, 0.9)],
    ]
    last = through(state(scores), pairs=pairs(critic="c", min_margin=0.1, per_prompt=1))
    assert last.pairs.select("margin", "weight").row(0) == (0.8, 1.0)
    assert last.pairs["chosen"][0][0]["content"] == "4"
    assert last.pairs["rejected"][0][0]["content"] == "5"
    assert last.pairs.height == 1
    assert reasons(last) == {"tie": 1, "equal texts": 1, "no candidate with a score": 1, "nothing to compare with": 1}


def test_vote_margin_is_the_weight():
    scores = [
        [("4", True, 0.6), ("4", True, 0.6), ("5", False, 0.2)],
        [("1", True, 0.3), ("2", False, 0.1)],
    ]
    last = through(
        state(scores),
        pairs=pairs("most", "least", critic="c", at_least=0.5, weight={"critic": None, "power": 1.0, "mean": None}),
    )
    assert last.pairs.select("margin", "weight").rows() == [(0.4, 0.4)]
    assert reasons(last) == {"no score of at least 0.5": 1}


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["1", "2", "1 ", "x"]), st.none(), st.sampled_from([None, 0.0, 0.5, 1.0])),
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_pair_prefers_what_is_not_better(scores):
    last = through(state(scores), pairs=pairs(critic="c", min_margin=0.25, per_prompt=3))
    known = dict(last.critiques.select("candidate_id", "score").iter_rows())
    for row in last.pairs.iter_rows(named=True):
        assert known[row["chosen_id"]] - known[row["rejected_id"]] >= 0.25
        assert row["chosen"][0]["content"].strip() != row["rejected"][0]["content"].strip()


def test_accumulate_and_replay():
    earlier = tables.frame([sft_row("old", "own", "i01"), sft_row("corpus", "solve")], tables.SFT)
    corpus = tables.frame([sft_row("a", "solve"), sft_row("b", "fact")], tables.SFT)
    scores = [[("4", True, 1.0)]]
    both = {"accepted": {"critic": "c"}, "rows": ROWS}
    last = through(
        state(scores, earlier_sft=earlier, corpus=corpus),
        **both,
        accumulate={"apart": False},
        replay={"parts": ["solve"]},
    )
    assert sorted(last.sft.select("part", "iteration").rows(), key=str) == [
        ("own", "i01"),
        ("own", "i02"),
        ("solve", None),
    ]
    shared = through(state(scores, earlier_sft=earlier, corpus=corpus), **both, accumulate={"apart": True})
    assert sorted(shared.sft.select("part", "iteration").rows()) == [("earlier", "i01"), ("own", "i02")]
    first = through(state(scores, corpus=corpus), **both, accumulate={"apart": True})
    assert sorted(first.sft["part"].to_list()) == ["earlier", "own"]
    with pytest.raises(UnknownName, match="did you mean 'fact'"):
        through(state(scores, earlier_sft=earlier, corpus=corpus), **both, replay={"parts": ["facts"]})


def test_a_filter_that_builds_nothing_is_refused():
    with pytest.raises(BadInput, match="no block builds training rows"):
        through(state([[("4", True, 1.0)]]), accepted={"critic": "c"})
    with pytest.raises(UnknownName, match="unknown critic 'cc'; did you mean 'c'"):
        through(state([[("4", True, 1.0)]]), accepted={"critic": "cc"}, rows=ROWS)


def compared(first, *rows):
    """The selection with comparisons by critic `c` in place of its critiques: responses, verdict, score."""
    ids = {response: name for name, response in first.candidates.select("candidate_id", "response").iter_rows()}
    made = [
        (
            ids[one],
            ids[two],
            "c",
            draw,
            "",
            verdict,
            score,
            score is not None,
            None if score is not None else "junk",
            0,
            "m",
        )
        for draw, (one, two, verdict, score) in enumerate(rows)
    ]
    return replace(first, critiques=pl.DataFrame(made, schema=tables.CRITIQUES, orient="row"))


def test_decided_comparisons_are_preferences_and_everything_else_is_counted():
    first = state(
        [[(name, None, None) for name in "pqrst"], [("u", None, None), ("v", None, None)], [("w", None, None)]]
    )
    judged = compared(
        first, ("p", "q", True, 1.0), ("p", "q", True, 1.0), ("q", "r", False, 0.0), ("q", "r", None, 0.5), ("r", "s", None, 0.5),
        ("s", "t", None, None), ("p", "t", True, 1.0), ("p", "t", False, 0.0), ("p", "r", True, 0.6), ("u", "v", False, 0.0),
    )  # fmt: skip
    done = through(judged, pairs_preferred={"critic": "c", "min_margin": 0.3, "per_prompt": 1})
    told = {
        (row["chosen"][0]["content"], row["rejected"][0]["content"]): row["margin"] for row in done.pairs.to_dicts()
    }
    assert told == {("p", "q"): 1.0, ("v", "u"): 1.0}
    assert reasons(done) == {"tie": 2, "junk": 1, "margin too small": 1, "over the cap": 1, "no pair compared": 1}
    more = through(judged, pairs_preferred={"critic": "c", "min_margin": 0.0, "per_prompt": 9})
    assert more.pairs.height == 4
    assert set(more.pairs["weight"]) == {1.0}


def test_win_rates_rank_for_the_blocks_that_want_a_score():
    first = state([[(name, None, None) for name in "pqr"]])
    judged = compared(first, ("p", "q", True, 1.0), ("q", "r", None, 0.5), ("p", "r", None, None))
    done = through(judged, pairs=pairs(critic="c", min_margin=0.1, per_prompt=1))
    [pair] = done.pairs.to_dicts()
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["margin"]) == ("p", "q", 0.75)
    kept = through(judged, threshold={"critic": "c", "at_least": 0.5}, rows=ROWS)
    assert {row["completion"][0]["content"] for row in kept.sft.to_dicts()} == {"p", "r"}


def test_preferences_are_between_candidates_that_were_kept():
    first = state([[("p", None, None), ("q", None, None)]])
    judged = compared(first, ("p", "q", True, 1.0))
    gone = replace(judged, kept=judged.kept.filter(pl.col("response") == "p"))
    done = through(gone, pairs_preferred={"critic": "c", "min_margin": 0.0, "per_prompt": 1})
    assert done.pairs.is_empty()
    assert reasons(done) == {"no pair compared": 1}


def test_a_cap_may_take_the_shortest_or_the_longest_first():
    scores = [[("4", True, 1.0), ("5 5 5", True, 1.0), ("6 6", True, 1.0)]]
    for first, kept in (("shortest", "4"), ("longest", "5 5 5")):
        last = through(state(scores), cap={"per_prompt": 1, "first": first}, rows=ROWS)
        assert [row["completion"][0]["content"] for row in last.sft.to_dicts()] == [kept]


def test_what_is_always_right_or_never_is_not_contested():
    scores = [[("4", True, 1.0), ("5", False, 0.0)], [("2", True, 1.0)], [("3", False, 0.0), ("x", None, None)]]
    last = through(state(scores), contested={"critic": "c"}, rows=ROWS)
    assert {row["completion"][0]["content"] for row in last.sft.to_dicts()} == {"4", "5"}
    assert reasons(last) == {"all of the prompt accepted": 1, "none of the prompt accepted": 2}

"""Critics of critics: rank agreement against scipy and by hand, acceptance by both, and the order in which critics run."""

from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.blocks import critique
from tasks.blocks.critique import consensus, judging
from tasks.blocks.critique.opinions import aggregate
from tasks.core import tables
from tasks.core.block import Block, Bound, bind
from tasks.core.errors import BadInput
from tests.support.work import prompts, sampled, work


@given(
    st.lists(
        st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
        min_size=2,
        max_size=8,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
def test_agreement_is_that_of_another_implementation(pairs):
    one, two = zip(*pairs, strict=True)
    assert consensus.kendall(one, two) == pytest.approx((stats.kendalltau(one, two).statistic + 1) / 2)
    assert consensus.spearman(one, two) == pytest.approx((stats.spearmanr(one, two).statistic + 1) / 2)
    assert consensus.top(one, two) == float(one.index(max(one)) == two.index(max(two)))


def test_agreement_at_its_edges():
    for measure in consensus.MEASURES.values():
        assert measure([0.3], [0.9]) == 1.0
        assert measure([1, 2, 3], [4, 5, 6]) == 1.0
        assert measure([0.5, 0.5], [0.5, 0.5]) == 1.0  # equal scores: the candidates' own order
    assert consensus.kendall([1, 2, 3], [3, 2, 1]) == 0.0
    assert consensus.spearman([1, 2, 3], [3, 2, 1]) == 0.0
    assert consensus.kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(2 / 3)
    assert consensus.top([1, 2], [2, 1]) == 0.0


def scoring(**told: Callable[[str], tuple[bool | None, float | None]]) -> list[Bound]:
    """Critics that give what a function says of a response."""

    def critic(says: Callable[[str], tuple[bool | None, float | None]]) -> Block:
        def run(given: judging.Work, options: judging.NoOptions) -> pl.DataFrame:
            verdicts = [[judging.Verdict(True, *says(answer.response))] for answer in given.answers]
            return judging.table(given, verdicts, [[0] for _ in verdicts], asked=False)

        return Block(run, gives=frozenset({"verdicts", "scores"}))

    return [Bound(name, name, critic(says), judging.NoOptions()) for name, says in told.items()]


def judged(critics, section, *responses):
    table = prompts(*(f"add {i} {i}" for i in range(len(responses))))
    samples = sampled(table, *responses)
    found = judging.judged(work(table, candidates=samples), [*bind(critique.BLOCKS, section, "critique"), *critics])
    texts = dict(samples.select("candidate_id", "response").iter_rows())
    return {
        name: {texts[row["candidate_id"]]: (row["verdict"], row["score"]) for row in aggregate(found, name).to_dicts()}
        for name in section
    }


def test_the_agreement_of_a_prompt_is_the_score_of_its_candidates():
    critics = scoring(a=lambda r: (None, float(r)), b=lambda r: (None, -float(r) if r in "12" else float(r)))
    section = {"agree": {"block": "rank_agreement", "of": ["a", "b"], "method": "kendall"}}
    found = judged(critics, section, ["1", "2", "3"], ["7", "8"])
    assert found["agree"] == {
        **dict.fromkeys(("1", "2", "3"), (None, pytest.approx(2 / 3, abs=1e-6))),
        **dict.fromkeys(("7", "8"), (None, 1.0)),
    }


def test_what_one_gave_no_score_counts_for_nothing():
    critics = scoring(a=lambda r: (None, float(r)), b=lambda r: (None, None if r == "2" else float(r)))
    section = {"agree": {"block": "rank_agreement", "of": ["a", "b"], "method": "kendall"}}
    assert judged(critics, section, ["1", "2", "3"], ["2"])["agree"] == {
        "1": (None, 1.0), "2": (None, None), "3": (None, 1.0)
    }  # fmt: skip


def test_both_accept():
    critics = scoring(a=lambda r: (r in "12", None), b=lambda r: (None if r == "4" else r in "13", None))
    found = judged(critics, {"all": {"block": "both", "of": ["a", "b"]}}, ["1", "2", "3", "4"])
    assert found["all"] == {"1": (True, 1.0), "2": (False, 0.5), "3": (False, 0.5), "4": (None, None)}


def test_critics_run_after_those_that_they_read():
    def both(name, *of):
        return bind(critique.BLOCKS, {name: {"block": "both", "of": list(of)}}, "critique")[0]

    last, first = both("a", "b", "z"), both("b", "y", "z")
    plain = scoring(y=lambda r: (True, None), z=lambda r: (True, None))
    assert [critic.name for critic in judging.in_order([last, first, *plain])] == ["y", "z", "b", "a"]
    assert [critic.name for critic in judging.in_order([last, *plain])] == ["y", "z"]  # what it reads is not there
    with pytest.raises(BadInput, match="a, b read one another in a circle"):
        judging.in_order([both("a", "b", "z"), both("b", "a", "z"), *plain])
    assert tables.CRITIQUES

"""Judges of free text: pairs in both orders, checklists, and verdicts from log-probabilities."""

from itertools import combinations
from math import exp, log

import polars as pl
import pytest

from tasks import families
from tasks.blocks import critique
from tasks.blocks.critique import judging, pairwise
from tasks.blocks.critique.opinions import aggregate, counted, outcomes
from tasks.core import tables
from tasks.core.block import bind
from tasks.core.errors import BadInput
from tests.support.family import Adding
from tests.support.models import scripted_model
from tests.support.work import prompts as additions
from tests.support.work import sampled, text_options, work

FAMILY = families.create(
    "text", text_options(answer_field=None, extraction="text", heldout=1, probe=1, labelled=0, near_duplicates=None)
)
DRAWN = {"draws": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 9}
GREEDY = {"draws": 1, "temperature": 0.0, "top_p": 1.0}
CRITERIA = ["It is short.", "It is right."]
FREE_TEXT_BLOCKS = [name for name in critique.BLOCKS if name.startswith("judge_") and name != "judge_pointwise"]


def answered(*responses, family=FAMILY):
    """PROMPTS with one prompt, and CANDIDATES with these responses to it."""
    messages = family.prompt("Name a colour.") if family is FAMILY else additions("add 2 3")["messages"][0].to_list()
    row = {
        "prompt_id": tables.prompt_id("text", messages), "messages": messages, "family": "text", "difficulty": 1,
        "source": "test", "parent_ids": [], "answer": None,
    }  # fmt: skip
    prompts = tables.frame([row], tables.PROMPTS)
    return prompts, sampled(prompts, responses, family=family)


def judged(tmp_path, block, options, responses, reply=None, score=None, family=FAMILY):
    """CRITIQUES with `response` and `other` in place of ids, and the engine."""
    prompts, samples = answered(*responses, family=family)
    judge, engine = scripted_model(tmp_path, reply or (lambda prompt, draw: ""))
    if score:
        engine.score = lambda asked, told, statistic: [[score(p, r), 0.0] for p, r in zip(asked, told, strict=True)]
    bounds = bind(critique.BLOCKS, {"c": {"block": block, **options}}, "critique")
    found = judging.judged(work(prompts, judge, family=family, candidates=samples), bounds)
    texts = dict(samples.select("candidate_id", "response").iter_rows())
    named = found.with_columns(response=pl.col("candidate_id").replace(texts), other=pl.col("other_id").replace(texts))
    return named, engine


def shown(prompt: str) -> list[str]:
    """What the judge's prompt quotes: the question and the responses."""
    return prompt.split("```\n")[1::2]


def prefers(best: str):
    """A judge that always finds one response better, and others alike."""

    def reply(prompt, draw):
        _, first, second = (text.strip() for text in shown(prompt))
        return f"Compared.\nWinner: {'A' if first == best else 'B' if second == best else 'tie'}"

    return reply


def test_both_orders_are_asked_and_must_agree(tmp_path):
    found, engine = judged(
        tmp_path, "judge_pairwise", {"pairs": None, **DRAWN}, ["red", "green", "blue", " red "], prefers("green")
    )
    assert engine.asked == 6  # three pairs, twice
    rows = {frozenset((row["response"], row["other"])): row for row in found.iter_rows(named=True)}
    assert set(rows) == {frozenset(pair) for pair in combinations(("red", "green", "blue"), 2)}
    for pair, row in rows.items():
        assert row["parsed"]
        better = None if "green" not in pair else row["response"] == "green"
        assert (row["verdict"], row["score"]) == (better, {None: 0.5, True: 1.0, False: 0.0}[better])
        assert row["text"].startswith("as A:\nCompared.")
    ranks = aggregate(found.select(list(tables.CRITIQUES)), "c").sort("score")
    assert ranks["score"].to_list() == [0.25, 0.25, 1.0]
    assert ranks["verdict"].null_count() == 3
    assert counted(found, "c") == {"c_decided": 2, "c_tie": 1}


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("Winner: A", "the orders disagree"),
        ("Winner: B", "the orders disagree"),
        ("no idea", "no verdict"),
        ("Winner: A or B", "a verdict in no form that can be read"),
    ],
)
def test_a_judge_that_prefers_a_place_or_says_nothing_gives_no_preference(tmp_path, reply, why):
    found, _ = judged(tmp_path, "judge_pairwise", {"pairs": 1, **DRAWN}, ["red", "green"], lambda p, d: reply)
    assert found.select("parsed", "verdict", "score", "why").rows() == [(False, None, None, why)]
    assert aggregate(found.select(list(tables.CRITIQUES)), "c")["score"].to_list() == [None, None]


def test_a_tie_in_one_order_only_is_no_agreement(tmp_path):
    replies = iter(["Winner: tie", "Winner: A"])
    found, _ = judged(tmp_path, "judge_pairwise", {"pairs": 1, **DRAWN}, ["red", "green"], lambda p, d: next(replies))
    assert found["why"].to_list() == ["the orders disagree"]


def test_draws_are_rows_and_their_mean_is_the_score(tmp_path):
    options = {"pairs": None, **DRAWN, "draws": 3, "temperature": 1.0}

    def reply(prompt, draw):
        return prefers("red" if draw else "green")(prompt, draw)

    found, _ = judged(tmp_path, "judge_pairwise", options, ["red", "green"], reply)
    assert found["draw"].to_list() == [0, 1, 2]
    [(one, _, better, score, _, why)] = outcomes(found.select(list(tables.CRITIQUES))).iter_rows()
    first_is_red = found["response"][0] == "red"
    assert (better, score, why) == (first_is_red, pytest.approx(2 / 3 if first_is_red else 1 / 3), None)
    assert one == found["candidate_id"][0]


@pytest.mark.parametrize("players", range(8))
def test_a_round_robin_has_every_pair_once_and_fair_beginnings(players):
    pairs = pairwise.round_robin(players)
    assert sorted(pairs) == list(combinations(range(players), 2))
    for length in range(len(pairs) + 1):
        played = [sum(player in pair for pair in pairs[:length]) for player in range(players)]
        assert not played or max(played) - min(played) <= 2
    assert len({player for pair in pairs[: (players + 1) // 2] for player in pair}) >= players - 1 or players < 2


def test_a_stated_number_of_pairs(tmp_path):
    found, engine = judged(
        tmp_path, "judge_pairwise", {"pairs": 2, **DRAWN}, ["red", "green", "blue", "pink"], prefers("red")
    )
    assert engine.asked == 4
    assert set(found["response"]) | set(found["other"]) == {"red", "green", "blue", "pink"}


def test_one_candidate_has_nobody_to_be_compared_with(tmp_path):
    found, engine = judged(tmp_path, "judge_pairwise", {"pairs": None, **DRAWN}, ["red", "red\n", " "], prefers("red"))
    assert (found.height, engine.asked) == (0, 0)


def test_a_checklist_is_asked_criterion_by_criterion(tmp_path):
    def reply(prompt, draw):
        met = "short" in prompt.split("Criterion:")[1] or shown(prompt)[1].strip() == "red"
        return f"Because.\nMet: {'yes' if met else 'no'}"

    found, engine = judged(tmp_path, "judge_checklist", {"criteria": CRITERIA, **DRAWN}, ["red", "green", " "], reply)
    assert engine.asked == 4
    rows = {row["response"]: row for row in found.iter_rows(named=True)}
    assert (rows["red"]["verdict"], rows["red"]["score"]) == (True, 1.0)
    assert (rows["green"]["verdict"], rows["green"]["score"]) == (False, 0.5)
    assert rows["green"]["text"] == "1. It is short.\nBecause.\nMet: yes\n2. It is right.\nBecause.\nMet: no"
    assert rows[" "]["why"] == "malformed response"
    assert rows["green"]["tokens"] == 8


def test_a_checklist_with_one_unread_reply_is_not_read(tmp_path):
    found, _ = judged(
        tmp_path, "judge_checklist", {"criteria": CRITERIA, **DRAWN}, ["red"],
        lambda p, d: "Met: yes" if "short" in p else "perhaps",
    )  # fmt: skip
    assert found.select("parsed", "score", "why").rows() == [(False, None, "criterion 2: no yes or no")]


def test_points_by_log_probabilities_are_their_expected_value(tmp_path):
    weights = {"Score: 0": 1, "Score: 1": 0, "Score: 2": 0, "Score: 3": 0, "Score: 4": 2, "Score: 5": 1}
    found, engine = judged(
        tmp_path, "judge_pointwise_logprobs", {}, ["red", ""], score=lambda p, r: log(weights[r] or 1e-300) - 3
    )
    expected = (0 * 1 + 4 * 2 + 5 * 1) / 4 / 5
    assert found.select("parsed", "verdict", "score", "tokens").rows() == [
        (True, None, expected, 0),
        (False, None, None, 0),
    ]
    assert "Score: 4: 0.500" in found["text"][0]
    assert engine.asked == 0  # nothing was generated


def test_a_comparison_by_log_probabilities_averages_both_orders(tmp_path):
    def score(prompt, reply):
        first = shown(prompt)[1].strip()
        return log({"red": 0.9, "green": 0.4}[first] if reply == "Winner: A" else {"red": 0.1, "green": 0.6}[first])

    found, _ = judged(tmp_path, "judge_pairwise_logprobs", {"pairs": None}, ["red", "green"], score=score)
    [row] = found.iter_rows(named=True)
    assert (row["score"], row["verdict"]) == (
        (pytest.approx(0.75), True) if row["response"] == "red" else (pytest.approx(0.25), False)
    )
    biased, _ = judged(
        tmp_path,
        "judge_pairwise_logprobs",
        {"pairs": None},
        ["pink", "blue"],
        score=lambda p, r: 0.0 if r[-1] == "A" else -1.0,
    )
    assert biased.select("score", "verdict", "parsed").rows() == [(0.5, None, True)]
    swayed, _ = judged(
        tmp_path, "judge_pairwise_logprobs", {"pairs": None}, ["pink", "teal"],
        score=lambda p, r: -1.0 - (r[-1] == "B") - 0.1 * (shown(p)[1].strip() == "pink"),
    )  # fmt: skip
    assert counted(swayed, "c") == {"c_tie": 1}
    swayed, _ = judged(
        tmp_path, "judge_pairwise_logprobs", {"pairs": None}, ["gold", "grey"],
        score=lambda p, r: -1.0 if r[-1] == "B" else 0.5 * (shown(p)[1].strip() == "gold"),
    )  # fmt: skip
    assert counted(swayed, "c") == {"c_the_orders_disagree": 1}


def test_a_checklist_by_log_probabilities(tmp_path):
    def score(prompt, reply):
        yes = 0.8 if "short" in prompt.split("Criterion:")[1] else 0.3
        return log(yes if reply == "Met: yes" else 1 - yes)

    found, _ = judged(tmp_path, "judge_checklist_logprobs", {"criteria": CRITERIA}, ["red"], score=score)
    assert found.select("score", "verdict").rows() == [(pytest.approx(0.55), False)]
    assert "probability of yes 0.800" in found["text"][0]


def test_very_small_probabilities_are_compared_too(tmp_path):
    found, _ = judged(
        tmp_path,
        "judge_checklist_logprobs",
        {"criteria": CRITERIA[:1]},
        ["red"],
        score=lambda p, r: -2000.0 if r == "Met: yes" else -2001.0,
    )
    assert found["score"].to_list() == [pytest.approx(1 / (1 + exp(-1)), abs=1e-6)]


@pytest.mark.parametrize("block", FREE_TEXT_BLOCKS)
def test_families_without_free_text_are_refused(tmp_path, block):
    options = {"pairs": 1} if "pairwise" in block else {"criteria": CRITERIA} if "checklist" in block else {}
    options |= {} if "logprobs" in block else GREEDY if "structured" in block else DRAWN
    assert "free text" in critique.BLOCKS[block].needs
    with pytest.raises(BadInput, match="no templates for judges of free text"):
        judged(tmp_path, block, options, ["5", "6"], family=Adding())
    for family in ("countdown", "strings"):
        assert "free text" in families.lacks(family)


# --- replies out of a list ---------------------------------------------------------------------------------------

OUTSIDE = "a reply outside of the choices"


def test_a_structured_comparison_is_asked_in_brief_and_in_both_orders(tmp_path):
    found, engine = judged(
        tmp_path, "judge_pairwise_structured", {"pairs": None, **GREEDY}, ["red", "green"],
        lambda prompt, draw: prefers("green")(prompt, draw).splitlines()[-1],
    )  # fmt: skip
    assert engine.choices == {("Winner: A", "Winner: B")}
    assert all("Reply with one line and nothing else" in prompt for prompt in engine.prompts)
    [row] = found.iter_rows(named=True)
    assert (row["parsed"], row["verdict"], row["score"]) == (
        True,
        row["response"] == "green",
        float(row["response"] == "green"),
    )
    found, _ = judged(
        tmp_path / "same",
        "judge_pairwise_structured",
        {"pairs": None, **GREEDY},
        ["red", "green"],
        lambda p, d: "Winner: A",
    )
    assert found.select("parsed", "why").rows() == [(False, "the orders disagree")]


def test_a_verdict_that_the_candidate_states_too_is_no_repetition_where_nothing_is_parsed(tmp_path):
    found, _ = judged(tmp_path, "judge_pointwise_structured", GREEDY, ["Score: 4"], lambda p, d: "Score: 4")
    assert found.select("parsed", "verdict", "score", "text").rows() == [(True, None, 0.8, "Score: 4")]


def test_structured_points_are_rows_by_draw(tmp_path):
    options = {"draws": 3, "temperature": 1.0, "top_p": 1.0}
    found, engine = judged(
        tmp_path, "judge_pointwise_structured", options, ["red", " "], lambda prompt, draw: f"Score: {2 * draw}"
    )
    assert engine.choices == {tuple(f"Score: {points}" for points in range(6))}
    rows = found.sort("response", "draw").select("response", "parsed", "score").rows()
    assert rows == [(" ", False, None), ("red", True, 0.0), ("red", True, 0.4), ("red", True, 0.8)]


def test_a_structured_checklist(tmp_path):
    def reply(prompt, draw):
        return (
            "Met: yes" if "short" in prompt.split("Criterion:")[1] or shown(prompt)[1].strip() == "red" else "Met: no"
        )

    options = {"criteria": CRITERIA, **GREEDY}
    found, engine = judged(tmp_path, "judge_checklist_structured", options, ["red", "green", " "], reply)
    assert engine.choices == {("Met: yes", "Met: no")}
    rows = {row["response"]: (row["parsed"], row["verdict"], row["score"]) for row in found.iter_rows(named=True)}
    assert rows == {"red": (True, True, 1.0), "green": (True, False, 0.5), " ": (False, None, None)}


@pytest.mark.parametrize(
    ("block", "options"),
    [
        ("judge_pointwise_structured", GREEDY),
        ("judge_pairwise_structured", {"pairs": None, **GREEDY}),
        ("judge_checklist_structured", {"criteria": ["It is short."], **GREEDY}),
    ],
)
def test_what_is_no_choice_is_no_verdict(tmp_path, block, options):
    found, _ = judged(tmp_path, block, options, ["red", "green"], lambda p, d: "No")
    assert not found["parsed"].any()
    assert all(OUTSIDE in why for why in found["why"])
    found, _ = judged(tmp_path / "none", block, options, ["red", "green"], lambda p, d: None)
    assert not found["parsed"].any()
    assert all("no reply" in why for why in found["why"])


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("judge_pairwise", "as A:\nWinner: A\n\nas B:\nBoth.\nWinner: B", [1.0, 0.0]),
        ("judge_pairwise", "as A:\nWinner: tie\n\nas B:\nWinner: A", [0.5, 1.0]),
        ("judge_pairwise", "as A:\nhm\n\nas B:\nWinner: A", []),
        ("judge_pairwise", "as A:\nso it goes\n\nas B:\n\nWinner: A\n\nas B:\nWinner: A", []),  # where does B begin?
        ("judge_pairwise_structured", "as A:\nWinner: B\n\nas B:\nWinner: B", [0.0, 0.0]),
        ("judge_pairwise_structured", "as A:\nWinner: C\n\nas B:\nWinner: B", []),
        ("judge_pairwise_logprobs", "better as A: 0.900, as B: 0.300", [1.0, 1.0]),
        ("judge_pairwise_logprobs", "better as A: 0.500, as B: 0.700", [0.5, 0.0]),
        ("judge_pairwise_logprobs", "", []),
    ],
)
def test_what_is_preferred_in_each_order_can_be_read_back(kind, text, expected):
    question = FAMILY.prompt("Name a colour.")
    assert pairwise.in_both_orders(kind, FAMILY, question, ("red", "green"), text) == expected


def test_both_orders_of_every_kind_are_read_out_of_its_own_text(tmp_path):
    """A judge that always prefers what it is shown first."""
    for kind, options in (
        ("judge_pairwise", DRAWN),
        ("judge_pairwise_structured", GREEDY),
        ("judge_pairwise_logprobs", {}),
    ):
        found, _ = judged(
            tmp_path / kind, kind, {"pairs": 1, **options}, ["red", "green"], lambda prompt, draw: "Winner: A",
            lambda prompt, reply: 0.0 if reply == "Winner: A" else -2.0,
        )  # fmt: skip
        question = FAMILY.prompt("Name a colour.")
        assert pairwise.in_both_orders(kind, FAMILY, question, ("red", "green"), found["text"][0]) == [1.0, 1.0], kind


# --- intrinsic scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("statistic", "sign"), [("self_certainty", 1), ("logprob", 1), ("entropy", -1)])
def test_a_likelihood_is_reduced_over_the_responses_tokens(tmp_path, statistic, sign):
    prompts, samples = answered("red", "blue green")
    judge, engine = scripted_model(tmp_path, lambda prompt, draw: "")
    asked = []

    def score(questions, told, statistic):
        asked.append((questions, told, statistic))
        return [[float(len(word)) for word in text.split()] + [2.0] for text in told]

    engine.score = score
    bounds = bind(
        critique.BLOCKS,
        {"sure": {"block": "likelihood", "statistic": statistic, "span": "all", "reduce": "mean", "minus": None}},
        "critique",
    )
    found = judging.judged(work(prompts, judge, family=FAMILY, candidates=samples), bounds)
    texts = dict(samples.select("candidate_id", "response").iter_rows())
    scores = {texts[row["candidate_id"]]: row["score"] for row in found.iter_rows(named=True)}
    assert scores == {"red": sign * 2.5, "blue green": pytest.approx(sign * 11 / 3, abs=1e-6)}
    assert found["verdict"].null_count() == found["parsed"].sum() == 2
    [(questions, told, name)] = asked
    assert (sorted(told), name) == (["blue green", "red"], statistic)
    assert all("Name a colour." in question for question in questions)
    ranked = aggregate(found, "sure").sort("score")["candidate_id"].replace(texts).to_list()
    assert ranked == (["red", "blue green"] if sign > 0 else ["blue green", "red"])


def likelihoods(tmp_path, **options):
    """Scores by response of "red" and "say red then blue red", whose tokens have the figures 1, 2, 3, ..."""
    prompts, samples = answered("red", "say red then blue red")
    samples = samples.with_columns(answer=pl.lit("red"))
    judge, engine = scripted_model(tmp_path, lambda prompt, draw: "")
    engine.score = lambda questions, told, statistic: [list(range(1, len(text.split()) + 2)) for text in told]
    judge.lengths = lambda texts: [len(text.split()) for text in texts]
    given = {"block": "likelihood", "statistic": "logprob", "span": "all", "reduce": "sum", "minus": None, **options}
    bounds = bind(critique.BLOCKS, {"sure": given}, "critique")
    found = judging.judged(work(prompts, judge, family=FAMILY, candidates=samples), bounds)
    texts = dict(samples.select("candidate_id", "response").iter_rows())
    return {texts[row["candidate_id"]]: row["score"] for row in found.iter_rows(named=True)}


def test_what_a_likelihood_is_reduced_over(tmp_path):
    long = "say red then blue red"
    assert likelihoods(tmp_path) == {"red": 3, long: 21}
    assert likelihoods(tmp_path, reduce="min") == {"red": 1, long: 1}
    assert likelihoods(tmp_path, reduce="mean") == {"red": 1.5, long: 3.5}
    assert likelihoods(tmp_path, span="answer") == {"red": 1, long: 5}  # the last place where the answer stands
    assert likelihoods(tmp_path, minus="judge") == {"red": 0, long: 0}


def test_a_continuation_is_the_likelihood_of_fixed_replies(tmp_path):
    """P(True) by hand, and the difference; what cannot be shown is not judged."""
    judge, engine = scripted_model(tmp_path, lambda prompt, draw: "")
    told = {"yes": [-0.5, -0.5], "no": [-2.0, -1.0]}
    engine.score = lambda questions, texts, statistic: [told[text] for text in texts]
    family = Adding()
    table = additions("add 2 3")
    both = sampled(table, ["5", "?"])
    for contrast, score in (("probability", 1 / (1 + exp(-2.0))), ("difference", 2.0)):
        given = {
            "block": "continuation",
            "template": "true",
            "critic": None,
            "texts": ["yes", "no"],
            "contrast": contrast,
        }
        found = judging.judged(
            work(table, judge, family=family, candidates=both), bind(critique.BLOCKS, {"p": given}, "c")
        )
        seen = dict(both.select("candidate_id", "response").iter_rows())
        rows = {seen[row["candidate_id"]]: row for row in found.to_dicts()}
        assert (rows["5"]["verdict"], rows["5"]["score"]) == (True, pytest.approx(score, abs=1e-6))
        assert (rows["?"]["parsed"], rows["?"]["score"]) == (False, None)

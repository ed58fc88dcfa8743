import math
from dataclasses import replace

import polars as pl
import pytest

from tasks.blocks import critique
from tasks.blocks.critique import judging
from tasks.blocks.critique.opinions import aggregate
from tasks.core import tables
from tasks.core.block import bind
from tasks.core.errors import BadInput, LabelsForbidden, UnknownName
from tests.support.family import Adding
from tests.support.models import Unsteady, scripted_model
from tests.support.work import prompts, sampled, work


def judged(tmp_path, section, table, samples, reply, labels=False, stage="critique"):
    judge, engine = scripted_model(tmp_path, reply)
    bounds = bind(critique.BLOCKS, section, "critique")
    return judging.judged(work(table, judge, stage, labels, candidates=samples), bounds), engine


def adds(prompt, draw):
    return str(sum(int(n) for n in prompt.split()[1:]))


FACTORED = {"factored": {"block": "factored_critique", "max_new_tokens": 4}}
HOLISTIC = {"block": "nl_critique", "draws": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4}


def test_factored_compares_the_models_own_answer_with_the_claim(tmp_path):
    table = prompts("add 2 3")
    samples = sampled(table, ["5", "6", "five"])
    found, engine = judged(tmp_path, FACTORED, table, samples, adds)
    by_response = dict(samples.select("response", "candidate_id").iter_rows())
    rows = {row["candidate_id"]: row for row in found.iter_rows(named=True)}
    assert rows[by_response["5"]]["verdict"] is True
    assert rows[by_response["6"]]["verdict"] is False
    assert (rows[by_response["five"]]["parsed"], rows[by_response["five"]]["why"]) == (False, "malformed response")
    assert engine.asked == 1  # both claims put the same question


def test_a_wrong_critic_is_believed_because_it_sees_no_truth(tmp_path):
    table = prompts("add 2 3")
    found, _ = judged(tmp_path, FACTORED, table, sampled(table, ["5", "6"]), lambda p, d: "6")
    assert sorted(found["verdict"].to_list()) == [False, True]


def test_draws_are_aggregated_and_silence_stays_silence(tmp_path):
    table = prompts("add 2 3", "add 4 4", "add 1 1")
    samples = sampled(table, ["5"], ["8"], ["2"])
    replies = {"add 2 3": ["yes", "no", "yes"], "add 4 4": ["yes", "no", "maybe"], "add 1 1": ["", "10/10", "YES!"]}
    found, _ = judged(
        tmp_path,
        {"holistic": HOLISTIC},
        table,
        samples,
        lambda p, d: replies[p.removeprefix("check ").split(" :")[0]][d],
    )
    assert found.height == 9
    assert found.filter(~pl.col("parsed"))["why"].null_count() == 0
    assert found.filter(~pl.col("parsed")).select("verdict", "score").null_count().row(0) == (4, 4)
    views = aggregate(found, "holistic").join(samples.select("candidate_id", "response"), on="candidate_id")
    seen = {row["response"]: (row["verdict"], row["score"]) for row in views.iter_rows(named=True)}
    assert seen["5"] == (True, pytest.approx(2 / 3))
    assert seen["8"] == (None, pytest.approx(1 / 2))
    assert seen["2"] == (None, None)


def test_pointwise_gives_scores_and_no_verdict(tmp_path):
    table = prompts("add 2 3")
    section = {"judge": {**HOLISTIC, "block": "judge_pointwise"}}
    found, _ = judged(tmp_path, section, table, sampled(table, ["5"]), lambda p, d: "yes" if d else "no")
    assert found["verdict"].null_count() == 3
    assert aggregate(found, "judge")["score"].to_list() == [pytest.approx(2 / 3)]


def test_vote_counts_every_candidate_and_refuses_ties(tmp_path):
    table = prompts("add 2 3", "add 1 1")
    samples = sampled(table, ["5", "5", "6", "junk"], ["2", "3"])
    found, engine = judged(tmp_path, {"vote": {}}, table, samples, adds)
    rows = found.join(samples.select("candidate_id", "response"), on="candidate_id")
    seen = {row["response"]: (row["verdict"], row["score"]) for row in rows.iter_rows(named=True)}
    assert seen == {"5": (True, 0.5), "6": (False, 0.25), "junk": (None, None), "2": (False, 0.5), "3": (False, 0.5)}
    assert engine.asked == 0


def test_the_entropy_of_the_vote_is_that_of_its_distribution(tmp_path):
    table = prompts("add 2 3", "add 1 1", "add 4 4")
    samples = sampled(table, ["5", "5", "6", "junk"], ["2", "2"], ["8"])
    found, engine = judged(tmp_path, {"unsure": {"block": "vote_entropy"}}, table, samples, adds)
    scores = dict(aggregate(found, "unsure").select("candidate_id", "score").iter_rows())
    seen = {row[1]: scores[row[0]] for row in samples.select("candidate_id", "response").iter_rows()}
    assert seen["5"] == seen["junk"] == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4), abs=1e-6)
    assert (seen["2"], seen["8"]) == (0.0, 0.0)
    assert found["verdict"].null_count() == found.height
    assert engine.asked == 0


def test_a_critic_that_names_a_model_asks_that_one(tmp_path):
    table = prompts("add 2 3")
    given = work(table, None, candidates=sampled(table, ["5"]))
    models = {name: scripted_model(tmp_path / name, lambda p, d, text=text: text)[0] for name, text in ASKED.items()}
    bounds = bind(critique.BLOCKS, {"own": {**HOLISTIC, "model": "reference"}, "other": HOLISTIC}, "critique")
    found = judging.judged(replace(given, models=models), bounds)
    assert {row["critic"]: row["verdict"] for row in found.iter_rows(named=True) if row["draw"] == 0} == {
        "own": False,
        "other": True,
    }
    assert bounds[1].entry() == {"block": "nl_critique", "model": "reference", **bounds[1].options.model_dump()}


ASKED = {"judge": "yes", "reference": "no"}


def test_the_verifier_is_behind_the_labels_door(tmp_path):
    table = prompts("add 2 3")
    samples = sampled(table, ["5", "6"])
    with pytest.raises(LabelsForbidden, match="labels: false"):
        judged(tmp_path, {"verifier": {}}, table, samples, adds)
    found, _ = judged(tmp_path, {"verifier": {}}, table, samples, adds, labels=True)
    assert sorted(found["score"].to_list()) == [0.0, 1.0]


def test_label_free_critics_never_call_verify(tmp_path, monkeypatch):
    def forbidden(*args):
        raise AssertionError("verify was called")

    monkeypatch.setattr(Adding, "verify", forbidden)
    table = prompts("add 2 3")
    sections = {**FACTORED, "holistic": HOLISTIC, "judge": {**HOLISTIC, "block": "judge_pointwise"}, "vote": {}}
    found, _ = judged(tmp_path, sections, table, sampled(table, ["5", "6"]), lambda p, d: "5")
    assert set(found["critic"]) == set(sections)


@pytest.mark.parametrize(
    "section", [FACTORED, {"holistic": HOLISTIC}, {"judge": {**HOLISTIC, "block": "judge_pointwise"}}]
)
def test_a_judge_that_does_not_answer_says_nothing(section):
    table = prompts("add 2 3", "add 4 4")
    samples = sampled(table, ["5"], ["8"])
    judge = Unsteady(lambda prompt, draw: None if "2 3" in prompt else "yes" if prompt.startswith("check") else "8")
    found = judging.judged(work(table, judge, candidates=samples), bind(critique.BLOCKS, section, "critique"))
    silent = found.filter(pl.col("candidate_id") == samples.filter(pl.col("response") == "5")["candidate_id"][0])
    others = found.filter(~pl.col("candidate_id").is_in(silent["candidate_id"]))
    assert set(silent.select("parsed", "verdict", "score", "why", "text", "tokens").rows()) == {
        (False, None, None, "no reply: HTTP 500", "", 0)
    }
    assert others["parsed"].all()
    opinion = aggregate(found, next(iter(section))).filter(pl.col("candidate_id") == silent["candidate_id"][0])
    assert opinion.select("verdict", "score", "why").row(0) == (None, None, "no reply: HTTP 500")


def test_options_are_checked_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'factored_critique'"):
        bind(critique.BLOCKS, {"c": {"block": "factored_critic"}}, "critique")
    with pytest.raises(BadInput, match=r"critique\.c: unknown key 'max_tokens'; did you mean 'max_new_tokens'"):
        bind(critique.BLOCKS, {"c": {"block": "factored_critique", "max_tokens": 3}}, "critique")
    with pytest.raises(BadInput, match=r"critique\.c\.max_new_tokens: given 0; "):
        bind(critique.BLOCKS, {"c": {"block": "factored_critique", "max_new_tokens": 0}}, "critique")
    with pytest.raises(BadInput, match=r"critique\.c: given None"):
        bind(critique.BLOCKS, {"c": None}, "critique")


def test_no_candidates_no_critiques(tmp_path):
    table = prompts("add 2 3")
    found, _ = judged(
        tmp_path, {**FACTORED, "holistic": HOLISTIC, "vote": {}}, table, tables.empty(tables.CANDIDATES), adds
    )
    assert found.schema == tables.CRITIQUES
    assert found.is_empty()

from dataclasses import replace

import polars as pl

from tasks.blocks import critique, refine, sample
from tasks.blocks.critique import judging
from tasks.core.block import bind
from tests.support.models import Unsteady, scripted_model
from tests.support.work import bound, prompts, sampled, work

FACTORED = {"factored": {"block": "factored_critique", "max_new_tokens": 4}}
OPTIONS = {"critic": "factored", "per_prompt": 2, "rounds": 2, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4}


def revise(tmp_path, responses, reply, **changed):
    table = prompts(*responses)
    samples = sampled(table, *responses.values())
    model, _engine = scripted_model(tmp_path, reply)
    made = revised(table, samples, model, {**FACTORED, "vote": {}}, **changed)
    return samples, made.candidates, made.opinions


def revised(table, samples, model, critics, **changed):
    known = bind(critique.BLOCKS, critics, "critique")
    given = work(table, model, "refine", candidates=samples, critics=known)
    revise = bound(refine.BLOCKS, "critique_revise", **{**OPTIONS, **changed})
    return revise(replace(given, opinions=judging.judged(given, known)))


def answer(prompt, draw):
    if prompt.startswith("fix"):
        return "6" if ": 7 :" in prompt else "5"
    return str(sum(int(n) for n in prompt.split()[1:]))


def test_only_what_was_refused_is_refined_round_after_round(tmp_path):
    samples, new, judged = revise(tmp_path, {"add 2 3": ["5", "7"], "add 1 1": ["2"]}, answer)
    assert new.select("turn", "response").rows() == [(1, "6"), (2, "5")]
    refused = samples.filter(pl.col("response") == "7")["candidate_id"][0]
    first, second = new.sort("turn").iter_rows(named=True)
    assert first["parent_id"] == refused
    assert second["parent_id"] == first["candidate_id"]
    assert "I get 5" in first["messages"][0]["content"]
    assert set(judged["critic"]) == {"factored"}  # nobody votes on a lone refinement
    verdicts = dict(judged.select("candidate_id", "verdict").iter_rows())
    assert (verdicts[first["candidate_id"]], verdicts[second["candidate_id"]]) == (False, True)


def test_at_most_per_prompt_and_equal_responses_once(tmp_path):
    _, new, _ = revise(tmp_path, {"add 2 3": ["8", "8", "9", "10"]}, answer, rounds=1)
    assert new.height == 2
    assert new["parent_id"].n_unique() == 2


def test_a_refinement_that_failed_is_no_candidate():
    table = prompts("add 2 3", "add 1 1")
    model = Unsteady(lambda p, d: None if "2 3" in p and "fix" in p else "0" if p.startswith("add") else answer(p, d))
    draw = bound(sample.BLOCKS, "iid_k", template="answer", n=1, temperature=1.0, top_p=1.0, max_new_tokens=4)
    samples = draw(work(table, model, "sample")).candidates
    made = revised(table, samples, model, FACTORED, rounds=1)
    assert samples.height == 2
    assert made.candidates["prompt_id"].to_list() == [table.filter(pl.col("difficulty") == 7)["prompt_id"][1]]
    assert made.opinions["candidate_id"].to_list() == made.candidates["candidate_id"].to_list()


def test_nothing_refused_nothing_refined(tmp_path):
    _, new, judged = revise(tmp_path, {"add 2 3": ["5"]}, answer)
    assert new.is_empty()
    assert judged.is_empty()

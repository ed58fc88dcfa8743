"""Requests that an endpoint never answers leave no trace in what is trained on."""

import random
from pathlib import Path

import polars as pl
import pytest

from tasks.blocks import critique, sample
from tasks.blocks.critique import judging
from tasks.blocks.filter.selection import Selection
from tasks.core.block import bind
from tests.support.endpoint import Answer, Body, Endpoint, asked_model, completion
from tests.support.work import bound, pairs, prompts, through, work

FAULTS: list[Answer] = [500, 503, 400, "cut", "drop", b"<html>", b'{"choices": []}', (429, {"Retry-After": "0"}, b"")]
JUDGE = {"block": "nl_critique", "draws": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4}


def replied(body: Body, before: int) -> Answer:
    """A third of the requests never get a reply; which ones follows from what is asked."""
    text = body["messages"][0]["content"]
    chance = random.Random(f"{text} {body['seed']}")
    if chance.random() < 1 / 3:
        return chance.choice(FAULTS)
    right = str(sum(int(word) for word in text.split() if word.isdigit()))
    return completion(
        body, chance.choice(["yes", "no"]) if text.startswith("check") else chance.choice([right, "0", "1"])
    )


@pytest.mark.parametrize("block", ["nl_critique", "judge_pointwise"])
def test_what_failed_becomes_no_row_no_preference_and_no_weight(tmp_path: Path, block: str) -> None:
    table = prompts(*(f"add {i} {i + 2}" for i in range(40)))
    with Endpoint(replied) as server:
        model = asked_model(tmp_path, server.url, quarantine_share=1.0, retries=1, concurrency=16)
        draw = bound(sample.BLOCKS, "iid_k", template="answer", n=5, temperature=1.0, top_p=1.0, max_new_tokens=4)
        samples = draw(work(table, model, "sample")).candidates
        lost = model.take_tally().quarantined
        judges = bind(critique.BLOCKS, {"j": {**JUDGE, "block": block}}, "critique")
        found = judging.judged(work(table, model, candidates=samples), judges)
    assert 40 < lost < 100
    assert samples.height == 200 - lost
    assert set(samples["finish_reason"]) == {"stop"}
    silent = found.filter(pl.col("why").fill_null("").str.starts_with("no reply: "))
    assert silent.height > found.height / 5
    assert silent.select("parsed", "verdict", "score", "text").unique().rows() == [(False, None, None, "")]
    reasons = {why.removeprefix("no reply: ") for why in silent["why"]}
    assert reasons == {"HTTP 500", "HTTP 503", "HTTP 400", "HTTP 429", "connection closed", "no JSON", "empty choices"}
    start = Selection("i01", table, samples, found, kept=samples)
    state = through(start, pairs=pairs(critic="j", min_margin=0.1, per_prompt=2))
    heard = set(found.filter(pl.col("parsed"))["candidate_id"])
    sides = [*state.pairs["chosen_id"], *state.pairs["rejected_id"]]
    assert len(sides) > 20
    assert set(sides) <= heard
    assert set(state.pairs["weight"]) == {1.0}

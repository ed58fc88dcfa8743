"""Endpoints are asked row by row: what is logged is never asked again, what fails stands for nothing."""

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.core.asking.log import FILE
from tasks.core.engines.contract import Sampling
from tasks.core.errors import BadInput, StageFailed
from tests.support.endpoint import Endpoint, asked_model, completion
from tests.support.paths import ROOT
from tests.support.tiny import user

QUESTIONS = [user(f"add {i} {i}") for i in range(30)]
SAMPLING = Sampling(3, 1.0, 1.0, 8, 1)
KEY = "sk-THE-SECRET-of-this-test"


def echo(body, before):
    return completion(body, f"{body['messages'][0]['content']} #{body.get('seed', '-')}")


def test_replies_come_back_in_order_and_are_asked_for_once(tmp_path):
    with Endpoint(echo) as server:
        first = asked_model(tmp_path, server.url).generate(QUESTIONS, SAMPLING, "x")
        assert [reply.text.split(" #")[0] for reply in first[7]] == ["add 7 7"] * 3
        assert len({reply.text for several in first for reply in several}) == 90
        assert server.asked[0]["model"] == "some/model"
        assert len(server.asked) == 90
    again = asked_model(tmp_path, server.url)  # the server is gone
    assert again.generate(QUESTIONS, SAMPLING, "x") == first
    figures = again.take_tally().figures()
    assert (figures["requests"], figures["requests_made"], figures["engine_tokens"]) == (90, 0, 0)


def test_more_prompts_samples_or_another_order_ask_only_for_what_is_new(tmp_path):
    with Endpoint(echo) as server:
        model = asked_model(tmp_path, server.url)
        before = model.generate(QUESTIONS[:10], SAMPLING, "x")
        more = model.generate(QUESTIONS[:10], Sampling(5, 1.0, 1.0, 8, 1), "x")
        assert [several[:3] for several in more] == before
        assert len(server.asked) == 50
        model.generate(list(reversed(QUESTIONS)), Sampling(5, 1.0, 1.0, 8, 1), "x")
        assert len(server.asked) == 150
        assert server.repeated() == 0


def test_equal_and_greedy_requests_are_one(tmp_path):
    with Endpoint(echo) as server:
        model = asked_model(tmp_path, server.url)
        replies = model.generate([user("a"), user("b"), user("a")], Sampling(4, 0.0, 0.9, 8, 5), "x")
        assert (len(server.asked), [len(several) for several in replies]) == (2, [4, 4, 4])
        assert replies[0] == replies[2] != replies[1]
        model.generate([user("a")], Sampling(1, 0.0, 1.0, 8, 6), "x")  # neither seed nor top_p matters to greedy
        assert len(server.asked) == 2


def test_everything_that_matters_is_in_the_key(tmp_path):
    base = Sampling(1, 1.0, 1.0, 8, 1)
    with Endpoint(echo) as server:

        def asks(sampling=base, questions=QUESTIONS[:3], **given):
            before = len(server.asked)
            asked_model(tmp_path, server.url, **given).generate(questions, sampling, "x")
            return len(server.asked) - before

        assert (asks(), asks()) == (3, 0)
        changed = [Sampling(1, 0.9, 1.0, 8, 1), Sampling(1, 1.0, 0.9, 8, 1), Sampling(1, 1.0, 1.0, 9, 1)]
        assert [asks(other) for other in [*changed, Sampling(1, 1.0, 1.0, 8, 2)]] == [3, 3, 3, 3]
        assert asks(digest="e" * 32) == 3
        assert asks(endpoint={"model": "other"}) == 3
        assert asks(endpoint={"extra": {"top_k": 5}}) == 3
        system = [[{"role": "system", "content": "be"}, *question] for question in QUESTIONS[:3]]
        assert asks(questions=system) == 3
        assert (
            asks(concurrency=1, timeout=3.0, retries=0, quarantine_share=0.5) == 0
        )  # what `serving` says changes nothing


def test_figures_count_requests_retries_and_tokens(tmp_path):
    with Endpoint(lambda body, before: echo(body, before) if before else 500) as server:
        model = asked_model(tmp_path, server.url)
        model.generate(QUESTIONS[:5], SAMPLING, "x")
        figures = model.take_tally().figures()
    assert figures.pop("engine_seconds") > 0
    assert figures == {
        "requests": 15, "requests_made": 15, "requests_distinct": 15, "engine_prompt_tokens": 45, "engine_tokens": 75,
        "distinct_prompt_tokens": 45, "distinct_tokens": 75,
        "requests_retried": 15, "requests_quarantined": 0,
    }  # fmt: skip
    assert model.take_tally().requests == 0


def test_what_fails_is_quarantined_and_asked_again_the_next_time(tmp_path, caplog):
    bad = {"on": True}

    def answer(body, before):
        return 500 if bad["on"] and body["messages"][0]["content"] in ("add 3 3", "add 4 4") else echo(body, before)

    with Endpoint(answer) as server:
        model = asked_model(tmp_path, server.url)
        replies = model.generate(QUESTIONS, SAMPLING, "samples")
        lost = [reply for several in replies for reply in several if reply.failed]
        assert [(reply.text, reply.why) for reply in lost] == [("", "HTTP 500")] * 6
        assert all(reply.failed for reply in [*replies[3], *replies[4]])
        assert "samples: 6 of 90 requests quarantined (6 HTTP 500)" in caplog.text
        figures = model.take_tally().figures()
        assert (figures["requests_quarantined"], figures["requests_made"], figures["requests_retried"]) == (6, 84, 12)
        bad["on"] = False
        asked = len(server.asked)
        assert not any(reply.failed for several in model.generate(QUESTIONS, SAMPLING, "x") for reply in several)
        assert len(server.asked) == asked + 6


def test_too_many_failures_end_the_stage_and_keep_what_arrived(tmp_path):
    def answer(body, before):
        return 400 if int(body["messages"][0]["content"].split()[1]) % 2 else echo(body, before)

    with Endpoint(answer) as server:
        model = asked_model(tmp_path, server.url)
        with pytest.raises(StageFailed) as caught:
            model.generate(QUESTIONS, SAMPLING, "samples")
        assert len(server.asked) < 90
        good = model.take_tally().made
        server.answer = echo
        asked = len(server.asked)
        model.generate(QUESTIONS, SAMPLING, "samples")
        assert len(server.asked) == asked + 90 - good
    message = str(caught.value)
    assert "samples: 10 of 90 requests got no usable reply (10 HTTP 400)" in message
    assert "serving.openai.quarantine_share (0.1) allows 9" in message
    assert "trouble 400" in message
    assert "every reply that arrived is kept" in message


def test_scores_may_not_fail(tmp_path):
    with Endpoint(lambda body, before: 500) as server, pytest.raises(BadInput, match="protocol is chat"):
        asked_model(tmp_path, server.url).score(QUESTIONS[:2], ["1", "2"], "judge")


def test_the_key_is_nowhere(tmp_path, monkeypatch, capfd):
    """Not in errors, output, the log, or any file, even where the server repeats it."""
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)

    def answer(body, before):
        if body["messages"][0]["content"] == "add 3 3":
            return 500, {}, json.dumps({"error": f"your key {KEY} is fine, but we are not"}).encode()
        return completion(body, f"you sent {KEY}")

    with Endpoint(answer) as server:
        model = asked_model(tmp_path, server.url)
        replies = model.generate(QUESTIONS, SAMPLING, "x")
        with pytest.raises(StageFailed) as caught:
            asked_model(tmp_path, server.url, quarantine_share=0.0).generate(QUESTIONS, SAMPLING, "x")
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    assert replies[0][0].text == "you sent ***"
    assert "your key *** is fine" in str(caught.value)
    assert KEY not in "".join((*capfd.readouterr(), str(caught.value), repr(caught.getrepr(style="long"))))
    assert KEY not in repr(vars(model.endpoint())) + repr(vars(model.endpoint()._caller))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    stored = sqlite3.connect(tmp_path / "scratch" / FILE).execute("SELECT body FROM replies").fetchall()
    assert len(stored) == 87


ASKING = """
import sys
from pathlib import Path
from tests.support.tiny import user
from tests.support.endpoint import asked_model
from tasks.core.engines.contract import Sampling
model = asked_model(Path(sys.argv[1]), sys.argv[2])
replies = model.generate([user(f"question {i}") for i in range(200)], Sampling(3, 1.0, 1.0, 8, 0), "x")
print(hash(tuple(reply.text for several in replies for reply in several)), model.tally.made)
"""


def asking(place: Path, url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", ASKING, str(place), url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={"PYTHONHASHSEED": "0"})


def test_kill_9_loses_only_the_requests_in_flight(tmp_path):
    def slowly(body, before):
        time.sleep(0.005)
        return echo(body, before)

    with Endpoint(slowly) as server:
        killed = 0
        for moment in (100, 250, 400):
            process = asking(tmp_path, server.url)
            while len(server.asked) < moment:
                assert process.poll() is None
                time.sleep(0.002)
            process.kill()
            process.communicate()
            killed += 1
        process = asking(tmp_path, server.url)
        output, _ = process.communicate()
        assert process.returncode == 0
        assert 0 < int(output.split()[1]) < 600
        assert server.repeated() <= killed * 8  # the concurrency
        assert len(server.asked) - server.repeated() == 600


def test_two_processes_share_the_log(tmp_path):
    turn = iter(range(10**6))

    with Endpoint(lambda body, before: completion(body, f"reply {next(turn)}")) as server:
        both = [asking(tmp_path, server.url) for _ in range(2)]
        said = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][0] == said[1][0]  # the server never says the same twice: both read the reply that came first

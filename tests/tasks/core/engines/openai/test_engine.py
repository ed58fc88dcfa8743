"""The openai engine against a real server on loopback: what is posted, what is read, and every fault."""

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.params import compose
from tasks.core import engines
from tasks.core.engines.contract import Completion, Sampling
from tasks.core.errors import BadInput, StageFailed
from tests.support.endpoint import Endpoint, completion
from tests.support.models import ENGINE

KEY = "sk-THE-SECRET-of-this-test"
SAMPLING = Sampling(2, 0.8, 0.9, 16, 7)
PROMPTS = ["add 1 2 :", "add 3 4 :"]


def echo(body, before):
    return completion(body, f"{body['prompt']} {body.get('seed')}")


def engine(*urls: str, endpoint: dict[str, Any] | None = None, **serving: Any) -> Any:
    given = {"backoff": 0.01, "timeout": 5.0, "retries": 3, "key_variable": "TEST_ENDPOINT_KEY"}
    options = {**compose.shared()["serving"]["openai"], "base_urls": list(urls), **given, **serving}
    asked = {**ENGINE["endpoint"], **(endpoint or {})}
    return engines.connect("openai", "m", Path("nowhere"), asked, options)


def one(server: Endpoint, **options: Any) -> Completion:
    """The completion of a single request."""
    return engine(server.url, **options).generate(["add 1 2 :"], Sampling(1, 0.8, 0.9, 16, 7))[0][0]


# --- what is posted and read -----------------------------------------------------------------------------------


def test_a_draw_is_a_request_with_a_seed_of_its_own():
    with Endpoint(echo) as server:
        replies = engine(server.url, endpoint={"extra": {"top_k": 0}}).generate(PROMPTS, SAMPLING)
        seeds = {(body["prompt"], body["seed"]) for body in server.asked}
        assert len(seeds) == 4
        body = server.asked[0]
        assert {k: v for k, v in body.items() if k not in ("prompt", "seed", "path")} == {
            "model": "m", "max_tokens": 16, "temperature": 0.8, "top_p": 0.9, "logprobs": 1, "top_k": 0,
        }  # fmt: skip
        assert body["path"] == "/v1/completions"
        assert all(
            reply.text.startswith(prompt) for prompt, pair in zip(PROMPTS, replies, strict=True) for reply in pair
        )
        assert replies[0][0] == Completion(replies[0][0].text, 4, 6, -1.5, "stop")
        later = engine(server.url).generate([PROMPTS[1]], Sampling(1, 0.8, 0.9, 16, 7), first_draw=1)
        assert later[0][0].text == replies[1][1].text  # whatever else was asked, and in which order


def test_greedy_needs_no_seed():
    with Endpoint(echo) as server:
        engine(server.url).generate(PROMPTS, Sampling(1, 0.0, 1.0, 16, 7))
    assert all("seed" not in body for body in server.asked)


def test_chat_posts_messages():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße\n"}]
    options = {"protocol": "chat", "length_field": "max_completion_tokens", "extra": {"top_p": None}}
    with Endpoint(lambda body, before: completion(body, "fine so far", "length")) as server:
        reply = engine(server.url, endpoint=options).generate([json.dumps(messages)], Sampling(1, 0.8, 0.9, 16, 7))[0][
            0
        ]
    body = server.asked[0]
    assert (body["path"], body["messages"], body["logprobs"]) == ("/v1/chat/completions", messages, True)
    assert body["max_completion_tokens"] == 16
    assert not {"top_p", "max_tokens", "prompt"} & body.keys()
    assert (reply.text, reply.tokens, reply.logprob, reply.finish_reason) == ("fine so far", 4, -1.0, "length")


def test_the_name_that_the_server_knows_the_model_by():
    with Endpoint(echo) as server:
        one(server, endpoint={"model": "judge-large"})
    assert server.asked[0]["model"] == "judge-large"


CHOICES = ("Winner: A", "Winner: B")
CHOOSING = Sampling(1, 0.0, 1.0, 11, 0, CHOICES)


def test_a_reply_out_of_a_list_is_asked_for_and_checked():
    with Endpoint(lambda body, before: completion(body, " Winner: B")) as server:
        reply = engine(server.url).generate(["which ?"], CHOOSING)[0][0]
    assert server.asked[0]["structured_outputs"] == {"choice": list(CHOICES)}
    assert reply.text == "Winner: B"


def test_a_chat_server_gives_the_reply_in_json():
    message = json.dumps([{"role": "user", "content": "which ?"}])
    options = {"protocol": "chat", "length_field": "max_completion_tokens"}
    with Endpoint(lambda body, before: completion(body, '{"reply": "Winner: A"}')) as server:
        reply = engine(server.url, endpoint=options).generate([message], CHOOSING)[0][0]
    body = server.asked[0]
    form = body["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["properties"] == {"reply": {"type": "string", "enum": list(CHOICES)}}
    assert form["schema"]["required"] == ["reply"]
    assert body["max_completion_tokens"] == 11 + 32
    assert reply.text == "Winner: A"


@pytest.mark.parametrize(
    ("protocol", "text", "named"),
    [
        ("completions", "I prefer A.", "structured_outputs"),
        ("chat", "Winner: B because", "response_format: json_schema"),
        ("chat", '["Winner: A"]', "response_format: json_schema"),
        ("chat", '{"reply": "A"}', "response_format: json_schema"),
    ],
)
def test_a_server_that_does_not_keep_to_the_choices_is_told(protocol: str, text: str, named: str):
    asked = json.dumps([{"role": "user", "content": "which ?"}])
    with Endpoint(lambda body, before: completion(body, text)) as server:
        reply = engine(server.url, endpoint={"protocol": protocol}).generate([asked], CHOOSING)[0][0]
        assert len(server.asked) == 1  # asking again would not help
    assert reply.failed
    assert reply.why == f"a reply outside of the choices, so the server may not know {named}"


def test_no_statistic_of_the_vocabulary_is_asked_of_a_server():
    with Endpoint(echo) as server, pytest.raises(BadInput, match=r"cannot give the self_certainty .* use engine.name"):
        engine(server.url).score(["a"], ["b"], "self_certainty")
    assert server.asked == []


def test_a_server_without_logprobs_and_half_a_surrogate():
    def answer(body, before):
        reply = json.loads(completion(body, "x"))
        reply["choices"][0] |= {"logprobs": None, "text": "a\ud800b"}
        return json.dumps(reply).encode()

    with Endpoint(answer) as server:
        reply = one(server)
    assert (reply.text, reply.logprob, reply.failed) == ("a?b", None, False)


def test_scores_are_read_from_the_echoed_prompt(tmp_path):
    from tasks.core.models import tokenizers

    tokenizers.word_tokenizer(["add", "1", "2", "3", ":"]).save_pretrained(tmp_path)

    def answer(body, before):
        reply = json.loads(completion({**body, "prompt": "x"}, "x"))
        values = [None, *(-0.5 * position for position in range(1, len(body["prompt"])))]
        reply["choices"][0]["logprobs"]["token_logprobs"] = values
        return json.dumps(reply).encode()

    with Endpoint(answer) as server:
        scoring = engines.connect(
            "openai",
            "m",
            tmp_path,
            ENGINE["endpoint"],
            {**compose.shared()["serving"]["openai"], "base_urls": [server.url]},
        )
        assert scoring.score(["add 1 2 :", "add 1 2 :"], ["3", ""]) == [[-2.0, -2.5], [-2.0]]
    words = tokenizers.load_tokenizer(tmp_path).convert_ids_to_tokens
    first = next(body for body in server.asked if len(body["prompt"]) == 6)
    assert words(first["prompt"]) == ["add", "1", "2", ":", "3", "<eos>"]
    assert (first["echo"], first["max_tokens"], first["logprobs"]) == (True, 0, 1)


@pytest.mark.parametrize(("protocol", "answer"), [("chat", None), ("completions", 400), ("completions", echo)])
def test_scores_that_a_server_cannot_give(protocol, answer, tmp_path):
    from tasks.core.models import tokenizers

    tokenizers.word_tokenizer(["a"]).save_pretrained(tmp_path)
    given = answer if callable(answer) else lambda body, before: answer
    serving = {**compose.shared()["serving"]["openai"], "retries": 1}
    with Endpoint(lambda body, before: given({**body, "prompt": "a"}, before)) as server:
        scoring = engines.connect(
            "openai",
            "m",
            tmp_path,
            {**ENGINE["endpoint"], "protocol": protocol},
            {**serving, "base_urls": [server.url]},
        )
        with pytest.raises(BadInput, match=r"cannot give the log-probabilities of a given text here: .*vLLM's"):
            scoring.score(["a a a a"], ["a a a a a"])


# --- faults ----------------------------------------------------------------------------------------------------


def reply_with(**changes):
    """A reply of which some parts are something else."""

    def answer(body, before):
        reply = json.loads(completion(body, "fine"))
        for path, value in changes.items():
            place, (*parents, last) = reply, path.split("__")
            for name in parents:
                place = place[int(name) if name.isdigit() else name]
            place[last] = value
        return json.dumps(reply).encode()

    return answer


FAULTS: dict[str, tuple[Any, str]] = {
    "500": (500, "HTTP 500"),
    "503": (503, "HTTP 503"),
    "429": (429, "HTTP 429"),
    "closed in mid-body": ("cut", "connection closed"),
    "closed before any byte": ("drop", "connection closed"),
    "timeout": ("wait 1", "timeout"),
    "no JSON": (b"<html>Bad gateway</html>", "no JSON"),
    "no UTF-8": (b"\xff\xfe", "no UTF-8"),
    "a number": (b"3", "no choices"),
    "deeply nested": (b"[" * 100_000, "no JSON"),
    "no choices": (b'{"error": "overloaded"}', "no choices"),
    "empty choices": (b'{"choices": []}', "empty choices"),
    "choices of another type": (b'{"choices": {"0": {}}}', "no choices"),
    "a choice of another type": (b'{"choices": ["fine"]}', "no choices"),
    "text of another type": (reply_with(choices__0__text=["fine"]), "no text"),
    "no usage": (reply_with(usage=None), "no usage"),
    "negative usage": (reply_with(usage__completion_tokens=-1), "no usage"),
    "usage of another type": (reply_with(usage__prompt_tokens="9"), "no usage"),
    "log-probabilities of another type": (
        reply_with(choices__0__logprobs__token_logprobs=["x"]),
        "no log-probabilities",
    ),
    "no finish": (reply_with(choices__0__finish_reason=None), "no finish"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_tried_again(name):
    fault, _ = FAULTS[name]
    faulty = fault if callable(fault) else lambda body, before: fault
    with Endpoint(lambda body, before: faulty(body, before) if before < 2 else completion(body, "fine")) as server:
        asking = engine(server.url, timeout=0.2)
        assert asking.generate(["add 1 2 :"], Sampling(1, 0.8, 0.9, 16, 7))[0][0].text == "fine"
    assert len(server.asked) == 3
    assert asking._caller.retries == 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_ends_with_the_reason(name):
    fault, reason = FAULTS[name]
    with Endpoint(fault if callable(fault) else lambda body, before: fault) as server:
        reply = one(server, timeout=0.1, retries=2)
    assert reply == Completion("", 0, 0, None, "failed", reason)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(400, "HTTP 400"), (413, "HTTP 413"), (301, "HTTP 301"),
     (reply_with(choices__0__finish_reason="content_filter"), "content filter")],
)  # fmt: skip
def test_what_would_be_refused_again_is_not_tried_again(answer, reason):
    with Endpoint(answer if callable(answer) else lambda body, before: answer) as server:
        assert one(server).why == reason
    assert len(server.asked) == 1


def test_waits_grow_and_scatter():
    with Endpoint(lambda body, before: 500) as server:
        one(server, backoff=0.08, retries=3)
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert all(0.04 * 2**turn <= gap for turn, gap in enumerate(gaps))
    waits = engine(server.url, backoff=0.08)._caller
    fault = type("Fault", (), {"wait": None})()
    assert len({waits.delay(1, fault) for _ in range(50)}) > 40
    assert all(0.16 <= waits.delay(3, fault) <= 0.32 for _ in range(50))
    assert max(waits.delay(20, fault) for _ in range(50)) <= 60.0


@pytest.mark.parametrize("header", ["0.4", "date"])
def test_retry_after_is_kept_by_every_request(header):
    def answer(body, before):
        if len(server.asked) > 1:
            return completion(body, "fine")
        when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2)) if header == "date" else header
        return 429, {"Retry-After": when}, b"{}"

    with Endpoint(answer) as server:
        replies = engine(server.url, concurrency=1).generate(PROMPTS, SAMPLING)
    assert not any(reply.failed for pair in replies for reply in pair)
    assert server.times[1] - server.times[0] >= (0.4 if header == "0.4" else 0.9)


def test_a_pause_that_is_too_long_ends_the_call():
    with Endpoint(lambda body, before: (429, {"Retry-After": "3600"}, b"{}")) as server:
        with pytest.raises(StageFailed, match=r"asks for a pause of 3,600 s .* run it again later"):
            engine(server.url).generate(PROMPTS, SAMPLING)
        assert len(server.asked) <= 4


def test_a_pause_that_a_broken_server_asks_for():
    def answer(body, before):
        return (503, {"Retry-After": "0.3"}, b"") if before == 0 else completion(body, "fine")

    with Endpoint(answer) as server:
        assert one(server).text == "fine"
    assert server.times[1] - server.times[0] >= 0.3


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_ends_the_call_at_once(status, monkeypatch):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    refused = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    with Endpoint(lambda body, before: (status, {}, refused)) as server:
        with pytest.raises(BadInput) as caught:
            engine(server.url, concurrency=2).generate([f"add {i} :" for i in range(50)], SAMPLING)
        assert len(server.asked) <= 2
    assert "the key in the environment variable TEST_ENDPOINT_KEY" in str(caught.value)
    assert KEY not in str(caught.value)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_no_key_is_said_to_be_none(monkeypatch):
    monkeypatch.delenv("TEST_ENDPOINT_KEY", raising=False)
    with Endpoint(lambda body, before: 401) as server, pytest.raises(BadInput, match="TEST_ENDPOINT_KEY is not set"):
        one(server)
    assert "Authorization" not in server.headers[0]


def test_a_key_with_a_line_break_in_it(monkeypatch):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", "sk-a\nX-Other: b")
    with Endpoint(echo) as server, pytest.raises(BadInput, match="holds characters that no key has") as caught:
        one(server)
    assert "sk-a" not in str(caught.value)
    assert server.asked == []


def test_a_model_that_is_not_served():
    with (
        Endpoint(lambda body, before: 404, models=("this", "that")) as server,
        pytest.raises(BadInput, match=r"no server has model m .* has this, that; .*engine\.endpoint\.model"),
    ):
        one(server)
    assert len(server.asked) == 1


def test_a_model_that_is_served_later():
    with Endpoint(lambda body, before: 404) as server:
        asking = engine(server.url)
        with pytest.raises(BadInput, match="no server has model m"):
            asking.generate([f"add {i} :" for i in range(50)], SAMPLING)
        server.answer = echo
        assert not asking.generate(PROMPTS, SAMPLING)[0][0].failed


def test_a_word_that_stands_for_no_key_may_be_part_of_a_reply(monkeypatch):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", "EMPTY")
    with Endpoint(lambda body, before: completion(body, "the list is EMPTY")) as server:
        assert one(server).text == "the list is EMPTY"


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def test_a_server_that_cannot_be_reached():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(StageFailed, match=f"no server answers at {url}") as caught:
        engine(url).generate([f"add {i} :" for i in range(50)], SAMPLING)
    assert "serving.openai.base_urls" in str(caught.value)


def test_failover_goes_on_with_the_server_that_works():
    gone = f"http://127.0.0.1:{free_port()}/v1"
    with (
        Endpoint(lambda body, before: 500) as broken,
        Endpoint(lambda body, before: 404) as other,
        Endpoint(echo) as good,
    ):
        asking = engine(gone, broken.url, other.url, good.url, concurrency=1)
        replies = asking.generate([f"add {i} :" for i in range(20)], SAMPLING)
        assert not any(reply.failed for pair in replies for reply in pair)
        assert (len(broken.asked), len(other.asked), len(good.asked)) == (1, 1, 40)
        asking.generate(PROMPTS, SAMPLING)
        assert (len(broken.asked), len(other.asked)) == (1, 1)


def test_a_server_on_this_machine_is_asked_directly_also_beside_one_that_is_not(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")  # nothing answers there
    with Endpoint(echo) as good:
        replies = engine(good.url, "http://example.invalid/v1").generate(PROMPTS, SAMPLING)
    assert not any(reply.failed for pair in replies for reply in pair)


def test_a_server_that_dies_in_the_middle_is_left():
    with Endpoint(echo) as good:
        with Endpoint(lambda body, before: echo(body, before) if len(first.asked) < 5 else "drop") as first:
            replies = engine(first.url, good.url, concurrency=4).generate([f"add {i} :" for i in range(20)], SAMPLING)
        assert not any(reply.failed for pair in replies for reply in pair)
    assert len(good.asked) >= 32


# --- limits ----------------------------------------------------------------------------------------------------


def test_no_more_requests_at_once_than_allowed():
    gate = threading.Semaphore(0)

    def answer(body, before):
        gate.acquire(timeout=0.02)
        return completion(body, "fine")

    with Endpoint(answer) as server:
        engine(server.url, concurrency=5).generate([f"add {i} :" for i in range(30)], SAMPLING)
    assert server.most_in_flight == 5


def test_no_more_requests_a_minute_than_allowed():
    with Endpoint(lambda body, before: 500 if before == 0 else completion(body, "fine")) as server:
        asking = engine(server.url, requests_per_minute=3000)
        asking.generate(PROMPTS, SAMPLING)
        asking.generate(PROMPTS, SAMPLING)
    assert server.times[-1] - server.times[0] >= (len(server.times) - 1) * 0.02 - 0.01  # retries count, and both calls

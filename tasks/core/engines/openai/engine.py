"""The `openai` engine: any server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, hosted ones).

Every draw of every prompt is a request of its own, with a seed derived from the sampling seed, the prompt and the
draw's number, so that a draw depends on nothing else as far as the server keeps to its seed. `completions` posts the
rendered prompt; `chat` posts the messages, which then are the prompt, as JSON. Both ask for the log-probabilities of the
reply's tokens. A reply out of a list (`Sampling.choices`) is asked for with `structured_outputs`, which vLLM takes, or in
`chat` with a JSON schema, which most servers take, whose only field holds the reply; a server that sends another reply
all the same, because it knows neither, fails the request. Token counts are the server's (`usage`). `score` posts prompt
and response as token ids with `echo`, which vLLM and SGLang take.

`serving.openai` says how the servers are reached, `engine.endpoint` what is asked. The key is read from the environment
when something is asked, is sent as a bearer token, and is nowhere else. Faults: tasks/core/engines/openai/calls.py.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.core.engines.contract import Completion, Request, Sampling, Statistic, Unusable, no_reply, one_of
from tasks.core.engines.openai.calls import Caller
from tasks.core.engines.options import Openai
from tasks.core.errors import BadInput, StageFailed
from tasks.core.seeds import derive

PATHS = {"completions": "completions", "chat": "chat/completions"}
ROUNDS = 16  # how often a block of requests keeps every connection busy
MOST_TOKENS = 2**31 - 1
REPLY = "reply"  # the field of the JSON object in which a chat server gives one of the choices
FRAME_TOKENS = 32  # of that object, at most


def connect(model: str, folder: Path, endpoint: Mapping[str, Any], serving: Mapping[str, Any]) -> "Endpoint":
    """The engine; nothing is sent yet. Arguments as in `tasks.core.engines.connect`."""
    return Endpoint(endpoint["model"] or model, folder, endpoint, Openai.model_validate(dict(serving)))


class Endpoint:
    """Servers that have one model. See `tasks.core.engines.contract.RemoteEngine` for the contract."""

    def __init__(self, model: str, folder: Path, endpoint: Mapping[str, Any], serving: Openai) -> None:
        self.model, self.folder, self.endpoint, self.serving = model, folder, endpoint, serving
        self.chat = endpoint["protocol"] == "chat"
        self.block = ROUNDS * serving.concurrency
        self.quarantine_share = serving.quarantine_share
        self._caller = Caller(PATHS[endpoint["protocol"]], model, serving)
        self._tokenizer: Any = None

    def ask(
        self,
        requests: Sequence[Request],
        arrived: Callable[[Request, str], None],
        failed: Callable[[Request, str, str], None],
    ) -> int:
        """As `RemoteEngine.ask` says."""

        def came(number: int, raw: str) -> None:
            request = requests[number]
            self.read(request, raw) if request.response is None else self.read_scores(request, raw)
            arrived(request, raw)

        def gave_up(number: int, reason: str, words: str) -> None:
            request = requests[number]
            if request.response is not None and (reason.startswith("HTTP 4") or reason == NO_SCORES):
                raise _unscorable(f"{', '.join(self.serving.base_urls)}: {reason} {words}")
            failed(request, reason, words)

        before = self._caller.retries
        self._caller.post([self.body(request) for request in requests], self._key(), came, gave_up)
        return self._caller.retries - before

    def body(self, request: Request) -> bytes:
        """What is posted for the request. Raises `BadInput` for a score that the protocol has no way to ask for."""
        sampling = request.sampling
        if request.response is not None:
            if request.statistic != "logprob":
                raise BadInput(
                    f"the engine openai cannot give the {request.statistic} of a text: that takes the probabilities of the whole "
                    "vocabulary, and no server tells them; use engine.name: transformers or vllm, or statistic: logprob"
                )
            if self.chat:
                raise _unscorable("engine.endpoint.protocol is chat, which has no way to ask for it")
            prompt: Any = [*self._tokens(request.prompt), *self._tokens(request.response), self._end()]
            fields = {"prompt": prompt, "echo": True, "max_tokens": 0, "temperature": 0.0, "logprobs": 1}
        else:
            asked = {"messages": json.loads(request.prompt)} if self.chat else {"prompt": request.prompt}
            fields = {
                **asked,
                self.endpoint["length_field"]: sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "logprobs": True if self.chat else 1,
            }
            if sampling.temperature > 0:
                fields["seed"] = derive(sampling.seed, request.prompt, request.draw)
            if sampling.choices:
                fields |= self._restricted(sampling)
        fields = {"model": self.model, **fields, **self.endpoint["extra"]}
        return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()

    def _restricted(self, sampling: Sampling) -> dict[str, Any]:
        """What is posted so that the reply is one of the choices."""
        choices = list(sampling.choices)
        if not self.chat:
            return {"structured_outputs": {"choice": choices}}
        schema = {
            "type": "object",
            "properties": {REPLY: {"type": "string", "enum": choices}},
            "required": [REPLY],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": REPLY, "strict": True, "schema": schema}}
        return {"response_format": form, self.endpoint["length_field"]: sampling.max_new_tokens + FRAME_TOKENS}

    def read(self, request: Request, raw: str) -> Completion:
        """The completion in a reply. Raises `Unusable`."""
        reply, choice = _choice(raw)
        if self.chat:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else 0
            if isinstance(message, dict) and text is None:
                if message.get("refusal"):
                    raise Unusable("refused", final=True)
                text = ""
        else:
            text = choice.get("text")
        if not isinstance(text, str):
            raise Unusable("no text")
        finish = choice.get("finish_reason")
        if finish not in ("stop", "length"):
            raise Unusable(
                "content filter" if finish == "content_filter" else "no finish", final=isinstance(finish, str)
            )
        usage = reply.get("usage")
        counts = [
            usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts):
            raise Unusable("no usage")
        logprobs = _logprobs(choice, self.chat)
        known = bool(logprobs) and None not in logprobs
        total = round(math.fsum(value for value in logprobs if value is not None), 4) + 0.0 if known else None
        whole = text.encode("utf-8", "replace").decode()  # half a surrogate pair is JSON, but no text
        if request.sampling.choices and finish == "stop":
            whole = self._chosen(whole, request.sampling.choices)
        return Completion(whole, int(counts[0] or 0), int(counts[1] or 0), total, finish)

    def _chosen(self, text: str, choices: Sequence[str]) -> str:
        """The choice that a reply is. Raises `Unusable` for one that is none."""
        if self.chat:
            try:
                framed = json.loads(text)
            except (ValueError, RecursionError):
                framed = None
            text = str(framed.get(REPLY)) if isinstance(framed, dict) else text
        choice = one_of(choices, text)
        if choice is None:
            raise Unusable(f"a reply outside of the choices, so the server may not know {self._knowing}", final=True)
        return choice

    @property
    def _knowing(self) -> str:
        return "response_format: json_schema" if self.chat else "structured_outputs"

    def read_scores(self, request: Request, raw: str) -> list[float]:
        """Log-probability of each token of the request's response and of the end of text. Raises `Unusable`."""
        _, choice = _choice(raw)
        start, count = len(self._tokens(request.prompt)), len(self._tokens(request.response or "")) + 1
        values = _logprobs(choice, chat=False)[start : start + count]
        scores = [round(value, 4) + 0.0 for value in values if value is not None]
        if len(scores) != count:
            raise Unusable(NO_SCORES, final=True)
        return scores

    def generate(self, prompts: Sequence[str], sampling: Sampling, first_draw: int = 0) -> list[list[Completion]]:
        """As `tasks.core.engines.contract.Engine.generate`; a request without a usable reply gives one that has `failed`."""
        single = replace(sampling, n=1)
        requests = [
            Request(f"{index}/{draw}", prompt, single, draw)
            for index, prompt in enumerate(prompts)
            for draw in range(first_draw, first_draw + sampling.n)
        ]
        found: dict[str, Completion] = {}
        self.ask(
            requests,
            lambda request, raw: found.update({request.key: self.read(request, raw)}),
            lambda request, reason, words: found.update({request.key: no_reply(reason)}),
        )
        replies = [found[request.key] for request in requests]
        return [replies[start : start + sampling.n] for start in range(0, len(replies), sampling.n)]

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], statistic: Statistic = "logprob"
    ) -> list[list[float]]:
        """As `tasks.core.engines.contract.Engine.score`. Raises `BadInput` where the server cannot, `StageFailed` where it fails."""
        pairs = enumerate(zip(prompts, responses, strict=True))
        requests = [
            Request(str(index), prompt, Sampling(1, 0.0, 1.0, 1, 0), 0, response, statistic)
            for index, (prompt, response) in pairs
        ]
        found: dict[str, list[float]] = {}

        def failed(request: Request, reason: str, words: str) -> None:
            raise StageFailed(f"a request for scores got no usable reply ({reason}) {words}")

        self.ask(requests, lambda request, raw: found.update({request.key: self.read_scores(request, raw)}), failed)
        return [found[request.key] for request in requests]

    def close(self) -> None:
        """There is nothing to give back."""

    def _key(self) -> str | None:
        name = self.serving.key_variable
        key = os.environ.get(name, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise BadInput(f"the environment variable {name} holds characters that no key has; export the key anew")
        return key or None

    def _tokens(self, text: str) -> list[int]:
        return list(self._loaded()(text, add_special_tokens=False)["input_ids"]) if text else []

    def _end(self) -> int:
        end = self._loaded().eos_token_id
        if end is None:
            raise _unscorable("the model's tokenizer has no end-of-text token, so no response has an end to score")
        return int(end)

    def _loaded(self) -> Any:
        if self._tokenizer is None:
            from tasks.core.models import tokenizers

            self._tokenizer = tokenizers.plain_tokenizer(self.folder)
        return self._tokenizer


NO_SCORES = "no log-probabilities of the prompt"


def _unscorable(why: str) -> BadInput:
    return BadInput(
        f"the engine openai cannot give the log-probabilities of a given text here: {why}; that needs a server whose "
        "/completions takes `echo` with `logprobs`, such as vLLM's, and engine.endpoint.protocol: completions; or use the "
        "engine transformers, or blocks that need no scores"
    )


def _choice(raw: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reply and its first choice. Raises `Unusable`."""
    try:
        reply = json.loads(raw)
    except (ValueError, RecursionError):
        raise Unusable("no JSON") from None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        raise Unusable("no choices")
    if not choices:
        raise Unusable("empty choices")
    if not isinstance(choices[0], dict):
        raise Unusable("no choices")
    return reply, choices[0]


def _logprobs(choice: Mapping[str, Any], chat: bool) -> list[float | None]:
    """Log-probabilities by token, [] where there are none. Raises `Unusable` for what are no log-probabilities."""
    given = choice.get("logprobs")
    if not isinstance(given, dict):
        return []
    if chat:
        entries = given.get("content")
        values: list[Any] = [entry.get("logprob") if isinstance(entry, dict) else "" for entry in _list(entries)]
    else:
        values = _list(given.get("token_logprobs"))
    if not all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in values):
        raise Unusable("no log-probabilities")
    return [None if value is None else float(value) for value in values]


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unusable("no log-probabilities")
    return value

"""Models for tests: replies by a function, from an engine that counts what it is asked, and folders of files that make one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks.core import digests
from tasks.core.asking.local import LocalModel
from tasks.core.asking.opener import Opener
from tasks.core.engines.contract import Completion, Sampling, Statistic, no_reply
from tasks.core.family import Messages
from tasks.core.models.pointer import Pointer

Reply = Callable[[str, int], str | None]  # (rendered prompt, draw) -> text, None where the request fails


def replied(prompt: str, text: str | None) -> Completion:
    """A completion with a token a word."""
    if text is None:
        return no_reply("HTTP 500")
    return Completion(text, len(prompt.split()), len(text.split()) + 1, -1.0, "stop")


class Unsteady:
    """What blocks use of a model: replies by a function, and some of them fail, as those of an endpoint may."""

    digest = "d" * 32

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def generate(
        self, messages: Sequence[Messages], sampling: Sampling, what: str, about: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        asked = [" ".join(m["content"] for m in several) for several in messages]
        return [[replied(prompt, self.reply(prompt, draw)) for draw in range(sampling.n)] for prompt in asked]


class Scripted:
    """An engine that replies by a function and counts what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked, self.closed = reply, 0, False
        self.prompts: list[str] = []
        self.choices: set[tuple[str, ...]] = set()

    def generate(self, prompts: Sequence[str], sampling: Sampling, first_draw: int = 0) -> list[list[Completion]]:
        self.asked += len(prompts) * sampling.n
        self.prompts += prompts
        self.choices.add(sampling.choices)
        texts = [[self.reply(p, first_draw + d) for d in range(sampling.n)] for p in prompts]
        return [[replied(p, t) for t in several] for p, several in zip(prompts, texts, strict=True)]

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], statistic: Statistic = "logprob"
    ) -> list[list[float]]:
        self.asked += len(prompts)
        return [[-0.5] * (len(r.split()) + 1) for r in responses]

    def close(self) -> None:
        self.closed = True


ENGINE = {
    "name": "transformers",
    "precision": "float32",
    "threads": 1,
    "batch_size": 64,
    "rows_per_shard": 8,
    "draws_per_shard": 4,
    "endpoint": {"model": None, "protocol": "completions", "length_field": "max_tokens", "extra": {}},
}


def scripted_model(tmp_path: Path, reply: Reply, digest: str = "d" * 32, **engine: Any) -> tuple[LocalModel, Scripted]:
    """A model over a scripted engine; rendering joins the contents of the messages."""
    scripted = Scripted(reply)
    opener = Opener(tmp_path, {**ENGINE, **engine}, tmp_path / "scratch")
    made = LocalModel(Pointer("model", digest), tmp_path, opener.engine_options, opener.scratch, opener)
    made._engine = scripted
    made._tokenizer = object()
    made.render = lambda messages: [" ".join(m["content"] for m in several) for several in messages]  # type: ignore[method-assign]
    return made, scripted


def policy(root: Path, key: str, digest: str = "d" * 32) -> None:
    """Writes a policy pointer."""
    path = root / "data" / key / "pointer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"path": f"data/{key}/candidate", "digest": digest}))


def digest_of(root: Path) -> str:
    return digests.of_path(root)


def model_files(folder: Path, *without: str, **tensors: list[int]) -> Path:
    """A model folder whose files are whole, but for those in `without`; `tensors`: shapes of its (empty) weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    entries = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    header = json.dumps(entries).encode()
    contents = {
        "config.json": b'{"model_type": "qwen3"}',
        "model.safetensors": len(header).to_bytes(8, "little") + header,
        "tokenizer.json": Tokenizer(WordLevel({"?": 0}, unk_token="?")).to_str().encode(),
        "chat_template.jinja": b"{% for message in messages %}{{ message.content }}{% endfor %}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if name not in without:
            (folder / name).write_bytes(content)
    return folder

"""A toy family and engines for tests: additions such as "add 2 3", answered by plain text."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

from tasks.blocks import filter
from tasks.blocks.filter.selection import Selection
from tasks.blocks.sample.candidates import Asked, candidates
from tasks.blocks.work import JUDGE, POLICY, Work
from tasks.core import digests, tables
from tasks.core.asking.local import LocalModel
from tasks.core.asking.model import Model
from tasks.core.asking.opener import Opener
from tasks.core.block import Bound, bind
from tasks.core.context import Context
from tasks.core.engines.contract import Completion, Sampling, Statistic, no_reply
from tasks.core.family import Invented, Messages, Question, Verdict
from tasks.core.labels import Truth
from tasks.core.models.pointer import Pointer
from tests.tiny import user


class Adding:
    """Prompts "add A B"; an answer is an integer; a critique is "yes" or "no"."""

    name = "adding"
    has_truth = True

    def vocabulary(self) -> None:
        return None

    def extract(self, messages: Messages, response: str) -> str | None:
        return response.strip() if response.strip().isdigit() else None

    def difficulty(self, messages: Messages) -> int:
        return len(messages[0]["content"])

    def fingerprint(self, messages: Messages) -> str:
        return " ".join(sorted(messages[0]["content"].split()[1:]))

    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        return None if "?" in response else user(f"check {messages[0]['content']} : {response} ?")

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        if reply not in ("yes", "no"):
            return Verdict(False, why="neither yes nor no")
        return Verdict(True, reply == "yes", float(reply == "yes"), reply)

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        if self.extract(messages, response) is None:
            return None
        return [Question(user("sum " + messages[0]["content"].split(" ", 1)[1]), response.strip())]

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        right = [question.claim for question in asked] == list(answers)
        return Verdict(True, right, float(right), f"I get {answers[0]}")

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        return user(f"fix {messages[0]['content']} : {response} : {critique}")

    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        return user("invent " + " | ".join(e[0]["content"] for e in examples))

    def parse_invented(self, reply: str) -> list[Invented]:
        return [Invented(user(reply)) if reply.startswith("add ") else Invented(None, "not an addition")]

    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        return response.strip() == str(sum(int(n) for n in messages[0]["content"].split()[1:]))


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


def prompts(*texts: str, family: str = "adding") -> pl.DataFrame:
    rows = [
        {
            "prompt_id": tables.prompt_id(family, user(text)),
            "messages": user(text),
            "family": family,
            "difficulty": len(text),
            "source": "test",
            "parent_ids": [],
            "answer": None,
        }
        for text in texts
    ]
    return tables.frame(rows, tables.PROMPTS)


def sampled(table: pl.DataFrame, *responses: Sequence[str], family: Any = None) -> pl.DataFrame:
    """CANDIDATES with these responses to each prompt of the table."""
    replies = [[replied("", text) for text in several] for several in responses]
    asked = [Asked(*row) for row in table.select("prompt_id", "messages", again="messages").iter_rows()]
    return candidates(family or Adding(), "m", "iid", 0, asked, replies)


def work(
    table: pl.DataFrame, model: Model | None = None, stage: str = "critique", labels: bool = False, **given: Any
) -> Work:
    """What blocks are given that ask one model, in both its roles, about prompts."""
    family = given.pop("family", None) or Adding()
    models = {POLICY: model, JUDGE: model} if model is not None else {}
    return Work(table, family, models, Truth(family, stage, labels), **{"seed": 1, "name": stage} | given)


def bound(blocks: Any, name: str, **options: Any) -> Bound:
    """One block with these options, under its own name."""
    [made] = bind(blocks, {name: options}, "here")
    return made


def through(state: Selection, **section: Any) -> Selection:
    """What the filter blocks of a section make of a selection."""
    for bound in filter.in_order(bind(filter.BLOCKS, section, "filter")):
        state = bound(state)
    return state


def context(root: Path, stage: str, key: str | None, options: Any, open_model: Any = None, **given: Any) -> Context:
    """A context whose outputs land below `root` itself."""
    row = {"previous": "i00", "initial": "i00", "reference": "i00", "judge": "i00"}
    fields: dict[str, Any] = {"row": row, "seed": 1, "labels": False, "engine": ENGINE, "scratch": root / "scratch"}
    fields.update(given)
    return Context(stage, key, options=options, root=root, staging=root, open_model=open_model, **fields)


def policy(root: Path, key: str, digest: str = "d" * 32) -> None:
    """Writes a policy pointer."""
    path = root / "data" / key / "pointer.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"path": f"data/{key}/candidate", "digest": digest}))


def write_yaml(path: Path, value: Any) -> None:
    """With the library that reads params.yaml and dvc.lock."""
    with path.open("w") as file:
        YAML(typ="safe").dump(value, file)


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


def text_options(**changes: Any) -> dict[str, Any]:
    """`prepare.options` of the text family over fields `q` and `a` of `p.jsonl`, else as its recipes have them."""
    from flows.params import compose

    own: dict[str, Any] = compose.compose("lmsi", "text")["prepare"]["options"]
    return own | {"path": "p.jsonl", "prompt_field": "q", "answer_field": "a"} | changes

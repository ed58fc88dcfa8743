"""A trial of a model on this machine: its sizes, lengths in tokens, seconds of a call, of a training's steps.

A process of its own, so that it can be stopped at any time and leaves no memory behind: `measure` starts it, reads what
it found so far, and ends it when its time is over. Its findings, one JSON object a line, in this order:

    {"gpus": n}
    {"bytes": n, "parameters": n, "adapter_bytes": n or null}     of the model; of a LoRA adapter for it, where train has one
    {"prompts": {kind: tokens}, "rows": {part: tokens}, "replies": {part: tokens}, "longest": {part: tokens}}   means, longest
    {"kind": ..., "rows": n, "seconds": s, "tokens": n, "longest": n, "ended": share, "limit": n}    `flows.estimate.speed.Call`
    {"training": name, "fixed": s, "steps": [s, ...]}    see `flows.estimate.speed.Training`

The model is the folder that is given or, where there is none yet, `base.architecture` with random weights. Those reply
up to their limit, which the estimate takes into account. Replies are cut after `NEW` tokens.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flows.machine import state, terminal
from tasks.core.engines.contract import Sampling
from tasks.core.errors import BadInput
from tasks.core.models import files

Found = dict[str, Any]

ENGINES = ("transformers", "vllm")  # those that compute on this machine
NEW = 48  # tokens of a reply, at most: what further ones cost is like what these did
STOPPED = "it was stopped"
LARGE = "the model is too large for the memory here"
GROWTH = 8  # of the number of conversations, until they take long enough
STEPS = 16  # of a training, at most
STEPPING = 0.7  # of its time; the rest is for the last step, and to write the model
LEAST_STEPS = 3  # the first does not count
BYTES = {"float32": 4, "bfloat16": 2}  # of a parameter


def measure(root: Path, request: Mapping[str, Any], seconds: float) -> list[Found]:
    """What the trial found within `seconds`; what took longer is missing, and the last finding is `problem`, a text."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(request["engine"]["threads"])}
    with tempfile.TemporaryDirectory(prefix="trial-", dir=state.scratch_dir(root)) as scratch:
        asked = json.dumps({**request, "root": str(root), "scratch": scratch, "seconds": seconds})
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.estimate.trial"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            out, errors = child.communicate(asked, timeout=seconds)
            said = reason(child.returncode, errors)
        except subprocess.TimeoutExpired:
            child.kill()
            out, _ = child.communicate()
            said = [f"{STOPPED} after {seconds:.0f} s"]
    lines = [line for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    return [json.loads(line) for line in lines] + [{"problem": line} for line in said]


def reason(code: int, errors: str) -> list[str]:
    """Why the trial ended, in one line; none if it did what it should."""
    if not code:
        return []
    if code == -signal.SIGKILL:
        return [f"it was killed, by a user or because {LARGE}"]
    last = (errors.strip().splitlines() or [f"ended with exit code {code}"])[-1]
    text = re.sub(r"^[\w.]*(Error|Exception): ", "", last)  # of an error that nobody raised on purpose
    return [f"{LARGE} ({text})" if "memory" in text.lower() and not text.startswith(LARGE) else text]


def findings(request: Mapping[str, Any], scratch: Path) -> Iterator[Found]:
    """The findings, one after the other. `scratch`: an empty folder."""
    import torch

    from tasks.core.models import tokenizers

    ends = time.monotonic() + request["seconds"]
    yield {"gpus": torch.cuda.device_count()}
    folder = Path(request["folder"]) if request["folder"] else _built(request["random"], scratch / "model")
    known = sizes(folder, request["lora"])
    yield known
    if request["engine"]["name"] in ENGINES or request["train"]:
        check_memory(BYTES[request["engine"]["precision"]] * known["parameters"])
    tokenizer = tokenizers.load_tokenizer(folder)

    def tokens(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    prompts = {k: [tokenizers.render(tokenizer, c) for c in several] for k, several in request["conversations"].items()}
    parts = {p: [tokenizers.render(tokenizer, prompt) for prompt, _ in rows] for p, rows in request["rows"].items()}
    replies = {p: [n + 1 for n in tokens([told for _, told in rows])] for p, rows in request["rows"].items()}
    yield {
        "prompts": {kind: _mean(tokens(texts)) for kind, texts in prompts.items()},
        "rows": {part: _mean(tokens(texts)) + _mean(replies[part]) for part, texts in parts.items()},
        "replies": {part: _mean(numbers) for part, numbers in replies.items()},
        "longest": {part: max(numbers, default=0) for part, numbers in replies.items()},
    }
    if request["engine"]["name"] in ENGINES:
        share = (ends - time.monotonic()) / (2 * len(request["asked"]) + 2 * len(request["train"]) + 1)
        yield from _generation(request, folder, prompts, share)
    for number, train in enumerate(request["train"]):
        share = STEPPING * (ends - time.monotonic()) / (len(request["train"]) - number)
        found = _training(request["rows"], train["kind"], train["options"], folder, scratch, share)
        yield {"training": train["name"], **found}


def check_memory(needed: int) -> None:
    """Raises `BadInput` for a model of so many bytes that this machine cannot hold."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return
    free = psutil.virtual_memory().available
    if needed > free:
        raise BadInput(f"{LARGE}: it takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _built(given: Mapping[str, Any], folder: Path) -> Path:
    """The architecture with random weights."""
    from tasks.core.models import tokenizers, weights

    tokenizer = tokenizers.make_tokenizer(given["vocabulary"], iter(given["texts"]), given["vocabulary_size"])
    weights.build(given["architecture"], tokenizer, 0, folder)
    return folder


def _generation(
    request: Mapping[str, Any], folder: Path, prompts: Mapping[str, list[str]], share: float
) -> Iterator[Found]:
    from tasks.core import engines

    options = request["engine"]
    engine = engines.load(
        options["name"], folder, options["precision"], options["threads"], options["batch_size"],
        request["serving"].get(options["name"]),
    )  # fmt: skip
    for asked in request["asked"]:
        texts, draws = prompts[asked["kind"]], asked["draws"]
        limit = max(1, min(asked["longest"], NEW))  # a score of given text is like a reply of one token
        most = min(len(texts), max(1, min(options["batch_size"], options["rows_per_shard"]) // draws))
        engine.generate(texts[-1:], Sampling(1, 1.0, 1.0, 2, 1))  # the first call of an engine takes longer
        number, seconds = 0, 0.0
        while number < most and seconds * GROWTH < share:
            number = min(most, max(1, GROWTH * number))
            began = time.perf_counter()
            made = engine.generate(texts[:number], Sampling(draws, 1.0, 1.0, limit, number))
            seconds = time.perf_counter() - began
        replies = [reply for several in made for reply in several]
        yield {
            "kind": asked["kind"], "rows": len(replies), "seconds": seconds, "limit": limit,
            "tokens": _mean([reply.tokens for reply in replies]), "longest": max(reply.tokens for reply in replies),
            "ended": _mean([reply.finish_reason == "stop" for reply in replies]),
        }  # fmt: skip
    engine.close()


class _Enough(Exception):
    """The training was measured for long enough."""


def _training(
    examples: Mapping[str, Any], kind: str, given: Mapping[str, Any], folder: Path, scratch: Path, seconds: float
) -> Found:
    """A training of a few steps, as many as fit."""
    import polars as pl

    from tasks.blocks.train import BLOCKS
    from tasks.blocks.train.job import Job
    from tasks.core import tables
    from tasks.core.training.options import OPTIONS, AnchoredOptions

    options = OPTIONS[kind](**given)
    mixed = options.replay if isinstance(options, AnchoredOptions) else options.mixture
    rows = [_row(part, *row) for part in mixed for row in examples[part]]
    sft = tables.frame(rows, tables.SFT).with_columns(row_id=pl.int_range(len(rows)).cast(pl.String))
    own = list(enumerate(examples["own"])) if isinstance(options, AnchoredOptions) else []
    parts = list(options.mixture)
    pairs = tables.frame([_pair(part, number, *row) for part in parts for number, row in own], tables.PAIRS)
    rated = tables.frame([_rated(part, number, *row) for part in parts for number, row in own], tables.RATED)
    chosen = options.model_copy(update={"steps": STEPS, "warmup_steps": 0, "checkpoint_steps": 10**6})
    ends: list[float] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == kind:
            ends.append(time.perf_counter())
            if done >= LEAST_STEPS and ends[-1] - began > seconds:
                raise _Enough

    began = time.perf_counter()
    job = Job(folder, folder, sft, pairs, scratch / "trained", scratch, 0, progress, rated=rated)
    with contextlib.suppress(_Enough):
        BLOCKS[kind].run(job, chosen)
    whole = time.perf_counter() - began
    steps = [after - before for before, after in pairwise(ends)]
    fixed = max(0.0, whole - sum(steps) * (1 + 1 / len(steps)))
    return {"fixed": fixed, "steps": steps}


def _row(part: str, prompt: Any, completion: str) -> dict[str, Any]:
    told = [{"role": "assistant", "content": completion}]
    return {
        "row_id": "", "part": part, "prompt": prompt, "completion": told, "weight": 1.0, "prompt_id": None,
        "candidate_id": None, "iteration": None,
    }  # fmt: skip


def _rated(part: str, number: int, prompt: Any, completion: str) -> dict[str, Any]:
    rated = {"row_id": str(number), "label": number % 2 == 0, "value": None, "prompt_id": "", "candidate_id": ""}
    return _row(part, prompt, completion) | rated | {"iteration": "i01"}


def _pair(part: str, number: int, prompt: Any, completion: str) -> dict[str, Any]:
    told = [{"role": "assistant", "content": completion}]
    return {
        "row_id": str(number), "part": part, "prompt": prompt, "chosen": told, "rejected": told, "margin": 1.0,
        "weight": 1.0, "smoothing": 0.0, "prompt_id": "", "chosen_id": "", "rejected_id": "", "iteration": "i01",
    }  # fmt: skip


def size(folder: Path) -> int:
    """Bytes of a model folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shapes(folder: Path) -> dict[str, list[int]]:
    """Every tensor's shape by its name, from the headers of the folder's safetensors."""
    headers = [files.header(path) for path in folder.glob("*.safetensors")]
    return {name: tensor["shape"] for header in headers for name, tensor in header.items()}


def sizes(folder: Path, lora: Mapping[str, Any] | None) -> Found:
    """`bytes` of the folder, `parameters` of the model, and `adapter_bytes` of a float32 LoRA adapter for it: rank times
    inputs and outputs of every targeted layer."""
    tensors = shapes(folder)
    layers = [tensors[n] for n in tensors if lora and n.endswith(".weight") and n.split(".")[-2] in lora["targets"]]
    adapted = [sum(shape) for shape in layers if len(shape) == 2]
    return {
        "bytes": size(folder),
        "parameters": sum(math.prod(shape) for shape in tensors.values()),
        "adapter_bytes": 4 * lora["rank"] * sum(adapted) if lora else None,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def main() -> None:
    """Reads the request from standard input; prints each finding when it is there."""
    request = json.load(sys.stdin)
    state.quiet(Path(request["root"]))
    for found in findings(request, Path(request["scratch"])):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(terminal.code(main))

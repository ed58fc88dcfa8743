"""A short measurement of a model on this machine: sizes, lengths in tokens, seconds of a request, tokens of training.

A process of its own, so that it can be stopped at any time and leaves no memory behind: `measure` starts it, reads what
it found so far, and ends it when its time is over. Its findings, one JSON object a line, in this order:

    {"bytes": n, "parameters": n, "adapter_bytes": n or null}     of the model; of a LoRA adapter for it, where train has one
    {"prompts": {kind: tokens}, "rows": {part: tokens}, "replies": {part: tokens}}     means
    {"kind": ..., "draws": ..., "longest": ..., "seconds": [a, b], "tokens": t}    of a request, measured twice; its new tokens
    {"training": [b, a]}                               tokens a second of a longer and of a very short training

The model is the folder that is given or, where there is none yet, `base.architecture` with random weights. Those reply
up to their limit, which the estimate takes into account.
"""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import state

Found = dict[str, Any]

ENGINES = ("transformers", "vllm")  # those that compute on this machine
STEPS = 12  # of the longer training, at most
FIRST_STEPS = 2


def measure(root: Path, request: Mapping[str, Any], seconds: float) -> list[Found]:
    """What the probe found within `seconds`; what took longer is missing, and the last finding is `problem`, a text."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(request["engine"]["threads"])}
    with tempfile.TemporaryDirectory(prefix="probe-", dir=state.scratch_dir(root)) as scratch:
        asked = json.dumps({**request, "root": str(root), "scratch": scratch, "seconds": seconds})
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            out, errors = child.communicate(asked, timeout=seconds)
            said = errors.strip().splitlines()[-1:] if child.returncode else []
        except subprocess.TimeoutExpired:
            child.kill()
            out, _ = child.communicate()
            said = [f"was stopped after {seconds:.0f} s"]
    lines = [line for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    return [json.loads(line) for line in lines] + [{"problem": line} for line in said]


def findings(request: Mapping[str, Any], scratch: Path) -> Iterator[Found]:
    """The findings, one after the other. `scratch`: an empty folder."""
    from tasks.core import models, rendering

    ends = time.monotonic() + request["seconds"]
    folder = Path(request["folder"]) if request["folder"] else _built(request["random"], scratch / "model")
    yield sizes(folder, (request["train"] or {}).get("options", {}).get("lora"))
    tokenizer = models.load_tokenizer(folder)

    def tokens(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    prompts = {k: [rendering.render(tokenizer, c) for c in several] for k, several in request["conversations"].items()}
    parts = {p: [rendering.render(tokenizer, prompt) for prompt, _ in rows] for p, rows in request["rows"].items()}
    replies = {p: [n + 1 for n in tokens([told for _, told in rows])] for p, rows in request["rows"].items()}
    yield {
        "prompts": {kind: _mean(tokens(texts)) for kind, texts in prompts.items()},
        "rows": {part: _mean(tokens(texts)) + _mean(replies[part]) for part, texts in parts.items()},
        "replies": {part: _mean(numbers) for part, numbers in replies.items()},
    }
    if request["engine"]["name"] in ENGINES:
        share = (ends - time.monotonic()) / (2 * len(request["asked"]) + 3)
        yield from _generation(request, folder, prompts, share)
    if request["train"]:
        yield from _training(request, folder, scratch, ends - time.monotonic())


def _built(given: Mapping[str, Any], folder: Path) -> Path:
    """The architecture with random weights."""
    from tasks.core import models, rendering

    tokenizer = rendering.make_tokenizer(given["vocabulary"], iter(given["texts"]), given["vocabulary_size"])
    models.build(given["architecture"], tokenizer, 0, folder)
    return folder


def _generation(
    request: Mapping[str, Any], folder: Path, prompts: Mapping[str, list[str]], share: float
) -> Iterator[Found]:
    from tasks.core import engines
    from tasks.core.engine import Sampling

    options = request["engine"]
    engine = engines.load(
        options["name"], folder, options["precision"], options["threads"], options["batch_size"],
        request["serving"].get(options["name"]),
    )  # fmt: skip
    for asked in request["asked"]:
        texts = prompts[asked["kind"]]
        most = min(len(texts), math.ceil(options["batch_size"] / asked["draws"]))
        sampling = Sampling(asked["draws"], 1.0, 1.0, asked["longest"], 0)

        def timed(number: int, texts: list[str] = texts, sampling: Sampling = sampling) -> tuple[float, float]:
            began = time.perf_counter()
            made = [reply.tokens for several in engine.generate(texts[:number], sampling) for reply in several]
            return (time.perf_counter() - began) / len(made), _mean(made)

        number, (first, length) = _growing(timed, most, share, asked["draws"])
        again, _ = timed(number)
        yield {**asked, "seconds": sorted([first, again]), "tokens": length}
    engine.close()


def _growing(
    timed: Callable[[int], tuple[float, float]], most: int, share: float, draws: int
) -> tuple[int, tuple[float, float]]:
    """The number of conversations that take a quarter of `share` seconds or are all, and what it measured with them."""
    timed(1)  # the first call of an engine prepares what later ones find
    number = 1
    while True:
        found = timed(number)
        if number >= most or found[0] * number * draws * 4 > share:
            return number, found
        number = min(most, 4 * number)


def _training(request: Mapping[str, Any], folder: Path, scratch: Path, seconds: float) -> Iterator[Found]:
    """Two trainings of a few steps; the second has as many as fit."""
    import polars as pl

    from tasks.blocks import training
    from tasks.core import tables

    kind, given = request["train"]["kind"], request["train"]["options"]
    options = training.SftOptions(**given) if kind == "sft" else training.DpoOptions(**given)
    mixed = options.mixture if isinstance(options, training.SftOptions) else options.replay
    rows = [_row(part, *row) for part in mixed for row in request["rows"][part]]
    sft = tables.frame(rows, tables.SFT).with_columns(row_id=pl.int_range(len(rows)).cast(pl.String))
    own = [_pair(number, *row) for number, row in enumerate(request["rows"]["own"])] if kind == "dpo" else []
    pairs = tables.frame(own, tables.PAIRS)

    def trained(steps: int) -> tuple[float, float]:
        """Tokens and seconds a step."""
        chosen = options.model_copy(update={"steps": steps, "warmup_steps": 0, "checkpoint_steps": 10**6})
        job = training.Job(folder, folder, sft, pairs, scratch / "trained", scratch, 0)
        training.BLOCKS[kind](job, chosen)
        return job.spent["training_tokens"] / steps, 1 / job.figures[f"{kind}_tokens_per_second"]

    began = time.monotonic()
    tokens, first = trained(FIRST_STEPS)
    left = seconds - (time.monotonic() - began)
    steps = min(STEPS, int(left / 3 / max(tokens * first, 1e-9)))
    second = trained(steps)[1] if steps > FIRST_STEPS else first
    yield {"training": [1 / second, 1 / first]}


def _row(part: str, prompt: Any, completion: str) -> dict[str, Any]:
    told = [{"role": "assistant", "content": completion}]
    return {
        "row_id": "", "part": part, "prompt": prompt, "completion": told, "weight": 1.0, "prompt_id": None,
        "candidate_id": None, "iteration": None,
    }  # fmt: skip


def _pair(number: int, prompt: Any, completion: str) -> dict[str, Any]:
    told = [{"role": "assistant", "content": completion}]
    return {
        "row_id": str(number), "part": "own", "prompt": prompt, "chosen": told, "rejected": told, "margin": 1.0,
        "weight": 1.0, "smoothing": 0.0, "prompt_id": "", "chosen_id": "", "rejected_id": "", "iteration": "i01",
    }  # fmt: skip


def size(folder: Path) -> int:
    """Bytes of a model folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shapes(folder: Path) -> dict[str, list[int]]:
    """Every tensor's shape by its name, from the headers of the folder's safetensors."""
    found: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        found |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    return found


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
    main()

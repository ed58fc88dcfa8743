"""How fast the `transformers` engine samples, against plain `model.generate` on the same model and requests.

    python tests/benchmarks/engine.py --threads 2 --repeats 5

The model has the size of the embedded default (Qwen3, width 96, 3 layers, 0.34M parameters) and weights set
by hand so that it counts down: a prompt ending in the token `k` is answered by `k-1 k-2 ... 1` and the end
of text, at any sane temperature. The work per token is that of any other weights, and reply lengths are
known. Three workloads, each (prompts x draws, reply lengths):

- `samples`: 500 x 9, prompts of 8 tokens, 11 tokens each, at most 16: the default's own sampling;
- `tenfold, skewed`: 400 x 4, from 6 to 60 tokens, nine in ten at most 15 (mean about 15);
- `tenfold, uniform`: 400 x 4, uniform from 6 to 60 (mean 33): the hardest tenfold for a gain.

`plain` tokenizes, pads on the left and calls `generate` on the repeated prompts batch by batch, in the order
given; its best batch size is found first. Then engine and plain alternate, and the table gives medians of
new tokens a second, and the median of the ratios of neighbouring runs. Only tokens up to the end of a reply
count. Both decode their replies to text. Threads wait for both as they do in a stage (flows/state.py).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch, as in flows/state.py

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.core import engines
from tasks.core.engines.contract import Sampling
from tests.support.engines import write_tokenizer

WORDS = ["<eos>", "<pad>", "<unk>", "ask", ":", *map(str, range(1, 86))]
LONGEST = 60
BATCHES = (128, 256, 512, 1024, 2048, 4096)


def build(folder: Path) -> None:
    """The counting model: the head maps token k's embedding to token k-1, the layers add little to it."""
    write_tokenizer(folder, WORDS)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3", vocab_size=len(WORDS), hidden_size=96, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=3, head_dim=32, max_position_embeddings=128,
        tie_word_embeddings=False, eos_token_id=0, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    embedding = torch.nn.functional.normalize(torch.randn(len(WORDS), 96), dim=-1) * 96**0.5
    after = [0, 0, 0, 0, 0, 0, *range(5, len(WORDS) - 1)]  # token 5 is the word 1, whose successor is the end
    head = torch.zeros(len(WORDS), 96)
    for token, following in enumerate(after):
        if token > 4:
            head[following] += embedding[token] / 3
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embedding)
        model.get_output_embeddings().weight.copy_(head)
    model.save_pretrained(folder)


def workloads(scale: float) -> dict[str, tuple[list[str], Sampling]]:
    """Name -> prompts and sampling; `scale` shrinks the number of prompts."""
    rng = np.random.default_rng(0)
    skewed = np.where(rng.random(400) < 0.9, rng.integers(6, 16, 400), rng.integers(45, LONGEST + 1, 400))
    wanted = {
        "samples": (np.full(500, 11), Sampling(9, 1.3, 1.0, 16, 0)),
        "tenfold, skewed": (skewed, Sampling(4, 1.0, 1.0, LONGEST + 4, 0)),
        "tenfold, uniform": (rng.integers(6, LONGEST + 1, 400), Sampling(4, 1.0, 1.0, LONGEST + 4, 0)),
    }
    return {
        name: ([_prompt(rng, int(length)) for length in lengths[: max(2, int(len(lengths) * scale))]], sampling)
        for name, (lengths, sampling) in wanted.items()
    }


def _prompt(rng: np.random.Generator, length: int) -> str:
    """Eight tokens; the reply to them has `length` tokens with the end of text."""
    return " ".join(["ask", *map(str, rng.integers(61, 86, 5)), ":", str(length)]) + " "


def engine_run(engine: Any, prompts: list[str], sampling: Sampling) -> int:
    """New tokens of one call."""
    return sum(reply.tokens for replies in engine.generate(prompts, sampling) for reply in replies)


def plain_run(engine: Any, model: Any, prompts: list[str], sampling: Sampling, batch: int) -> int:
    """New tokens of the same requests through `model.generate`, `batch` rows at a time."""
    tokenizer, rows, total = engine.tokenizer, [p for p in prompts for _ in range(sampling.n)], 0
    for start in range(0, len(rows), batch):
        asked = tokenizer(rows[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = asked["input_ids"], asked["attention_mask"]
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=sampling.temperature, top_k=0,
            top_p=sampling.top_p, max_new_tokens=sampling.max_new_tokens, pad_token_id=tokenizer.pad_token_id,
        )[:, ids.shape[1] :]  # fmt: skip
        tokenizer.batch_decode(output, skip_special_tokens=True)
        total += int((output != tokenizer.pad_token_id).sum())
    return total


def speed(run: Callable[[], int]) -> tuple[float, int]:
    """New tokens a second, and new tokens."""
    start = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - start), tokens


def main() -> None:
    """Prints the table, and the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description="transformers engine against model.generate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2048, help="of the engine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the prompts")
    chosen = parser.parse_args()
    figures = {}
    print("| workload | new tokens | engine tok/s | plain tok/s | plain's best batch | ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        engine: Any = engines.load("transformers", Path(folder), "float32", chosen.threads, chosen.batch_size)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        for name, (prompts, sampling) in workloads(chosen.scale).items():
            ours = partial(engine_run, engine, prompts, sampling)
            plain = partial(plain_run, engine, model, prompts, sampling)
            sizes = [size for size in BATCHES if size < 2 * len(prompts) * sampling.n] or list(BATCHES[:1])
            ours()
            first = {size: speed(partial(plain, batch=size))[0] for size in sizes}
            best = max(first, key=lambda size: first[size])
            pairs = [(speed(ours), speed(partial(plain, batch=best))) for _ in range(chosen.repeats)]
            fast, slow = median(a[0] for a, _ in pairs), median(b[0] for _, b in pairs)
            ratio = median(a[0] / b[0] for a, b in pairs)
            tokens = f"{pairs[0][0][1]} / {pairs[0][1][1]}"
            print(f"| {name} | {tokens} | {fast:.0f} | {slow:.0f} | {best} | {ratio:.2f} |", flush=True)
            figures[name] = {"engine": fast, "plain": slow, "plain_batch": best, "ratio": ratio, "first": first}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""How much of vLLM's speed the `vllm` engine keeps, against a bare `LLM.generate` over the same requests.

    .venv-extras/bin/python tests/benchmarks/vllm_engine.py --repeats 5

One vLLM serves both, alternately, after one run each that does not count; caches of prefixes are emptied before each
run. Bare: texts and a list of `SamplingParams` into `LLM.generate`, texts and log-probabilities out, nothing else.
The engine: its `generate`, from rendered prompts to completions. The requests are the same on both sides: text, length,
temperature, seed, log-probability of each token. A second bare side leaves out seeds and log-probabilities, which the
project needs and vLLM alone would not. The model has the size of the embedded default (Qwen3, width 96, 3 layers), its
weights are random; replies have 16 tokens unless they end before. Tokens a second, medians; the ratio is the
median of the ratios of neighbouring runs.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flows.params import compose
from tasks.core import engines
from tasks.core.engines import uniforms
from tasks.core.engines.contract import Sampling
from tasks.core.models import tokenizers, weights

TARGET = 0.95  # of the tokens a second of a bare LLM.generate over the same requests
WORDS = [str(number) for number in range(200)]
SIZES = {
    "model_type": "qwen3", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 3, "head_dim": 32, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip


def ours(engine: Any, prompts: list[str], sampling: Sampling) -> int:
    """New tokens of one call of the engine."""
    return sum(reply.tokens for row in engine.generate(prompts, sampling) for reply in row)


def bare(engine: Any, prompts: list[str], sampling: Sampling, plain: bool) -> int:
    """New tokens of one call of `LLM.generate`; `plain`: without seeds and log-probabilities."""
    from vllm import SamplingParams

    keys = uniforms.row_keys(sampling.seed, prompts, range(sampling.n))
    common = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens,
              "stop_token_ids": engine.texts.ends, "ignore_eos": True}  # fmt: skip
    params = [
        SamplingParams(**common) if plain else SamplingParams(**common, seed=int(key) >> 1, logprobs=0)
        for row in keys
        for key in row
    ]
    texts = [{"prompt": prompt} for prompt in prompts for _ in range(sampling.n)]
    outputs = engine.llm.generate(texts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def speed(engine: Any, run: Callable[[], int]) -> float:
    """New tokens a second."""
    engine.llm.reset_prefix_cache()
    start = time.perf_counter()
    tokens = run()
    return tokens / (time.perf_counter() - start)


def main() -> None:
    """Prints the table, and the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description="the vllm engine against LLM.generate")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a model folder in place of the built one")
    chosen = parser.parse_args()
    sampling = Sampling(chosen.draws, 1.0, 1.0, 16, 0)
    prompts = [
        " ".join(WORDS[(index * 7 + place * 13) % 200] for place in range(11)) + f" {index % 200} "
        for index in range(chosen.prompts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        if chosen.model is None:
            weights.build(SIZES, tokenizers.word_tokenizer(WORDS), 0, Path(folder))
        serving = {**compose.shared()["serving"]["vllm"], "cpu_cache_gib": 1, "eager": True}
        engine: Any = engines.load(
            "vllm", chosen.model or Path(folder), "float32", chosen.threads, chosen.batch_size, serving
        )
        sides: dict[str, Callable[[], int]] = {
            "engine": lambda: ours(engine, prompts, sampling),
            "bare": lambda: bare(engine, prompts, sampling, plain=False),
            "bare, no seeds or log-probabilities": lambda: bare(engine, prompts, sampling, plain=True),
        }
        for run in sides.values():
            run()
        rounds = [{name: speed(engine, run) for name, run in sides.items()} for _ in range(chosen.repeats)]
        engine.close()
    print(f"{len(prompts)} prompts x {chosen.draws} draws = {len(prompts) * chosen.draws} requests\n")
    print("| side | tokens/s | engine's share |\n|---|---|---|")
    figures = {}
    for name in sides:
        figures[name] = {
            "tokens_per_second": median(each[name] for each in rounds),
            "share": median(each["engine"] / each[name] for each in rounds),
        }
        print(f"| {name} | {figures[name]['tokens_per_second']:,.0f} | {figures[name]['share']:.3f} |")
    print(json.dumps(figures))
    if figures["bare"]["share"] < TARGET:
        raise SystemExit(
            f"the engine keeps {figures['bare']['share']:.3f} of a bare LLM.generate; the target is {TARGET}"
        )


if __name__ == "__main__":
    main()

"""The transformers engine on tiny random models: against `generate`, full forward passes and exact distributions."""

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tasks.core import engines
from tasks.core.engines import uniforms
from tasks.core.engines.transformers import cache
from tasks.core.errors import BadInput, OutOfMemory, StageFailed, UnknownName
from tests.support import engines as contract
from tests.support.engines import KINDS, PROMPTS, RESPONSES, WORDS, build, same, sampled, sampling, write_tokenizer
from tests.support.paths import ROOT


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    return engines.load("transformers", folder, "float32", 1, 64)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("one"), "qwen3")


@lru_cache
def reference(folder: str) -> Any:
    """The model of the folder as transformers runs it."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logprobs(engine: Any, prompt: str, tokens: list[int]) -> list[float]:
    """Log-probability of each token after the prompt, from one full pass over one row."""
    asked = engine.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        table = reference(engine.model.name_or_path)(torch.tensor([asked + tokens])).logits[0].log_softmax(-1)
    return [float(table[len(asked) - 1 + place, token]) for place, token in enumerate(tokens)]


def plain(engine: Any, prompt: str, new: int) -> list[int]:
    """Greedy tokens of `model.generate`."""
    asked = engine.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = reference(engine.model.name_or_path).generate(
        input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], do_sample=False, max_new_tokens=new
    )
    return output[0, asked["input_ids"].shape[1] :].tolist()


def test_greedy_is_that_of_generate(engine: Any) -> None:
    replies = engine.generate(PROMPTS, sampling(n=2, temperature=0, new=20))
    for prompt, (first, second) in zip(PROMPTS, replies, strict=True):
        expected = plain(engine, prompt, 20)
        assert first == second
        assert first.tokens == len(expected)
        assert first.text.split() == [WORDS[token] for token in expected if token > 2]
        assert first.logprob == pytest.approx(sum(logprobs(engine, prompt, expected)), abs=1e-3)
        assert first.prompt_tokens == len(prompt.split())
        assert first.finish_reason == ("stop" if expected[-1] == 0 else "length")


def test_sampled_logprobs_are_those_of_a_full_pass(engine: Any) -> None:
    for prompt, reply, tokens in sampled(engine, engine.tokenizer):
        assert reply.logprob == pytest.approx(sum(logprobs(engine, prompt, tokens)), abs=1e-3)
        told = sum(engine.score([prompt], [reply.text])[0][: len(tokens)])
        assert told == pytest.approx(reply.logprob, abs=2e-3)


def test_a_draw_depends_on_prompt_seed_and_number_alone(folder: Path, engine: Any) -> None:
    together = engine.generate(PROMPTS, sampling())
    small = engines.load("transformers", folder, "float32", 1, 3)  # rows leave and enter, prompts are split
    assert same(small.generate(PROMPTS, sampling()), together)
    assert engine.generate(PROMPTS, sampling()) == together  # to the last bit
    contract.draws_depend_on_prompt_seed_and_number_alone(engine)


def test_reasons_to_finish(engine: Any) -> None:
    replies = [reply for row in engine.generate(PROMPTS, sampling(n=20, new=5)) for reply in row]
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    assert all(reply.tokens == 5 for reply in replies if reply.finish_reason == "length")
    assert "<eos>" not in "".join(reply.text for reply in replies)


def test_every_end_token_of_the_generation_settings_ends(tmp_path: Path) -> None:
    build(tmp_path, "qwen3", eos_token_id=[0, 3, 4])
    engine: Any = engines.load("transformers", tmp_path, "float32", 1, 8)
    assert engine.ends == [0, 3, 4]
    contract.replies_end_at_a_and_b(engine)


def test_score_is_that_of_a_full_pass(engine: Any) -> None:
    for prompt, response, row in zip(PROMPTS, RESPONSES, engine.score(PROMPTS, RESPONSES), strict=True):
        tokens = engine.tokenizer(response, add_special_tokens=False)["input_ids"]
        assert row == pytest.approx(logprobs(engine, prompt, [*tokens, 0]), abs=1e-3)
        assert row == [round(value, 4) for value in row]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.7, 1.0), (1.0, 0.6)])
def test_samples_follow_the_distribution(qwen: Path, temperature: float, top_p: float) -> None:
    engine: Any = engines.load("transformers", qwen, "float32", 1, 4096)
    contract.first_tokens_follow_the_distribution(engine, engine, temperature, top_p, 4000, alpha=0.01)


def test_a_call_tells_often_how_far_it_is(qwen: Path) -> None:
    engine: Any = engines.load("transformers", qwen, "float32", 1, 2)
    quiet = engine.generate(PROMPTS, sampling())
    engine.tell_progress, told = None, []
    engine.tell_progress = told.append
    assert engine.generate(PROMPTS, sampling()) == quiet
    assert told == sorted(told)
    assert told[-1] == 4 * len(set(PROMPTS))
    assert len(told) > len(set(told))  # also where no reply has ended
    told.clear()
    engine.score(PROMPTS[: len(RESPONSES)], RESPONSES)
    assert told[-1] == len(RESPONSES)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    keys = uniforms.row_keys(0, ["p", "q"], range(2000))
    numbers = np.stack([uniforms.uniforms(keys.ravel(), np.full(4000, place)) for place in range(5)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert chisquare(np.histogram(numbers, bins=50, range=(0, 1))[0]).pvalue > 0.01
    assert np.abs(np.corrcoef(numbers) - np.eye(5)).max() < 0.05
    assert len(np.unique(uniforms.row_keys(0, ["p"], range(1000)))) == 1000


def test_picks_invert_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log().repeat(5, 1)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.71, 1 - 2.0**-23])
    assert uniforms.pick(logits, uniform, 1.0, 1.0).tolist() == [0, 0, 1, 2, 2]
    assert uniforms.pick(logits, uniform, 1.0, 0.6).tolist() == [0, 0, 0, 2, 2]  # 0 and 2, as 5 to 3
    assert uniforms.pick(logits, uniform, 1.0, 0.1).tolist() == [0] * 5
    assert uniforms.pick(logits, uniform, 0.0, 1.0).tolist() == [0] * 5
    barred = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert uniforms.pick(barred, torch.tensor([0.5, 1 - 2.0**-23]), 1.0, 1.0).tolist() == [2, 2]


def test_prefills_are_cut_by_tokens_and_lengths() -> None:
    assert list(cache.runs([5, 5, 4, 2, 1], 10, 9)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(cache.runs([5, 5, 4, 2, 1], 99, 2)) == [slice(0, 3), slice(3, 5)]
    assert list(cache.runs([50], 10, 1)) == [slice(0, 1)]
    assert list(cache.runs([], 10, 1)) == []


def test_memory_grows_with_long_replies(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = engines.load("transformers", qwen, "float32", 1, 8)
    expected = engine.generate(PROMPTS, sampling(new=40))
    monkeypatch.setattr(cache, "COLUMNS", 1)
    monkeypatch.setattr(cache, "PREFILL_TOKENS", 4)
    assert same(engine.generate(PROMPTS, sampling(new=40)), expected)


def test_memory_is_lent_from_call_to_call(qwen: Path) -> None:
    engine: Any = engines.load("transformers", qwen, "float32", 1, 16)
    long = engine.generate(PROMPTS, sampling(new=40))
    memory = engine.memory
    short = engine.generate(PROMPTS[:3], sampling(n=2, new=3))
    assert engine.memory is memory
    assert engine.generate(PROMPTS, sampling(new=40)) == long
    fresh = engines.load("transformers", qwen, "float32", 1, 16)
    assert same(fresh.generate(PROMPTS[:3], sampling(n=2, new=3)), short)


def test_the_kinds_of_rows(folder: Path, engine: Any) -> None:
    assert cache.slotted(engine.model) == (folder.name[:-1] != "mistral")


def test_bfloat16(qwen: Path) -> None:
    engine: Any = engines.load("transformers", qwen, "bfloat16", 1, 8)
    assert engine.model.dtype == torch.bfloat16
    replies = engine.generate(PROMPTS, sampling())
    assert replies == engine.generate(PROMPTS, sampling())
    assert all(reply.logprob < 0 for row in replies for reply in row)


def test_replies_end_where_the_positions_end(qwen: Path) -> None:
    engine: Any = engines.load("transformers", qwen, "float32", 1, 8)
    prompt = "a " * 60
    assert all(reply.tokens <= 4 for reply in engine.generate([prompt], sampling(n=8, new=30))[0])
    with pytest.raises(BadInput, match="64 tokens and the model 64 positions"):
        engine.generate([prompt, "b " * 64], sampling())
    with pytest.raises(BadInput, match="66 tokens of prompt and response, but 64 positions"):
        engine.score([prompt], ["b " * 6])
    with pytest.raises(BadInput, match="no tokens"):
        engine.generate([""], sampling())


def test_logits_that_are_no_numbers_fail(tmp_path: Path) -> None:
    engine: Any = engines.load("transformers", build(tmp_path, "qwen3"), "float32", 1, 8)
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[3] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(StageFailed, match="not finite"):
            engine.generate(PROMPTS, sampling(temperature=temperature))
    with pytest.raises(StageFailed, match="not finite"):
        engine.score(["b "], ["a b"])


def test_nothing_asked(qwen: Path) -> None:
    engine = engines.load("transformers", qwen, "float32", 1, 8)
    assert engine.generate([], sampling()) == []
    assert engine.score([], []) == []
    engine.close()


def test_what_cannot_be_loaded(tmp_path: Path, qwen: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'transformers'"):
        engines.load("transformer", qwen, "float32", 1, 8)
    with pytest.raises(BadInput, match="no model"):
        engines.load("transformers", tmp_path, "float32", 1, 8)
    with pytest.raises(BadInput, match="precision"):
        engines.load("transformers", qwen, "float16", 1, 8)
    (tmp_path / "config.json").write_text((qwen / "config.json").read_text())
    with pytest.raises(BadInput, match="no model that transformers can load"):
        engines.load("transformers", tmp_path, "float32", 1, 8)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError(),
]


def short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int, error: BaseException) -> list[int]:
    """Lets the cache hold no more than `rows` rows; the sizes that were asked for."""
    make, asked = cache.make, []

    def limited(model: Any, size: int, *more: Any) -> Any:
        asked.append(size)
        if size > rows:
            raise error
        return make(model, size, *more)

    monkeypatch.setattr(cache, "make", limited)
    return asked


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_and_goes_on(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    expected = engines.load("transformers", qwen, "float32", 1, 16).generate(PROMPTS, sampling())
    engine = engines.load("transformers", qwen, "float32", 1, 16)
    asked = short_of_memory(monkeypatch, 5, error)
    assert same(engine.generate(PROMPTS, sampling()), expected)
    assert asked == [16, 8, 4]
    assert "going on with batches of 4 instead of 16" in caplog.text
    engine.generate(PROMPTS, sampling(seed=1))
    assert asked == [16, 8, 4, 4]  # it does not try the large ones again


def test_out_of_memory_for_good_is_said_once_with_what_to_do(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.load("transformers", qwen, "float32", 1, 16)
    asked = short_of_memory(monkeypatch, 0, OUT_OF_MEMORY[0])
    with pytest.raises(OutOfMemory, match=r"out of memory with batches of 16 and of 1; lower engine\.batch_size"):
        engine.generate(PROMPTS, sampling())
    assert asked == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize(("precision", "halves"), [("float32", True), ("bfloat16", False)])
def test_a_model_that_does_not_fit_is_named(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, precision: str, halves: bool
) -> None:
    def move(self: Any, device: str) -> Any:
        raise error

    monkeypatch.setattr(PreTrainedModel, "to", move)
    with pytest.raises(OutOfMemory) as caught:
        engines.load("transformers", qwen, precision, 1, 8)
    message = str(caught.value)
    assert message.startswith(f"{qwen} does not fit into memory ({str(error)[:20] or 'MemoryError'}")
    assert ("engine.precision: bfloat16 halves it" in message) == halves
    assert message.endswith("end what else uses memory, or use a smaller model")


SHORT = """
import resource, sys, torch
from pathlib import Path
from tasks.core import engines
engines.load("transformers", Path(sys.argv[1]), "float32", 1, 8)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**24, resource.RLIM_INFINITY))
try:
    engines.load("transformers", Path(sys.argv[2]), "float32", 1, 8)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by RLIMIT_AS")
def test_a_process_with_too_little_memory_says_so(qwen: Path, tmp_path: Path) -> None:
    """A model of 64 MB where 16 MB are left."""
    large = build(tmp_path / "large", "qwen3", vocab_size=1 << 20, tie_word_embeddings=True)
    command = [sys.executable, "-c", SHORT, str(qwen), str(large)]
    root = ROOT
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"OutOfMemory {large} does not fit into memory (")
    assert "annot allocate memory" in said


def test_a_tokenizer_that_writes_tokens_which_the_model_does_not_know(tmp_path: Path) -> None:
    engine = engines.load("transformers", build(tmp_path, "qwen3", vocab_size=8), "float32", 1, 16)
    assert engine.generate(["a b "], sampling(new=1))
    with pytest.raises(BadInput, match=r"writes token 11 \('i'\), and the model knows 8 tokens"):
        engine.generate(PROMPTS, sampling())


def test_a_model_whose_state_cannot_be_divided_between_rows(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, WORDS)
    config = AutoConfig.for_model("mamba", vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = engines.load("transformers", tmp_path, "float32", 1, 16)
    with pytest.raises(BadInput, match=r"type mamba keeps a state .*; use engine\.name: vllm, or"):
        engine.generate(PROMPTS, sampling())


def test_other_errors_are_not_taken_for_a_lack_of_memory(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.load("transformers", qwen, "float32", 1, 16)
    asked = short_of_memory(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        engine.generate(PROMPTS, sampling())
    assert asked == [16]

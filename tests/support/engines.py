"""Engines on tiny random models of one token a word: what they are asked, and checks that every engine must pass."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tasks.core.engines.contract import Completion, Sampling

WORDS = ["<eos>", "<pad>", "<unk>", *"abcdefghi"]
PROMPTS = ["a b c ", "d ", "c c a b i ", "e f g ", "h ", "a b c d e f g h i a b "]
RESPONSES = ["a b ", "c", "", "d e f g h i a", "i", "b b"]  # to score
SINGLE = ("a", "c", "e")  # choices of one token each
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    "initializer_range": 0.4, "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": None,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"tie_word_embeddings": True},
    "smollm3": {"no_rope_layers": [0, 0], "pad_token_id": 1},
    "mistral": {"sliding_window": 4},
}


def write_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """A tokenizer of one token a word, without a chat template; `<eos>`, `<pad>` and `<unk>` are among the words."""
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.save_pretrained(folder)


def build(folder: Path, kind: str, **changes: Any) -> Path:
    """A random model of the kind, with a tokenizer of one token a word."""
    write_tokenizer(folder, WORDS)
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def sampling(n: int = 4, temperature: float = 1.0, top_p: float = 1.0, new: int = 12, seed: int = 0) -> Sampling:
    return Sampling(n, temperature, top_p, new, seed)


def choosing(*choices: str, n: int = 1, temperature: float = 1.0, new: int = 8) -> Sampling:
    return Sampling(n, temperature, 1.0, new, 0, choices)


def same(one: list[list[Completion]], other: list[list[Completion]]) -> bool:
    """Equal but for the last decimal of the log-probabilities, which moves with the batch's shape."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return all(a._replace(logprob=0) == b._replace(logprob=0) and abs(a.logprob - b.logprob) < 2e-3 for a, b in pairs)


def sampled(engine: Any, tokenizer: Any) -> list[tuple[str, Completion, list[int]]]:
    """Prompts with sampled replies and their tokens, without replies with a special word, which the text leaves out."""
    found = []
    for prompt, row in zip(PROMPTS, engine.generate(PROMPTS, sampling(n=6, temperature=1.4, top_p=0.9)), strict=True):
        for reply in row:
            tokens = tokenizer(reply.text, add_special_tokens=False)["input_ids"] + [0] * (
                reply.finish_reason == "stop"
            )
            if len(tokens) == reply.tokens:
                found.append((prompt, reply, tokens))
    assert len(found) >= 10
    assert all(reply.prompt_tokens == len(prompt.split()) for prompt, reply, _ in found)
    return found


# --- checks ----------------------------------------------------------------------------------------------


def draws_depend_on_prompt_seed_and_number_alone(engine: Any) -> None:
    together = engine.generate(PROMPTS, sampling())
    assert same(engine.generate(PROMPTS[::-1] + PROMPTS[:1], sampling()), together[::-1] + together[:1])
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert same(engine.generate([prompt], sampling(n=2), first_draw=2), [row[2:]])
    assert not same(engine.generate(PROMPTS, sampling(seed=1)), together)
    assert len({reply.text for reply in together[0]}) > 1


def replies_end_at_a_and_b(engine: Any) -> None:
    """The engine's model was built with `eos_token_id=[0, 3, 4]`."""
    replies = [reply for row in engine.generate(PROMPTS, sampling(n=10, new=40)) for reply in row]
    assert not {"a", "b"} & {word for reply in replies for word in reply.text.split()}
    assert Counter(reply.finish_reason for reply in replies)["stop"] > 10
    assert all(reply.tokens == 40 for reply in replies if reply.finish_reason == "length")


def first_tokens_follow_the_distribution(
    engine: Any, whole: Any, temperature: float, top_p: float, count: int, alpha: float
) -> None:
    """Chi-square of `count` first tokens against the probabilities that one forward pass of the engine `whole`, one of
    transformers, gives. `alpha`: the smallest p-value that is accepted."""
    prompt = "a b c "
    with torch.no_grad():
        logits = whole.model(torch.tensor([whole.tokenizer(prompt)["input_ids"]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1).double().numpy()
    order = np.argsort(-expected)
    kept = order[: int(np.searchsorted(expected[order].cumsum(), top_p)) + 1] if top_p < 1 else order
    expected[np.setdiff1d(order, kept)] = 0
    expected /= expected.sum()
    replies = engine.generate([prompt], sampling(count, temperature, top_p, new=1))[0]
    seen = Counter(reply.text or "special" for reply in replies)
    chances = {WORDS[token]: float(expected[token]) for token in range(3, len(WORDS))}
    chances["special"] = float(expected[:3].sum())
    assert all(seen[word] == 0 for word, chance in chances.items() if chance == 0)
    common = [word for word, chance in chances.items() if chance * count > 5]
    assert len(common) > 2
    observed, wanted = [seen[word] for word in common], [chances[word] for word in common]
    if (rest := 1 - sum(wanted)) > 1e-6:
        observed.append(count - sum(observed))
        wanted.append(rest)
    assert sum(observed) == count
    assert chisquare(observed, np.array(wanted) / sum(wanted) * count).pvalue > alpha


def chances(whole: Any, prompt: str, choices: Sequence[str], temperature: float = 1.0) -> dict[str, float]:
    """The probability of each choice where every token is drawn among those that lead to one: by one full pass of the
    engine `whole`, one of transformers, for each text, and the walks enumerated."""
    walks = {choice: [*whole.tokenizer(choice, add_special_tokens=False)["input_ids"], 0] for choice in choices}
    asked = whole.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found = {}
    for choice, walk in walks.items():
        with torch.no_grad():
            table = whole.model(torch.tensor([asked + walk])).logits[0, len(asked) - 1 :]
        chance = 1.0
        for place, token in enumerate(walk):
            allowed = {other[place] for other in walks.values() if other[:place] == walk[:place]}
            weights = {other: math.exp(float(table[place, other]) / temperature) for other in allowed}
            chance *= weights[token] / sum(weights.values())
        found[choice] = chance
    return found


def choices_are_drawn_as_expected(
    engine: Any, expected: dict[str, float], prompt: str, temperature: float, alpha: float
) -> None:
    """Chi-square of many replies against the probabilities of all choices."""
    count = 3000
    assert sum(expected.values()) == pytest.approx(1)
    replies = engine.generate([prompt], choosing(*expected, n=count, temperature=temperature))[0]
    seen = Counter(reply.text for reply in replies)
    assert set(seen) <= set(expected)
    assert {reply.finish_reason for reply in replies} == {"stop"}
    common = [choice for choice, chance in expected.items() if chance * count > 5]
    assert len(common) > 1
    total, wanted = sum(seen[choice] for choice in common), sum(expected[choice] for choice in common)
    assert total > 0.98 * count
    observed, hoped = [seen[choice] for choice in common], [expected[choice] / wanted * total for choice in common]
    assert chisquare(observed, hoped).pvalue > alpha


def statistics_are_those_of_the_definitions(engine: Any, whole: Any) -> None:
    """What the engine tells of the whole vocabulary at every token, against the definitions and the logits of the
    engine `whole`, one of transformers; log-probabilities are themselves again afterwards."""
    before = engine.score(PROMPTS, RESPONSES)
    certainties, entropies, margins = (
        engine.score(PROMPTS, RESPONSES, name) for name in ("self_certainty", "entropy", "margin")
    )
    for index, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        asked = whole.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        told = whole.tokenizer(response, add_special_tokens=False)["input_ids"] if response else []
        with torch.no_grad():
            logits = whole.model(torch.tensor([[*asked, *told]])).logits[0, len(asked) - 1 :]
        rows = torch.softmax(logits.double(), -1).tolist()
        assert len(rows) == len(response.split()) + 1
        expected = [-sum(math.log(len(row) * p) for p in row) / len(row) for row in rows]
        assert certainties[index] == pytest.approx(expected, abs=1e-3)
        assert entropies[index] == pytest.approx([-sum(p * math.log(p) for p in row) for row in rows], abs=1e-3)
        ordered = [sorted(row, reverse=True) for row in rows]
        assert margins[index] == pytest.approx([first - second for first, second, *_ in ordered], abs=1e-3)
    assert engine.score(PROMPTS, RESPONSES) == before

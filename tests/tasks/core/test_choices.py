"""Replies out of a list, and statistics of the whole vocabulary: the same checks for every engine that has a model."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from tasks.core import engines
from tasks.core.engine import Sampling
from tasks.core.engines import statistics, vllm_worker
from tasks.core.errors import BadInput, StageFailed
from tests.tasks.core.test_transformers import PROMPTS, build, logprobs, reference

ALPHA = 1e-4  # of the statistical test, whose draws are fixed
SINGLE = ("a", "c", "e")  # each one token


def choosing(*choices: str, n: int = 1, temperature: float = 1.0, top_p: float = 1.0, new: int = 8) -> Sampling:
    return Sampling(n, temperature, top_p, new, 0, choices)


def chances(engine: Any, prompt: str, choices: Sequence[str], temperature: float = 1.0) -> dict[str, float]:
    """The probability of each choice where every token is drawn among those that lead to one: by one full pass for each
    text, and the walks enumerated."""
    walks = {choice: [*engine.tokenizer(choice, add_special_tokens=False)["input_ids"], 0] for choice in choices}
    asked = engine.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found = {}
    for choice, walk in walks.items():
        with torch.no_grad():
            table = reference(engine.model.name_or_path)(torch.tensor([asked + walk])).logits[0, len(asked) - 1 :]
        chance = 1.0
        for place, token in enumerate(walk):
            allowed = {other[place] for other in walks.values() if other[:place] == walk[:place]}
            weights = {other: math.exp(float(table[place, other]) / temperature) for other in allowed}
            chance *= weights[token] / sum(weights.values())
        found[choice] = chance
    return found


def drawn_as_expected(engine: Any, expected: dict[str, float], prompt: str, temperature: float) -> bool:
    """Chi-square of many replies against the probabilities."""
    count = 3000
    replies = engine.generate([prompt], choosing(*expected, n=count, temperature=temperature))[0]
    seen = Counter(reply.text for reply in replies)
    assert set(seen) <= set(expected)
    assert {reply.finish_reason for reply in replies} == {"stop"}
    common = [choice for choice, chance in expected.items() if chance * count > 5]
    assert len(common) > 1
    total = sum(seen[choice] for choice in common)
    wanted = sum(expected[choice] for choice in common)
    return bool(
        chisquare([seen[choice] for choice in common], [expected[choice] / wanted * total for choice in common]).pvalue
        > ALPHA
    )


@pytest.fixture(scope="module", params=["qwen3", "mistral"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = build(tmp_path_factory.mktemp(request.param), request.param)
    return engines.load("transformers", folder, "float32", 1, 64)


@pytest.mark.parametrize("choices", [SINGLE, ("a b", "a c d", "e", "a"), ("i h g", "i h")])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_choices_are_drawn_from_the_models_own_distribution(
    engine: Any, choices: tuple[str, ...], temperature: float
) -> None:
    expected = chances(engine, "a b c ", choices, temperature)
    assert sum(expected.values()) == pytest.approx(1)
    assert drawn_as_expected(engine, expected, "a b c ", temperature)


def test_a_greedy_reply_takes_the_likeliest_token_at_every_step(engine: Any) -> None:
    rows = engine.generate(PROMPTS, choosing("a b", "c", "d e f", temperature=0, n=2))
    for prompt, (first, second) in zip(PROMPTS, rows, strict=True):
        assert first == second
        starts = {
            choice: logprobs(engine, prompt, engine.tokenizer(choice)["input_ids"])[0]
            for choice in ("a b", "c", "d e f")
        }
        assert first.text == max(starts, key=starts.__getitem__)
        assert first.tokens == len(first.text.split()) + 1


def test_the_logprob_is_that_among_the_choices(engine: Any) -> None:
    choices = ("a b", "a c d", "e", "a")
    expected = chances(engine, "d ", choices)
    for reply in engine.generate(["d "], choosing(*choices, n=30, temperature=1.7))[0]:
        assert reply.logprob == pytest.approx(math.log(expected[reply.text]), abs=2e-3)


def test_rows_with_choices_depend_on_nothing_else_in_the_batch(engine: Any) -> None:
    together = engine.generate(PROMPTS, choosing("a b", "c", "d e f", n=4))
    for prompt, row in zip(PROMPTS, together, strict=True):
        alone = engine.generate([prompt], choosing("a b", "c", "d e f", n=4))[0]
        assert [reply.text for reply in alone] == [reply.text for reply in row]


def test_one_that_is_cut_off_is_no_choice(engine: Any) -> None:
    reply = engine.generate(["a "], choosing("d e f", new=2))[0][0]
    assert (reply.text, reply.finish_reason) == ("d e", "length")


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        (("a", "zz", "yy"), "'yy' is the same as 'zz'"),
        (("a", ""), "'' is nothing"),
        (("a b", "a  b"), "the same as 'a b'"),
    ],
)
def test_choices_that_the_tokenizer_cannot_tell_apart_are_refused(
    engine: Any, choices: tuple[str, ...], why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        engine.generate(["a "], choosing(*choices))


# --- statistics ------------------------------------------------------------------------------------------------

RESPONSES = ["a b ", "c", "", "d e f g h i a", "i", "b b"]


def by_hand(model: Any, tokenizer: Any, prompt: str, response: str) -> dict[str, list[float]]:
    """Both statistics at every token of the response and at its end, by their definitions."""
    asked, told = (
        tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in (prompt, response)
    )
    with torch.no_grad():
        logits = model(torch.tensor([[*asked, *told]])).logits[0, len(asked) - 1 :]
    probabilities = torch.softmax(logits.double(), -1)
    count = probabilities.shape[-1]
    return {
        "self_certainty": [-sum(math.log(count * float(p)) for p in row) / count for row in probabilities],
        "entropy": [-sum(float(p) * math.log(float(p)) for p in row) for row in probabilities],
    }


def statistics_agree(engine: Any, model: Any, tokenizer: Any) -> None:
    """What the engine tells is what the definitions give; and log-probabilities are themselves afterwards."""
    before = engine.score(PROMPTS, RESPONSES)
    for name in ("self_certainty", "entropy"):
        found = engine.score(PROMPTS, RESPONSES, name)
        for prompt, response, values in zip(PROMPTS, RESPONSES, found, strict=True):
            assert values == pytest.approx(by_hand(model, tokenizer, prompt, response)[name], abs=1e-3)
            assert len(values) == len(response.split()) + 1
            assert min(values) > 0
    assert engine.score(PROMPTS, RESPONSES) == before


def test_statistics_are_those_of_the_definitions(engine: Any) -> None:
    statistics_agree(engine, reference(engine.model.name_or_path), engine.tokenizer)


@pytest.mark.parametrize("name", ["self_certainty", "entropy"])
def test_what_vllms_workers_compute_with_either_of_its_model_runners(name: Any) -> None:
    logits, tokens = torch.randn(5, 7), torch.zeros((5, 2), dtype=torch.int64)
    expected = statistics.at(logits, None, name)[:, None]
    assert torch.equal(vllm_worker.in_rows(name)(logits), expected.expand(5, 7))
    assert torch.equal(vllm_worker.in_columns(name)(logits, tokens), expected.expand(5, 2))
    assert vllm_worker.in_rows("logprob") is None


def test_a_statistic_of_broken_weights_is_refused(tmp_path: Path) -> None:
    broken = engines.load("transformers", build(tmp_path / "m", "qwen3"), "float32", 1, 8)
    with torch.no_grad():
        next(iter(broken.model.parameters())).fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(StageFailed, match="not finite"):
        broken.score(["a "], ["b"], "self_certainty")

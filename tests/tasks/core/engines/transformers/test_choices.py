"""Replies out of a list, and statistics of the whole vocabulary, with the transformers engine."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.core import engines
from tasks.core.engines import statistics
from tasks.core.engines.vllm import worker
from tasks.core.errors import BadInput, StageFailed
from tests.support import engines as contract
from tests.support.engines import PROMPTS, SINGLE, build, choosing

ALPHA = 1e-4  # of the statistical test, whose draws are fixed


@pytest.fixture(scope="module", params=["qwen3", "mistral"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = build(tmp_path_factory.mktemp(request.param), request.param)
    return engines.load("transformers", folder, "float32", 1, 64)


@pytest.mark.parametrize("choices", [SINGLE, ("a b", "a c d", "e", "a"), ("i h g", "i h")])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_choices_are_drawn_from_the_models_own_distribution(
    engine: Any, choices: tuple[str, ...], temperature: float
) -> None:
    expected = contract.chances(engine, "a b c ", choices, temperature)
    contract.choices_are_drawn_as_expected(engine, expected, "a b c ", temperature, ALPHA)


def test_a_greedy_reply_takes_the_likeliest_token_at_every_step(engine: Any) -> None:
    rows = engine.generate(PROMPTS, choosing("a b", "c", "d e f", temperature=0, n=2))
    for prompt, (first, second) in zip(PROMPTS, rows, strict=True):
        assert first == second
        starts = {choice: engine.score([prompt], [choice])[0][0] for choice in ("a b", "c", "d e f")}
        assert first.text == max(starts, key=starts.__getitem__)
        assert first.tokens == len(first.text.split()) + 1


def test_the_logprob_is_that_among_the_choices(engine: Any) -> None:
    choices = ("a b", "a c d", "e", "a")
    expected = contract.chances(engine, "d ", choices)
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


def test_statistics_are_those_of_the_definitions(engine: Any) -> None:
    contract.statistics_are_those_of_the_definitions(engine, engine)


@pytest.mark.parametrize("name", ["self_certainty", "entropy", "margin"])
def test_what_vllms_workers_compute_with_either_of_its_model_runners(name: Any) -> None:
    logits, tokens = torch.randn(5, 7), torch.zeros((5, 2), dtype=torch.int64)
    expected = statistics.at(logits, None, name)[:, None]
    assert torch.equal(worker.in_rows(name)(logits), expected.expand(5, 7))
    assert torch.equal(worker.in_columns(name)(logits, tokens), expected.expand(5, 2))
    assert worker.in_rows("logprob") is None


def test_a_statistic_of_broken_weights_is_refused(tmp_path: Path) -> None:
    broken = engines.load("transformers", build(tmp_path / "m", "qwen3"), "float32", 1, 8)
    with torch.no_grad():
        next(iter(broken.model.parameters())).fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(StageFailed, match="not finite"):
        broken.score(["a "], ["b"], "self_certainty")

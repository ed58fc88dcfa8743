"""What is told before a run, without measuring: counts, lengths by characters, and what cannot be known."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.estimate import demands, table, totals, trial
from flows.params import compose
from flows.params.schema import Prices
from flows.run import declared
from tasks.core.asking.demand import Demand
from tasks.core.errors import BadInput
from tests.support.paths import ROOT


def told(root: Path, params: dict[str, Any], *stale: str, everything: bool = False) -> totals.Estimate:
    names = stale or declared.names(declared.graph(ROOT), params)
    return totals.estimate(root, params, names, everything, 0)


def need(made: totals.Estimate, stage: str, key: str | None = None) -> totals.Need:
    return next(need for need in made.needs if (need.stage, need.iteration) == (stage, key))


@pytest.fixture
def mini() -> dict[str, Any]:
    return compose.chosen("mini", compose.compose("self_evolution"), None, None, None)


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
    assert [(n.stage, n.iteration) for n in made.wanted] == [("train", "i03"), ("evaluate", "i03")]
    assert len(told(tmp_path, mini, "train@i03", everything=True).wanted) == 28
    lines = table.remarks(made)
    assert lines[0].startswith(
        "up to date, not counted (--all counts them): prepare, base, evaluate@i00, synthesize@i01"
    )


def test_nothing_to_do(tmp_path: Path, mini: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    made = totals.estimate(tmp_path, mini, [], False, 30)
    assert not made.measured.calls
    table.show(made)
    assert capsys.readouterr().out.startswith("everything is up to date")


BASE = "sft of critique 12, fact 30, invent 2, refine 12, solve 40, usage 12"
TRAIN = "sft of critique 16, fact 15, invent 5, own 16, refine 15, solve 16, usage 16"


class Measuring:
    """A trial that has found what it is given."""

    def __init__(self, *findings: dict[str, Any]) -> None:
        self.findings, self.request = findings, {}

    def __call__(self, root: Path, request: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        self.request = request
        return list(self.findings)


def call(kind: str, step: float) -> dict[str, Any]:
    """A finding: `step` seconds for a token of one row or many, nothing else."""
    return {
        "kind": kind, "rows": 4096, "seconds": 16 * step, "tokens": 16.0, "longest": 16, "ended": 0.0, "limit": 16
    }  # fmt: skip


def test_each_time_that_a_stage_asks_takes_steps(
    tmp_path: Path, mini: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = Measuring(
        *(call(kind, 0.001) for kind in ("answer", "question", "refine")),
        {"training": TRAIN, "fixed": 3.0, "steps": [0.2] * 8},
        {"training": BASE, "fixed": 1.0, "steps": [0.1] * 8},
    )
    monkeypatch.setattr(trial, "measure", measuring)
    made = totals.estimate(tmp_path, mini, declared.names(declared.graph(ROOT), mini), False, 1)
    sample, evaluate = need(made, "sample", "i01"), need(made, "evaluate", "i00")
    assert sample.engine_seconds is not None
    assert evaluate.engine_seconds is not None
    longest = made.measured.longest["solve"]
    assert sample.engine_seconds == pytest.approx((0.001 * min(longest, 16), 0.016))
    assert evaluate.engine_seconds[1] == pytest.approx(2 * (3 * 0.016 + 2 * 0.004))  # greedy, drawn, refined; judged
    train = need(made, "train", "i01")
    assert train.training_seconds == pytest.approx((7, 7), rel=0.01)
    assert need(made, "base").training_seconds == pytest.approx((31, 31), rel=0.01)
    assert [asked["name"] for asked in measuring.request["train"]] == [BASE, TRAIN]
    measuring.findings = measuring.findings[:-1]  # the trial did not get to the second
    made = totals.estimate(tmp_path, mini, declared.names(declared.graph(ROOT), mini), False, 1)
    assert need(made, "base").training_seconds == pytest.approx((63, 63), rel=0.05)


def test_critiques_repeat_as_the_corpus_says(tmp_path: Path, mini: dict[str, Any]) -> None:
    task = demands.task(tmp_path, mini, False)
    questions = demands.count_questions(task.family, task.answers)
    critique = need(told(tmp_path, mini), "critique", "i01")
    assert critique.expected_requests == questions.expected(480)
    assert questions.distinct / questions.asked * 480 > critique.expected_requests > questions.distinct


@pytest.mark.parametrize(
    ("code", "errors", "said"),
    [
        (0, "a warning\n", []),
        (-9, "", ["it was killed, by a user or because the model is too large for the memory here"]),
        (2, f"{trial.LARGE}: it takes 90.0 GB, and 9.0 GB are free\n", [f"{trial.LARGE}: it takes 90.0 GB, and 9.0 GB are free"]),
        (
            1,
            "Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n",
            [f"{trial.LARGE} (CUDA out of memory. Tried)"],
        ),
        (1, "Traceback ...\nValueError: what is this: a test\n", ["what is this: a test"]),
        (1, "", ["ended with exit code 1"]),
    ],
)  # fmt: skip
def test_why_the_trial_ended_is_one_line(code: int, errors: str, said: list[str]) -> None:
    assert trial.reason(code, errors) == said


def test_a_model_that_is_too_large_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(BadInput, match="too large for the memory here: it takes"):
        trial.check_memory(10**15)


def test_remarks_say_what_is_assumed_and_what_is_missing(
    tmp_path: Path, mini: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trial, "measure", Measuring({"problem": f"{trial.LARGE}: it takes 90.0 GB, and 9.0 GB are free"})
    )
    lines = table.remarks(totals.estimate(tmp_path, mini, declared.names(declared.graph(ROOT), mini), False, 1))
    assert sum("too large" in line for line in lines) == 1
    assert not any("--trial SECONDS" in line for line in lines)
    assert any(line.startswith("no prices: ") for line in lines)
    assert any("replies are as long as the seed corpus's" in line for line in lines)


def test_a_model_that_is_not_here_is_not_stood_for_by_another(
    tmp_path: Path, mini: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mini["base"]["pretrained"] = "some-owner/some-model"
    monkeypatch.setattr(trial, "measure", lambda *given: pytest.fail("another model was measured"))
    made = totals.estimate(tmp_path, mini, declared.names(declared.graph(ROOT), mini), False, 1)
    assert need(made, "sample", "i01").engine_seconds is None
    assert any("some-owner/some-model is not on this machine yet" in line for line in table.remarks(made))


def test_gpu_hours_are_told_where_a_gpu_was_measured(tmp_path: Path, mini: dict[str, Any]) -> None:
    made = told(tmp_path, mini)
    made.measured.gpus = 1
    assert not any("GPU-hours" in line for line in table.remarks(made))  # times are unknown
    for one in made.needs:
        one.engine_seconds, one.training_seconds = (36.0, 72.0), (0.0, 0.0)
    hours = len(made.wanted) * 0.01
    [line] = [line for line in table.remarks(made) if "GPU-hours" in line]
    assert line.startswith(f"GPU-hours: {hours:.2f} to {2 * hours:.2f}, of one GPU; several share them")
    made.measured.gpus = 0
    assert not any("GPU-hours" in line for line in table.remarks(made))


def test_the_table_says_what_is_unknown(tmp_path: Path, mini: dict[str, Any]) -> None:
    mini["prices"] = {**mini["prices"], "completion_tokens": 1_000_000.0, "prompt_tokens": 0.0}
    made = told(tmp_path, mini)
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(table.table(made))
    shown = console.export_text()
    assert "unknown" in shown
    assert f"{240 * 16:,.2f}" in shown  # one unit a token
    assert need(made, "sample", "i01").cost(made.prices, upper=False) < 240 * 16
    hourly = Prices(currency="EUR", prompt_tokens=0, completion_tokens=0, engine_hours=1, training_hours=0)
    assert need(made, "sample", "i01").cost(hourly) is None
    json.dumps(table.as_json(made))


def test_prompts_of_the_users_own_without_a_corpus(tmp_path: Path) -> None:
    """Templates are filled with replies of full length."""
    params = compose.compose("self_evolution", "text")
    rows = [json.dumps({"prompt": f"How many legs have {i} cats and {i * i} dogs together?"}) for i in range(900)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    task = demands.task(tmp_path, params, False)
    assert (len(task.pool), task.heldout, task.probe, task.corpus) == (600, 200, 100, {})
    questions = demands.count_questions(task.family, task.answers)
    assert (questions.most, questions.expected(7)) == (0, 7)
    asked = [Demand("answer", 10, 320), Demand("critique", 10, 320), Demand("refine", 10, 320)]
    kinds = demands.conversations(task, asked)
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
    found = trial.sizes(tmp_path, {"rank": 2, "targets": ["q_proj"]})
    assert found == {"bytes": 8 + len(text), "parameters": 32 + 32 + 36, "adapter_bytes": 4 * 2 * (12 + 12)}
    assert trial.sizes(tmp_path, None)["adapter_bytes"] is None


@pytest.mark.parametrize(("seconds", "text"), [(4.23, "4.2 s"), (42.0, "42 s"), (750, "12 min"), (11000, "3.1 h")])
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


def test_bytes_are_written_short() -> None:
    assert [table.human(n) for n in (12, 1_400_000, 15_200_000_000)] == ["12.0 B", "1.4 MB", "15.2 GB"]

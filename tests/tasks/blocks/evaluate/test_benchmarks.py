"""Benchmarks without lm-eval: the names of the figures, and what is said where it is not installed."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.blocks.evaluate import benchmarks, options
from tasks.core.block import validate
from tasks.core.errors import BadInput

GIVEN = {"tasks": ["a"], "fewshot": None, "limit": None, "chat_template": True, "max_new_tokens": 8}


def test_results_become_flat_figures() -> None:
    results = {
        "gsm8k": {"name": "gsm8k", "alias": " - gsm8k", "sample_len": 40, "exact_match,strict-match": 0.1234567,
                  "exact_match_stderr,strict-match": 0.01, "exact_match,flexible-extract": 1},
        "my-group": {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "perplexity,none": float("inf")},
    }  # fmt: skip
    assert benchmarks.flat(results) == {
        "benchmark_gsm8k_samples": 40.0,
        "benchmark_gsm8k_exact_match_strict_match": 0.123457,
        "benchmark_gsm8k_exact_match_strict_match_stderr": 0.01,
        "benchmark_gsm8k_exact_match_flexible_extract": 1.0,
        "benchmark_my_group_acc": 0.5,
        "benchmark_my_group_acc_stderr": None,
        "benchmark_my_group_perplexity": None,
    }


def test_two_figures_never_share_a_name() -> None:
    with pytest.raises(BadInput, match="two figures that would be called benchmark_a_b_acc"):
        benchmarks.flat({"a-b": {"acc,none": 1.0}, "a_b": {"acc,none": 0.0}})
    measured: Any = [SimpleNamespace(name=name, results=lambda model, seed: {"a": {"acc,none": 1.0}}) for name in "xy"]
    with pytest.raises(BadInput, match=r"evaluate\.benchmarks\.y: benchmark_a_acc is measured by another set too"):
        benchmarks.measure(measured, None, 0)  # type: ignore[arg-type]


def test_without_lm_eval_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "tasks.blocks.evaluate.harness", raising=False)
    chosen = {"x": validate(options.Benchmark, GIVEN, "x")}
    with pytest.raises(BadInput, match=r"lm-eval is not installed; `pip install .*\[lm-eval\]'` adds it"):
        benchmarks.load(chosen, Path(), "tasks/templates/benchmarks")

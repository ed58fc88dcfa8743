"""promote: the gate, what it falls back on, and that held-out figures cannot reach it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks import promote
from tasks.core.context import Context
from tasks.core.errors import BadInput

GUARDS = {"verification_gap": 0.1, "over_refinement": -0.1, "most_common_answer_share": 0.01, "critique_unparsed": 0.05,
          "response_tokens": 10.0, "distinct_answers": 4.0}  # fmt: skip
BASE = {"path": "data/i00/candidate", "digest": "base", "promoted": True}


def probe(accuracy: float | None, common: float | None = 0.01, **guards: float) -> dict[str, Any]:
    figures = {"accuracy": accuracy, "pass_at_8": 0.7, "most_common_answer_share": common, "response_tokens": 10.0}
    return {"metrics": figures, "guards": {**GUARDS, **guards}}


def run(
    root: Path,
    candidate: dict[str, Any],
    before: dict[str, Any],
    policy: dict[str, Any],
    metric: str = "accuracy",
    tolerance: float = 0.03,
    held_out: float = 0.5,
    significance: float | None = None,
) -> tuple[dict[str, Any], Context]:
    """promote@i02 in a fresh folder; also the context, for what it read."""
    files = {
        "data/i02/evaluation/probe.json": candidate,
        "data/i01/evaluation/probe.json": before,
        "data/i01/policy.json": policy,
        "data/i02/evaluation/metrics.json": {"accuracy": held_out},
        "data/i01/evaluation/metrics.json": {"accuracy": 1 - held_out},
        "data/evaluations/i02.json": {"accuracy": held_out},
        "data/i02/candidate/config.json": {"model_type": "qwen3"},
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(value))
    options = promote.parse({"metric": metric, "tolerance": tolerance, "significance": significance})
    context = Context(
        "promote", "i02", {"previous": "i01"}, options, 0, False, {}, root, root / "out", root, lambda _: None
    )  # type: ignore[arg-type,return-value]
    promote.run(context)
    return json.loads((root / "out/data/i02/policy.json").read_text()), context


@pytest.mark.parametrize(("score", "promoted"), [(0.5, True), (0.4, True), (0.37, True), (0.3699, False), (0.0, False)])
def test_the_gate_is_the_previous_score_less_the_tolerance(tmp_path: Path, score: float, promoted: bool) -> None:
    record, context = run(tmp_path, probe(score), probe(0.4), BASE)
    assert record["promoted"] is promoted
    assert (record["gate_metric"], record["candidate_score"], record["previous_score"]) == ("accuracy", score, 0.4)
    assert record["path"] == ("data/i02/candidate" if promoted else "data/i00/candidate")
    assert (record["digest"] == "base") is not promoted
    assert "0.4000" in record["reason"]
    assert context.tags["promoted"] == str(promoted).lower()


def test_a_policy_older_than_the_refused_candidate_keeps_its_own_score(tmp_path: Path) -> None:
    """i01 was refused at 0.2; the policy is still the base at 0.4, and 0.3 must not pass for an improvement."""
    refused = {**BASE, "promoted": False, "gate_metric": "accuracy", "scores": {"accuracy": 0.4}}
    record, _ = run(tmp_path, probe(0.3), probe(0.2), refused)
    assert not record["promoted"]
    assert record["previous_score"] == 0.4
    assert record["scores"] == {"accuracy": 0.4}
    assert record["digest"] == "base"


def test_scores_travel_with_the_promoted_policy(tmp_path: Path) -> None:
    record, _ = run(tmp_path, probe(0.45), probe(0.4), BASE)
    assert record["scores"]["accuracy"] == 0.45
    assert record["scores"]["pass_at_8"] == 0.7
    assert "response_tokens" not in record["scores"]


def test_without_truth_a_label_free_figure_decides_and_is_named(tmp_path: Path) -> None:
    record, _ = run(tmp_path / "a", probe(None, 0.03), probe(None, 0.01), BASE)
    assert record["promoted"]
    assert record["gate_metric"] == "answer_variety"
    assert "label-free" in record["reason"]
    collapsed, _ = run(tmp_path / "b", probe(None, 0.6), probe(None, 0.01), BASE)
    assert not collapsed["promoted"]
    assert collapsed["candidate_score"] == 0.4
    nothing, _ = run(tmp_path / "c", probe(None, None), probe(None, None), BASE)
    assert nothing["promoted"]
    assert nothing["gate_metric"] is None
    assert "without a gate" in nothing["reason"]


def test_only_the_model_is_in_what_the_next_iteration_depends_on(tmp_path: Path) -> None:
    """A gate that measures more or says it otherwise, and decides the same, reruns nothing."""
    pointer = "out/data/i02/pointer.json"
    record, _ = run(tmp_path / "a", probe(0.45), probe(0.4), BASE, tolerance=0.03)
    other, _ = run(tmp_path / "b", probe(0.46), probe(0.41), BASE, tolerance=0.02)
    assert record != other
    assert (tmp_path / "a" / pointer).read_bytes() == (tmp_path / "b" / pointer).read_bytes()
    assert json.loads((tmp_path / "a" / pointer).read_text()) == {"path": record["path"], "digest": record["digest"]}
    run(tmp_path / "c", probe(0.1), probe(0.4), BASE)
    assert json.loads((tmp_path / "c" / pointer).read_text())["path"] == BASE["path"]


def test_held_out_results_change_nothing(tmp_path: Path) -> None:
    first, context = run(tmp_path / "a", probe(0.4), probe(0.4), BASE, held_out=0.0)
    second, _ = run(tmp_path / "b", probe(0.4), probe(0.4), BASE, held_out=1.0)
    assert first == second
    assert sorted(context.reads) == [
        "data/i01/evaluation/probe.json", "data/i01/policy.json", "data/i02/candidate", "data/i02/evaluation/probe.json",
    ]  # fmt: skip


def test_alarms_warn_without_deciding(tmp_path: Path) -> None:
    bad = probe(0.4, verification_gap=0.0, over_refinement=0.1, most_common_answer_share=0.3, critique_unparsed=0.4,
                response_tokens=13.0, distinct_answers=2.9)  # fmt: skip
    record, _ = run(tmp_path, bad, probe(0.4), BASE)
    assert record["promoted"]
    assert record["alarms"] == sorted(GUARDS)
    assert promote.alarms(GUARDS, GUARDS) == []
    assert promote.alarms(dict.fromkeys(GUARDS), dict.fromkeys(GUARDS)) == []


def by_prompt(right: str) -> dict[str, Any]:
    """A probe.json of one prompt a letter: r is right, w is wrong."""
    found = {f"p{place:02d}": letter == "r" for place, letter in enumerate(right)}
    return {**probe(sum(found.values()) / len(found)), "by_prompt": found}


@pytest.mark.parametrize(
    ("candidate", "policy", "promoted", "p", "smallest", "too_small"),
    [
        ("rrrrrr", "rwwwww", True, 1 / 32, 5 / 6, False),  # five gained: (1/2)^5
        ("rrrrrw", "rwwwww", False, 1 / 16, 5 / 6, True),
        ("rrrrrw", "wwwwwr", False, 7 / 64, None, True),  # five gained, one lost: 7 of 64 outcomes
        ("rrrwww", "rrrwww", False, 1.0, 5 / 6, False),  # nothing differs
        ("wwwwww", "rrrrrr", False, 1.0, None, False),
        ("r", "w", False, 1 / 2, None, True),
    ],
)
def test_a_significance_promotes_what_the_paired_test_calls_better(
    tmp_path: Path, candidate: str, policy: str, promoted: bool, p: float, smallest: float | None, too_small: bool
) -> None:
    record, _ = run(tmp_path, by_prompt(candidate), by_prompt(policy), BASE, tolerance=1.0, significance=0.05)
    assert record["promoted"] is promoted
    assert record["test"]["p_value"] == pytest.approx(p, abs=1e-6)
    assert record["test"]["smallest_difference"] == (None if smallest is None else pytest.approx(smallest, abs=1e-6))
    assert record["test"]["too_small"] is too_small
    assert ("too few probe prompts to tell" in record["reason"]) is too_small
    assert record["by_prompt"] == by_prompt(candidate if promoted else policy)["by_prompt"]
    assert (record["candidate_score"], record["gate_metric"]) == (candidate.count("r") / len(candidate), "accuracy")


def test_the_test_is_against_the_policy_and_not_against_a_refused_candidate(tmp_path: Path) -> None:
    policy = {**BASE, "promoted": False, "scores": {"accuracy": 1.0}, "by_prompt": by_prompt("rrrrrr")["by_prompt"]}
    record, _ = run(tmp_path, by_prompt("rrrrrr"), by_prompt("wwwwww"), policy, significance=0.05)
    assert not record["promoted"]
    assert record["test"]["gained"] == record["test"]["lost"] == 0
    assert record["previous_score"] == 1.0


def test_without_a_significance_nothing_of_it_is_written(tmp_path: Path) -> None:
    with_rows, _ = run(tmp_path / "a", by_prompt("rrw"), by_prompt("rww"), BASE)
    plain, _ = run(tmp_path / "b", probe(2 / 3), probe(1 / 3), BASE)
    assert with_rows == plain
    assert plain.keys() == {"promoted", "reason", "gate_metric", "candidate_score", "previous_score", "path", "digest",
                            "scores", "alarms"}  # fmt: skip


@pytest.mark.parametrize("before", [probe(0.4), by_prompt("rw"), {**by_prompt("rrr"), "by_prompt": {"p00": None}}])
def test_what_cannot_be_compared_is_refused(tmp_path: Path, before: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="no results of the same probe prompts"):
        run(tmp_path, by_prompt("rrr"), before, BASE, significance=0.05)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metric": "acuracy", "tolerance": 0.0, "significance": None}, "did you mean 'accuracy'"),
        ({"metric": "response_tokens", "tolerance": 0.0, "significance": None}, "unknown metric"),
        ({"metric": "accuracy", "tolerance": -0.1}, "promote.tolerance"),
        ({"metric": "accuracy"}, "promote.tolerance: is missing"),
        ({"metric": "accuracy", "tolerance": 0.0, "margin": 1}, "unknown key 'margin'"),
        ({"metric": "accuracy", "tolerance": 0.0}, "promote.significance: is missing"),
        ({"metric": "accuracy", "tolerance": 0.0, "significance": 0}, "promote.significance"),
        ({"metric": "accuracy", "tolerance": 0.0, "significance": 5}, "promote.significance"),
    ],
)
def test_bad_sections_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        promote.parse(section)
    assert message in str(raised.value)

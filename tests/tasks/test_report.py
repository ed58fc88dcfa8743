"""report: three files from the evaluations, the same bytes for the same figures."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tasks import report
from tasks.core.context import Context
from tasks.core.errors import BadInput, MissingArtifact

BASE = {"accuracy": 0.25, "accuracy_low": 0.2, "accuracy_high": 0.3, "pass_at_8": None, "auroc": 0.5}
FIRST = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "pass_at_8": 1, "accuracy_difficulty_3": 1.0}


def context(root: Path, evaluations: dict[str, Any]) -> Context:
    """A context with these evaluations in place."""
    folder = root / "data" / "evaluations"
    folder.mkdir(parents=True)
    for key, figures in evaluations.items():
        text = figures if isinstance(figures, str) else json.dumps({"iteration": key, **figures})
        (folder / f"{key}.json").write_text(text)
    options = report.parse({})
    keys = tuple(path.stem for path in (root / "data/evaluations").glob("*.json"))
    return Context(
        "report",
        None,
        {},
        options,
        0,
        False,
        {},
        root,
        root / "staging",
        root,
        lambda _: None,
        iterations=keys,  # type: ignore[arg-type,return-value]
    )


def test_every_figure_is_in_the_csv_and_null_is_empty(tmp_path: Path) -> None:
    made = context(tmp_path, {"i01": FIRST, "i00": BASE})
    report.run(made)
    assert (tmp_path / "staging/data/report/iterations.csv").read_text().splitlines() == [
        "iteration,accuracy,accuracy_low,accuracy_high,pass_at_8,accuracy_difficulty_3,auroc",
        "i00,0.25,0.2,0.3,,,0.5",
        "i01,0.5,0.4,0.6,1,1.0,",
    ]
    assert made.figures == {"iterations": 2}
    assert made.reads == ["data/evaluations"]


def test_the_markdown_has_a_column_per_iteration(tmp_path: Path) -> None:
    report.run(context(tmp_path, {"i00": BASE, "i01": FIRST}))
    text = (tmp_path / "staging/data/report/report.md").read_text()
    assert "| figure | i00 | i01 |" in text
    assert "| `accuracy` | 0.2500 | 0.5000 |" in text
    assert "| `pass_at_8` | - | 1 |" in text


def test_the_drawing_is_valid_and_has_the_same_bytes_twice(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        report.run(context(tmp_path / name, {"i00": BASE, "i01": FIRST}))
        texts.append((tmp_path / name / "staging/data/report/accuracy.svg").read_bytes())
    assert texts[0] == texts[1]
    assert ElementTree.fromstring(texts[0]).tag.endswith("svg")
    assert b"i01" in texts[0]


def test_a_family_without_truth_has_a_report_too(tmp_path: Path) -> None:
    report.run(context(tmp_path, {"i00": {"accuracy": None, "accuracy_low": None, "accuracy_high": None}}))
    assert (tmp_path / "staging/data/report/accuracy.svg").stat().st_size > 0


def test_iterations_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    made = context(tmp_path, {"i100": FIRST, "i99": FIRST, "i02": FIRST})
    assert [row["iteration"] for row in report.read(made.read("data/evaluations"), ["i99", "i100", "i02"])] == [
        "i02",
        "i99",
        "i100",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"iteration": 1}', '{"iteration": "i00", "accuracy": "high"}'])
def test_a_damaged_evaluation_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match=r"i00\.json"):
        report.run(context(tmp_path, {"i00": text}))


def test_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="no evaluation"):
        report.run(context(tmp_path, {}))


def test_the_section_is_empty() -> None:
    with pytest.raises(BadInput, match="unknown key 'title'"):
        report.parse({"title": "x"})

"""Agreement with humans against numbers worked out by hand and scikit-learn's own implementations, at the edges too."""

import random

import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from flows.calibration.agreement import Preferred, Said, kappa, of_labels, of_preferences, spread


def test_kappa_by_hand() -> None:
    """Cohen's example: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5."""
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert kappa(pairs) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], None),
        ([(True, True)], None),  # chance alone agrees too
        ([(True, True), (False, False)], 1.0),
        ([(True, False), (False, True)], -1.0),
        ([(True, True), (True, False)], 0.0),
    ],
)
def test_kappa_at_the_edges(pairs: list[tuple[bool, bool]], expected: float | None) -> None:
    assert kappa(pairs) == expected


def said(*rows: tuple) -> list[Said]:
    return [Said(f"p{place}", *row) for place, row in enumerate(rows)]


def test_kappa_and_auroc_are_those_of_scikit_learn() -> None:
    rng = random.Random(0)
    rows = said(*((rng.random() < 0.6, rng.random() < 0.5, rng.choice([0.0, 0.2, 0.5, 1.0])) for _ in range(60)))
    found = of_labels(rows)
    labels = [row.label for row in rows]
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score([r.verdict for r in rows], labels), abs=1e-6)
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(labels, [r.score for r in rows]), abs=1e-6)
    assert found["kappa"]["low"] < found["kappa"]["value"] < found["kappa"]["high"]
    assert found == of_labels(rows)


def test_labels_by_hand() -> None:
    found = of_labels(
        said((True, True, 1.0), (True, False, 0.4), (False, False, 0.0), (False, True, 0.6), (True, None, None), (False, None, 0.2))
    )  # fmt: skip
    assert (found["rows"], found["right"]) == (6, 3)
    assert found["agreement"]["value"] == 0.5  # of four verdicts
    assert (found["agreement"]["low"], found["agreement"]["high"]) == (
        pytest.approx(0.15, abs=1e-3),
        pytest.approx(0.85, abs=1e-3),
    )
    assert found["unread"]["value"] == pytest.approx(1 / 6, abs=1e-6)
    assert found["auroc"]["value"] == pytest.approx(5 / 6, abs=1e-6)  # 1.0 beats three, 0.4 beats two of them
    assert found["scores"] == {"right": [0.4, 0.55, 0.7, 0.85, 1.0], "wrong": [0.0, 0.1, 0.2, 0.4, 0.6]}


def test_one_row_and_all_right() -> None:
    one = of_labels(said((True, True, 1.0)))
    assert one["agreement"] == {"value": 1.0, "low": pytest.approx(0.206549), "high": 1.0}
    nothing = {"value": None, "low": None, "high": None}
    assert one["kappa"] == one["auroc"] == nothing
    assert one["scores"]["wrong"] is None
    silent = of_labels(said((True, None, None), (False, None, None)))
    assert silent["agreement"] == nothing
    assert silent["unread"]["value"] == 1.0
    assert of_labels([])["agreement"] == nothing
    assert spread([]) is None


def test_responses_to_one_prompt_come_and_go_together() -> None:
    """Two prompts of two rows each: only three resamples of the prompts are different."""
    rows = [
        Said("p", True, True, 1.0),
        Said("p", False, False, 0.0),
        Said("q", True, False, 0.0),
        Said("q", False, True, 1.0),
    ]
    found = of_labels(rows)
    assert (found["kappa"]["value"], found["kappa"]["low"], found["kappa"]["high"]) == (0.0, -1.0, 1.0)


def test_preferences_by_hand() -> None:
    rows = [
        Preferred("a", 1.0, first_shown=1, readings=2),
        Preferred("b", 1.0, first_shown=1, readings=2),
        Preferred("c", 0.0, first_shown=1, readings=2),
        Preferred("d", None, first_shown=2, readings=2, disagree=True),
        Preferred("e", 0.5),
        Preferred("f", None),
    ]
    found = of_preferences(rows)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    for figure in ("ties", "disagree", "unread"):
        assert found[figure]["value"] == pytest.approx(1 / 6, abs=1e-6)
    assert found["first_shown"]["value"] == 5 / 8
    alone = of_preferences([Preferred("a", 1.0)])
    assert alone["accuracy"]["value"] == 1.0
    assert alone["first_shown"] == {"value": None, "low": None, "high": None}
    assert of_preferences([])["accuracy"]["value"] is None

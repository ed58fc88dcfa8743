"""`python -m flows.calibrate`: critics of free text, asked through the stage's own code and stored replies."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import calibrate
from flows.calibration import inquiry
from flows.params import compose, file
from tasks.core.errors import BadInput
from tests.support.models import policy, scripted_model
from tests.support.paths import ROOT
from tests.support.work import text_options, write_yaml

GREEDY = {"draws": 1, "temperature": 0.0, "top_p": 1.0}
CRITICS = {
    "points": {"block": "judge_pointwise_structured", **GREEDY},
    "nl": {"block": "nl_critique", **GREEDY, "max_new_tokens": 9},
    "said": {"block": "judge_pairwise", "pairs": 1, **GREEDY, "max_new_tokens": 9},
    "taken": {"block": "judge_pairwise_structured", "pairs": 1, **GREEDY},
    "likely": {"block": "judge_pairwise_logprobs", "pairs": 1},
    "vote": {},
}


def reply(prompt: str, draw: int) -> str:
    """Of a response: 5 points for "good", 1 for others, nothing that can be read for "odd". Of a pair: the one with "good",
    in questions with "place" whatever is shown first, in those with "even" neither."""
    quoted = [part.strip() for part in prompt.split("```\n")[1::2]]
    question, *shown = quoted
    if len(shown) == 1:
        return "hm" if shown[0] == "odd" else "Score: 5" if "good" in shown[0] else "Score: 1"
    if "even" in question and "tie" in prompt:
        return "Winner: tie"
    return "Winner: A" if "place" in question or "good" in shown[0] else "Winner: B"


class Engines:
    """In place of the opener: one scripted model."""

    def __init__(self, root: Path, *_: Any, **__: Any) -> None:
        self.model, self.engine = scripted_model(root, reply)
        self.engine.score = lambda asked, told, statistic: [
            [0.0 if reply(p, 0) == r else -2.0] for p, r in zip(asked, told, strict=True)
        ]  # type: ignore[method-assign]
        self.take_tally, self.close = self.model.take_tally, self.model.close

    def __call__(self, pointer: object) -> Any:
        return self.model


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Params with six critics, and what prepare and base leave: the family, its templates and the first policy."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(inquiry, "Opener", Engines)
    params = compose.compose("self_rewarding", "text", 1)
    params["critique"] |= CRITICS
    write_yaml(tmp_path / "params.yaml", params)
    shutil.copytree(ROOT / "tasks/templates/text", tmp_path / "data/tasks/templates")
    (tmp_path / "data/tasks/family.json").write_text(json.dumps({"name": "text", "options": text_options()}))
    policy(tmp_path, "i00")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(root: Path) -> Path:
    texts = [("good one", 1), ("good two", 1), ("good three", 0), ("bad", 0), ("worse", 0), ("odd", 1)]
    return lines(
        root / "labels.jsonl",
        [{"prompt": f"Question {n}?", "response": t, "label": r} for n, (t, r) in enumerate(texts)],
    )


def preferred(root: Path) -> Path:
    pairs = [("Which?", "good", "bad"), ("Who?", "bad", "good"), ("What place?", "good", "bad"), ("Which is even?", "good one", "bad"),
             ("Odd?", "good", "odd")]  # fmt: skip
    return lines(root / "pairs.jsonl", [{"prompt": q, "chosen": c, "rejected": r} for q, c, r in pairs])


def values(found: dict[str, Any], *names: str) -> list[float | None]:
    return [found[name]["value"] for name in names]


def test_labels(repository: Path) -> None:
    record = inquiry.calibrate(repository, labelled(repository), {}, None)
    nl = record["critics"]["nl"]
    assert values(nl, "agreement", "unread") == [pytest.approx(4 / 5), pytest.approx(1 / 6, abs=1e-6)]
    assert nl["kappa"]["value"] == pytest.approx((4 / 5 - 12 / 25) / (1 - 12 / 25), abs=1e-6)
    assert nl["auroc"]["value"] == pytest.approx(5 / 6, abs=1e-6)  # two right ones beat two of three, and tie with one
    points = record["critics"]["points"]
    assert points["agreement"]["value"] is None  # a judge of points gives no verdict
    assert points["scores"]["right"] == [1.0, 1.0, 1.0, 1.0, 1.0]
    assert "each prompt has one" in record["critics"]["said"]["left_out"]
    assert "counts the samples" in record["critics"]["vote"]["left_out"]


def test_preferences_and_the_place_that_a_judge_prefers(repository: Path) -> None:
    critics = inquiry.calibrate(repository, preferred(repository), {}, None)["critics"]
    shown = ("accuracy", "ties", "disagree", "unread", "first_shown")
    assert values(critics["said"], *shown) == [pytest.approx(2 / 3, abs=1e-6), 0.2, 0.2, 0.0, pytest.approx(5 / 8)]
    for name in ("taken", "likely"):
        assert values(critics[name], *shown) == [pytest.approx(3 / 4), 0.0, 0.2, 0.0, pytest.approx(6 / 10)]
    assert values(critics["nl"], *shown) == [pytest.approx(3 / 4), 0.0, 0.0, 0.2, None]


def test_nothing_is_asked_twice_and_nothing_is_written_to_data(repository: Path) -> None:
    before = sorted(str(path) for path in (repository / "data").rglob("*"))
    first = inquiry.calibrate(repository, labelled(repository), {}, None)
    again = inquiry.calibrate(repository, labelled(repository), {}, None)
    assert first["asked"] > 0
    assert again["asked"] == 0
    assert again["critics"] == first["critics"]
    assert sorted(str(path) for path in (repository / "data").rglob("*")) == before
    stored = json.loads((repository / ".autodidact/calibration/labels.jsonl.json").read_text())
    assert stored["critics"] == first["critics"]


def test_the_command_prints_tables_and_where_the_figures_are(repository: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(calibrate.command)
    labels = CliRunner().invoke(app, [str(labelled(repository))]).output
    words = " ".join(labels.split())
    assert "6 rows of labels, judged by the policy of data/i00/candidate" in words
    assert "nl 80.0 (37.6-96.4) 0.62" in words
    assert "vote was not asked: it counts the samples of a prompt" in words
    assert "figures: .autodidact/calibration/labels.jsonl.json" in words
    pairs = CliRunner().invoke(app, [str(preferred(repository))]).output
    assert "prefers what is" in pairs
    assert "…" not in labels + pairs
    assert json.loads(CliRunner().invoke(app, [str(labelled(repository)), "--json"]).output)["kind"] == "labels"
    refused = CliRunner().invoke(app, [str(labelled(repository)), "--column", "text=x"])
    assert "the columns are prompt, response, label, chosen and rejected" in str(refused.exception)


def test_what_is_refused_before_any_work(repository: Path) -> None:
    path = labelled(repository)
    with pytest.raises(BadInput, match="unknown iteration 'i07'"):
        inquiry.calibrate(repository, path, {}, "i07")
    (repository / "data/i00/pointer.json").unlink()
    with pytest.raises(
        BadInput, match=r"judge is the policy of i00, and data/i00/pointer.json is not there; `dvc repro base`"
    ):
        inquiry.calibrate(repository, path, {}, None)
    params = compose.compose("unfiltered", "text", 1)
    write_yaml(repository / "params.yaml", params)
    assert not file.load(repository)["critique"]
    with pytest.raises(BadInput, match=r"params.yaml has no critic in i01; add one"):
        inquiry.calibrate(repository, path, {}, None)
    assert not (repository / ".autodidact/calibration").exists()

"""Files of human judgements: every format, both kinds, and what is refused before any work."""

import json
from pathlib import Path

import polars as pl
import pytest

from flows.calibration import given
from tasks import families
from tasks.core.errors import BadInput
from tests.support.family import Adding
from tests.support.tiny import user
from tests.support.work import text_options

TEXT = families.create("text", text_options(system=None))
ROWS = [
    {"prompt": "add 2 3", "response": "5", "label": True, "who": "me"},
    {"prompt": "add 2 4", "response": "5", "label": False, "who": "me"},
]


def written(path: Path, rows: list[dict]) -> Path:
    frame = pl.DataFrame(rows)
    {".csv": frame.write_csv, ".parquet": frame.write_parquet}.get(path.suffix, frame.write_ndjson)(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_labels_in_every_format(tmp_path: Path, name: str) -> None:
    kind, rows = given.read(written(tmp_path / name, ROWS), {}, Adding())
    assert kind == "labels"
    assert rows == [given.Judged(user("add 2 3"), ("5",), True), given.Judged(user("add 2 4"), ("5",), False)]


@pytest.mark.parametrize(
    ("right", "wrong"), [(1, 0), ("Right", "wrong"), ("yes", "No"), ("1.0", "0.0"), (" correct", "incorrect")]
)
def test_what_a_label_may_be(tmp_path: Path, right: object, wrong: object) -> None:
    rows = [{**row, "label": right if row["label"] else wrong} for row in ROWS]
    assert [row.label for row in given.read(written(tmp_path / "a.jsonl", rows), {}, Adding())[1]] == [True, False]


def test_preferences_and_other_names_of_columns(tmp_path: Path) -> None:
    rows = [{"question": "add 2 3", "chosen": "5", "rejected": "6"}]
    kind, [row] = given.read(written(tmp_path / "a.parquet", rows), {"prompt": "question"}, Adding())
    assert (kind, row) == ("preferences", given.Judged(user("add 2 3"), ("5", "6"), None))


def test_a_prompt_is_put_into_the_familys_own_template(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *user("What is 2 + 3?")]
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({**ROWS[0], "prompt": prompt}) + "\n" for prompt in ("What is 2 + 3?", messages))
    )
    _, [text, listed] = given.read(path, {}, TEXT)
    assert text.prompt == TEXT.prompt("What is 2 + 3?")  # type: ignore[attr-defined]
    assert listed.prompt == TEXT.prompt("What is 2 + 3?", "Be kind.")  # type: ignore[attr-defined]


BAD = [
    ([{"prompt": "a", "response": "b", "lable": 1}], "has no column 'label'; did you mean 'lable'? (its columns: lable, prompt, response)"),
    ([{"prompt": "a", "response": "b", "lable": 1}], "--column label=NAME says what the file calls it"),
    ([{"prompt": "a", "chosen": "b", "reject": "c"}], "has no column 'rejected'; did you mean 'reject'?"),
    ([{"text": "a"}], "wanted are prompt, response, label or prompt, chosen, rejected"),
    ([{**ROWS[0], "chosen": "b", "rejected": "c"}], "has labels and preferences; leave one"),
    ([ROWS[0], {**ROWS[0], "label": None}], "row 2: label is None, which is neither right nor wrong"),
    ([{**ROWS[0], "label": "so so"}], "row 1: label is 'so so', which is neither right nor wrong; labels have two values"),
    ([{**ROWS[0], "label": 3}], "label is 3, which is neither"),
    ([{**ROWS[0], "response": " "}], "row 1: response is ' '; a text that is not empty is wanted"),
    ([{**ROWS[0], "prompt": 7}], "row 1: prompt is 7; a text"),
    ([{"prompt": "a", "chosen": "b", "rejected": "b "}], "chosen and rejected are the same text"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "told"), BAD)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_is_refused(tmp_path: Path, rows: list[dict], told: str, name: str) -> None:
    with pytest.raises(BadInput) as raised:
        given.read(written(tmp_path / name, rows), {}, Adding())
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_prompts_of_another_family_and_files_that_are_none(tmp_path: Path) -> None:
    countdown = families.create("countdown", json.loads(json.dumps(OPTIONS)))
    with pytest.raises(BadInput, match=r"row 1: 'add 2 3' is no Countdown prompt; it looks like"):
        given.read(written(tmp_path / "a.jsonl", ROWS), {}, countdown)
    with pytest.raises(BadInput, match="there is no such file or folder"):
        given.read(tmp_path / "gone.jsonl", {}, Adding())
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(BadInput, match="has no rows"):
        given.read(tmp_path / "empty.jsonl", {}, Adding())
    (tmp_path / "torn.parquet").write_text("torn")
    with pytest.raises(BadInput, match="no readable Parquet file"):
        given.read(tmp_path / "torn.parquet", {}, Adding())


OPTIONS = {
    "numbers": 3, "largest": 20, "bound": 60, "heldout_share": 0.15, "labelled_share": 0.25, "labelled": 20,
    "heldout": 10, "probe": 3, "corpus": {"critique": 1, "refine": 1, "usage": 1, "invent": 1},
}  # fmt: skip

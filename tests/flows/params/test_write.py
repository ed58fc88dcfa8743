"""params.yaml's text: what is written is what is read, and differences are told once."""

from typing import Any

import pytest

from flows.params import file, write


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -3, 1e-5, 1e22, 0.1, 2.0, "", "null", "yes", "a b", "a: b", "# x", "1", "1e3", "é", '"', "\n",
        "- x", "{", "*a", "&a", "~", "i01", "data/a.jsonl", [], {}, [1, [2]], {"a": {"b": []}}, "2024-01-01", "<<", "=",
    ],
)  # fmt: skip
def test_what_is_written_is_what_is_read(value: Any) -> None:
    for text in (f"x: {write.on_one_line(value)}\n", "\n".join(write.lines_of("x", value, 0)) + "\n"):
        found = file.parse(text, "x")["x"]
        assert found == value
        assert type(found) is type(value)


def test_long_mappings_take_lines_and_short_ones_do_not() -> None:
    short, long = {"block": "iid_k", "n": 9}, {f"option_{i}": i for i in range(20)}
    assert list(write.lines_of("sample", {"iid": short}, 0)) == ["sample:", "  iid: {block: iid_k, n: 9}"]
    lines = list(write.lines_of("sample", {"iid": long}, 0))
    assert lines[:3] == ["sample:", "  iid:", "    option_0: 0"]
    assert list(write.lines_of("report", {}, 0)) == ["report: {}"]


def test_changes_name_the_path_and_both_values() -> None:
    old = {"a": {"b": 1, "c": {}}, "evaluations": {"i01": {"x": 1}, "i00": {"x": 1}}}
    new = {"a": {"b": 2, "c": {}, "d": None}, "evaluations": {"i01": {"x": 2}, "i00": {"x": 2}}}
    assert write.changes(old, new) == [
        "a.b: 1 -> 2",
        "a.d: (none) -> null",
        "evaluations.i01.x: 1 -> 2",
        "evaluations.i00.x: 1 -> 2",
    ]
    assert write.changes(new, new) == []

"""Digests of files, and when one that is known may stand for reading the file again."""

import os
import time

import pytest

from tasks.core import digests


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A file that counts as large, was not touched for a while, and whose readings are counted."""
    monkeypatch.setattr(digests, "LARGE", 1000)
    monkeypatch.setattr(digests, "SETTLED", 0.05)
    path = tmp_path / "model" / "weights"
    path.parent.mkdir()
    path.write_bytes(b"a" * 1000)
    (path.parent / "config.json").write_text("{}")
    time.sleep(0.1)
    read, times = digests._read, []

    def counted(file):
        times.append(file.name)
        return read(file)

    monkeypatch.setattr(digests, "_read", counted)
    return path, tmp_path / "known", times


def test_a_large_file_is_read_once_and_small_ones_always(big):
    path, known, times = big
    first = digests.of_path(path.parent, known)
    assert digests.of_path(path.parent, known) == first == digests.of_path(path.parent)
    assert times == ["config.json", "weights", "config.json", "config.json", "weights"]


def test_every_change_is_seen(big):
    path, known, times = big
    before = digests.of_file(path, known)
    old = path.stat()
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # the size and the time of modification are the old ones
    assert digests.of_file(path, known) != before
    other = path.with_name("other")
    other.write_bytes(b"c" * 1000)
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    other.replace(path)
    assert digests.of_file(path, known) == digests.of_file(path) != before
    assert times == ["weights"] * 4


def test_a_file_that_has_just_changed_is_not_remembered(big):
    path, known, _ = big
    path.write_bytes(b"d" * 1000)
    digests.of_file(path, known)
    assert not known.exists()


def test_a_damaged_note_is_no_note(big):
    path, known, times = big
    before = digests.of_file(path, known)
    (note,) = known.iterdir()
    for text in ("", "{", "[]", '{"state": 3}', '{"digest": "x"}'):
        note.write_text(text)
        assert digests.of_file(path, known) == before
    assert len(times) == 6

import os
from pathlib import Path

import pytest

from flows.machine import state
from flows.run import outputs
from tasks.core.errors import StageFailed


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_outputs_replace_whole_folders(tmp_path: Path) -> None:
    write(tmp_path / "data/folder/old.txt", "old")
    folder = outputs.staging(tmp_path, "sample@i01")
    write(folder / "data/folder/new.txt", "new")
    write(folder / "data/file.txt", "file")
    outs = ["data/folder", "data/file.txt"]
    outputs.check(folder, outs, "sample@i01")
    outputs.publish(folder, tmp_path, outs)
    assert [p.name for p in (tmp_path / "data/folder").iterdir()] == ["new.txt"]
    assert (tmp_path / "data/file.txt").read_text() == "file"


def test_a_failed_move_puts_everything_back(tmp_path: Path) -> None:
    write(tmp_path / "data/a", "old")
    folder = outputs.staging(tmp_path, "sample")
    write(folder / "data/a", "new")
    with pytest.raises(FileNotFoundError):
        outputs.publish(folder, tmp_path, ["data/a", "data/b"])
    assert (tmp_path / "data/a").read_text() == "old"
    assert not (tmp_path / "data/b").exists()


def test_missing_and_surplus_files_are_refused(tmp_path: Path) -> None:
    folder = outputs.staging(tmp_path, "sample")
    write(folder / "data/other", "x")
    (folder / "data/empty").mkdir()
    with pytest.raises(StageFailed, match=r"did not write data/a; left data/empty without a file; wrote data/other"):
        outputs.check(folder, ["data/a", "data/empty"], "sample")


def test_staging_of_dead_processes_is_cleared(tmp_path: Path) -> None:
    parent = state.staging_dir(tmp_path)
    (parent / "sample@i01-99999999").mkdir()  # above the highest process number Linux gives
    (parent / f"train@i01-{os.getppid()}").mkdir()
    folder = outputs.staging(tmp_path, "sample@i02")
    assert {p.name for p in parent.iterdir()} == {f"train@i01-{os.getppid()}", folder.name}


def test_unchanged_wants_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "data/a", "1")
    found = outputs.digest(tmp_path, ["data/a", "data/none"])
    assert found["data/none"] == "missing"
    assert not outputs.unchanged(tmp_path, found)
    del found["data/none"]
    assert outputs.unchanged(tmp_path, found)
    write(tmp_path / "data/a", "2")
    assert not outputs.unchanged(tmp_path, found)


def test_a_folder_of_artifacts_that_is_a_link_is_named(tmp_path: Path) -> None:
    """DVC would refuse it when the stage has done its work."""
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "data/i01/dataset", root / "data/tasks", other):
        folder.mkdir(parents=True)
    (root / "data/i01/samples.parquet").symlink_to(other / "in-the-cache")  # as DVC links files
    assert list(outputs.links(root)) == []
    (root / "data/i01/candidate").symlink_to(other)
    (root / "data/i02").symlink_to(other)
    told = list(outputs.links(root))
    assert [line.partition(":")[0] for line in told] == ["data/i02", "data/i01/candidate"]
    assert f"is a link to {other}, and DVC keeps no artifact behind a link" in told[0]

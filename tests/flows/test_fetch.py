"""Fetching a dataset: a local one without the hub, and what is said of those that cannot be had."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from flows.sharing import incoming
from tasks.core.errors import BadInput
from tests.support.paths import ROOT


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.fetch", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that `datasets` loads by its own rules: files named after splits."""
    for split, count in (("train", 5), ("test", 2)):
        rows = [json.dumps({"q": f"{split} {n}", "turns": [{"role": "user", "content": "?"}]}) for n in range(count)]
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / f"mine/{split}.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_a_folder_becomes_parquet_with_its_revision(folder):
    done = run(folder, "mine")
    assert done.returncode == 0, done.stderr
    made = folder / "data/sources/mine"
    assert "data/sources/mine/train.parquet  5 rows" in done.stdout
    assert sorted(path.name for path in made.iterdir()) == ["origin.yaml", "test.parquet", "train.parquet"]
    assert pl.read_parquet(made / "test.parquet")["q"].to_list() == ["test 0", "test 1"]
    origin = yaml.safe_load((made / "origin.yaml").read_text())
    assert origin["rows"] == {"train": 5, "test": 2}
    first = (made / "train.parquet").read_bytes(), origin["revision"]
    with (folder / "mine/test.jsonl").open("a") as file:
        file.write('\n{"q": "test 2", "turns": []}')
    assert run(folder, "mine", "--split", "test").returncode == 0
    origin = yaml.safe_load((made / "origin.yaml").read_text())
    assert origin["rows"] == {"test": 3}
    assert origin["revision"] != first[1]
    assert not (made / "train.parquet").exists()


def test_without_a_network(folder):
    done = run(folder, "openai/gsm8k", "--config", "main")
    assert done.returncode == 2
    [said] = [line for line in done.stderr.splitlines() if line]
    assert said.startswith("openai/gsm8k: is no folder here, and the Hugging Face hub is out of reach")
    assert "HF_HUB_OFFLINE is set" in said
    assert not (folder / "data").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.", "correct the name; if it is private"),
        ("Dataset 'a/b' is a gated dataset on the Hub.", "ask for access on https://huggingface.co/datasets/a/b"),
        ("Revision 'x' doesn't exist for dataset 'a/b' on the Hub.", "Revision 'x' doesn't exist"),
    ],
)
def test_what_the_hub_refuses(tmp_path, monkeypatch, error, said):
    import datasets

    def refuse(*arguments: object, **options: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError(error)

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(BadInput) as caught:
        incoming.fetch(tmp_path, "hf://datasets/a/b", None, [], "x", None)
    assert said in str(caught.value)
    assert str(caught.value).startswith("a/b: ")


def test_the_hub_is_tried_again_without_a_word(tmp_path, monkeypatch):
    import datasets

    said = []

    def refuse(*arguments: object, **options: object) -> None:
        said.append(logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING))
        raise ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(BadInput, match="is no folder here, and the Hugging Face hub is out of reach"):
        incoming.fetch(tmp_path, "a/b", None, [], None, None)
    assert said == [False]


def test_refused_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    (folder / "data/sources/mine").mkdir(parents=True)
    (folder / "data/sources/mine/own.txt").write_text("mine")
    with pytest.raises(BadInput, match="was not written by this command"):
        incoming.fetch(folder, "mine", None, [], None, None)
    with pytest.raises(BadInput, match="the hub alone has revisions"):
        incoming.fetch(folder, "mine", None, [], "main", "other")
    assert not (folder / "other").exists()

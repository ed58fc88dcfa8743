"""Weights and tokenizers that are not whole: each is refused with its file and what to do."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tasks.core.errors import BadInput
from tasks.core.models import files, folders, tokenizers
from tests.support.models import model_files as written

INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "m", **{"model.layers.0.q_proj.weight": [4, 4], "model.norm.weight": [4]})


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        folders.validate_folder(folder)
    (line,) = str(caught.value).replace(f"{folder.parent}/", "").splitlines()
    return line


def test_a_whole_model(folder: Path) -> None:
    folders.validate_folder(folder)
    assert files.layers(folder) == {"model.layers.0.q_proj"}


def headed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"xx", "m/model.safetensors is no whole safetensors file (header too small): cut off while it was copied?"),
        (b"\xff" * 20, "m/model.safetensors is no whole safetensors file (header too small)"),
        (headed(b"[1]"), "m/model.safetensors is no whole safetensors file (its header is no list of tensors)"),
        (headed(b"{"), "m/model.safetensors is no whole safetensors file (its header is no list of tensors)"),
        (headed(b'{"a": {"data_offsets": [0, 9]}}', b"1234"), "(43 of 48 bytes are there): cut off while"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS and no weights; `git lfs pull`"),
    ],
)
def test_damaged_weights(folder: Path, content: bytes, why: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert why in refusal(folder)


def test_weights_in_several_files(folder: Path) -> None:
    whole = (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors").read_bytes()
    assert refusal(folder).startswith("m has neither model.safetensors nor model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text(INDEX)
    assert refusal(folder).startswith(
        "m lacks model-00001-of-00002.safetensors: model.safetensors.index.json names 2 file(s); "
    )
    (folder / "model-00001-of-00002.safetensors").write_bytes(whole[:-1])
    assert refusal(folder).startswith("m/model-00001-of-00002.safetensors is no whole safetensors file")
    (folder / "model-00001-of-00002.safetensors").write_bytes(whole)
    folders.validate_folder(folder)


def test_a_tokenizer_that_is_not_there_or_damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert refusal(folder).startswith("m/tokenizer.json is no whole tokenizer (EOF while parsing")
    with pytest.raises(BadInput, match=r"tokenizer\.json is no whole tokenizer"):
        tokenizers.plain_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == "m has no tokenizer.json; copy the tokenizer.json of the model it came from"
    with pytest.raises(BadInput, match=r"m has no tokenizer\.json; copy"):
        tokenizers.plain_tokenizer(folder)
    (folder / "vocab.json").write_text("{}")
    folders.validate_folder(folder)


@pytest.mark.parametrize(("file", "package"), [("tokenizer.model", "sentencepiece"), ("tiktoken.model", "tiktoken")])
def test_a_tokenizer_that_needs_a_package(
    folder: Path, file: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tokenizer.json").rename(folder / file)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    told = refusal(folder)
    assert told.startswith(f"m has no tokenizer.json but {file}, which the package {package} reads")
    assert f"`pip install --constraint constraints.txt {package}`, or copy the tokenizer.json" in told
    monkeypatch.setattr(files, "find_spec", lambda name: find_spec("json"))
    folders.validate_folder(folder)


def test_a_name_that_can_be_no_model(folder: Path) -> None:
    root = folder.parent
    folders.check_name(root, "m")
    folders.check_name(root, str(folder))
    folders.check_name(root, "owner/name")
    for name, told in (
        ("gpt2", r"given 'gpt2'; it is no folder, and a hub name is owner/name \(openai-community/gpt2\)"),
        ("/nope/model", r"given '/nope/model': there is no such folder; name a model's folder, or a hub name"),
        ("m/config.json", r"given 'm/config.json'; it is a file: name the model's folder"),
    ):
        with pytest.raises(BadInput, match=told):
            folders.check_name(root, name)

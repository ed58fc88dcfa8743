"""The files of a model folder, read without torch and transformers: whether weights and tokenizer are whole.

A safetensors file is 8 bytes (the length of its header, little endian), the header (JSON: name -> dtype, shape and
data_offsets, bytes after the header) and the data. Only headers are read. Every complaint is a `BadInput` that says
which file, what is wrong with it and what to do.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.core.errors import BadInput

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
# Of which transformers makes a tokenizer without more packages.
VOCABULARIES = ("vocab.json", "vocab.txt", "tekken.json")
POINTER_OF_LFS = b"version https://git-lfs"
HEADS = {"lm_head", "score", "classifier", "qa_outputs", "summary"}  # which take no adapter


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is not there. Raises `BadInput` for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds no JSON object")
    return value


# --- weights ---------------------------------------------------------------------------------------


def shards(folder: Path) -> list[str]:
    """The files that the index names, [] without an index."""
    named = read_json(folder / INDEX).get("weight_map")
    return sorted({str(name) for name in named.values()}) if isinstance(named, Mapping) else []


def weights(folder: Path) -> list[Path]:
    """The files with the weights that transformers loads. Raises `BadInput` where one is not there."""
    if not any(folder.glob("*.safetensors")):
        raise BadInput(f"{folder} is no model folder: it has no *.safetensors; other weight formats are not loaded")
    explicit = read_json(folder / "config.json").get("transformers_weights")
    if isinstance(explicit, str) and (folder / explicit).is_file() and explicit.endswith(".safetensors"):
        return [folder / explicit]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    named = shards(folder)
    if not named:
        raise BadInput(f"{folder} has neither {WEIGHTS} nor {INDEX}, which says what is in which file; fetch it too")
    if missing := [name for name in named if not (folder / name).is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(f"{folder} lacks {missing[0]}{more}: {INDEX} names {len(named)} file(s); fetch what is missing")
    return [folder / name for name in named]


def header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file: name -> dtype, shape, data_offsets. Raises `BadInput` unless the file is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if POINTER_OF_LFS.startswith(start) and len(start) == 8:
            raise BadInput(f"{path} is a pointer of Git LFS and no weights; `git lfs pull` fetches them")
        if len(start) < 8 or length > size - 8:
            raise _damaged(path, "header too small")
        try:
            tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _damaged(path, "its header is no list of tensors") from error
    if 8 + length + end > size:
        raise _damaged(path, f"{size:,} of {8 + length + end:,} bytes are there")
    return dict(tensors)


def _damaged(path: Path, why: str) -> BadInput:
    return BadInput(f"{path} is no whole safetensors file ({why}): cut off while it was copied? fetch it again")


def layers(folder: Path) -> set[str]:
    """Full names of the layers with a matrix of weights, as its files have them."""
    return {
        name.rpartition(".")[0]
        for file in weights(folder)
        for name, tensor in header(file).items()
        if len(tensor.get("shape", ())) > 1 and not HEADS & set(name.split("."))
    }


# --- tokenizer -------------------------------------------------------------------------------------


def check_tokenizer(folder: Path) -> None:
    """Raises `BadInput` unless a tokenizer is there that can be loaded with the packages that are installed."""
    file = folder / TOKENIZER
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises no other kind
            raise BadInput(
                f"{file} is no whole tokenizer ({error}): cut off while it was copied? fetch it again"
            ) from error
        return
    if any((folder / name).is_file() for name in VOCABULARIES):
        return
    copy = f"copy the {TOKENIZER} of the model it came from"
    if not (pieces := sorted(path.name for path in folder.glob("*.model"))):
        raise BadInput(f"{folder} has no {TOKENIZER}; {copy}")
    package = "tiktoken" if pieces == ["tiktoken.model"] else "sentencepiece"
    if find_spec(package) is None:
        raise BadInput(
            f"{folder} has no {TOKENIZER} but {pieces[0]}, which the package {package} reads, and that is not installed; "
            f"`pip install --constraint constraints.txt {package}`, or {copy}"
        )

"""Digests of files, folders and values: what cache keys and model pointers are made of."""

import hashlib
import json
from pathlib import Path
from typing import Any

IGNORED = {"README.md", ".gitignore", ".DS_Store"}  # not part of what a model is


def of_value(value: Any) -> str:
    """32 hexadecimal digits over canonical JSON: equal values, equal digest, whatever their key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def of_file(path: Path) -> str:
    """32 hexadecimal digits over the file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


def of_path(path: Path) -> str:
    """Digest of a file, or of a folder: the relative names and contents of all files below it."""
    if path.is_file():
        return of_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in IGNORED)
    return of_value([[p.relative_to(path).as_posix(), of_file(p)] for p in files])

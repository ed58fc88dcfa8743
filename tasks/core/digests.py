"""Digests of files, folders and values: what cache keys and model pointers are made of.

Models are large: hashing 15 GB takes ten seconds and more, and every stage asks. Given a folder `known`, the digest of
a file of `LARGE` bytes or more is kept there under the file's path, with its device, inode, size, and times of
modification and of change (ns), all of which must still be the same when it is used again. The time of change is set by
the kernel alone, so writing a file and putting its old time back is seen. A file that was changed within `SETTLED`
seconds of being hashed is not kept: a later write could leave the same times. Smaller files, among them every
configuration and tokenizer, are always read.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

KNOWN = "digests"  # the folder of a repository's scratch that holds them
LARGE = 64 << 20
SETTLED = 2.0
IGNORED = {"README.md", ".gitignore", ".DS_Store"}  # not part of what a model is


def of_value(value: Any) -> str:
    """32 hexadecimal digits over canonical JSON: equal values, equal digest, whatever their key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def of_file(path: Path, known: Path | None = None) -> str:
    """32 hexadecimal digits over the file's bytes; a large file's may come from `known`."""
    if known is None or (before := _state(path))[2] < LARGE:
        return _read(path)
    note = known / f"{of_value(os.path.realpath(path))}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(note.read_text(encoding="utf-8"))
        if record["state"] == before:
            return str(record["digest"])
    began = time.time_ns()
    digest = _read(path)
    settled = began - max(before[3:]) > SETTLED * 1e9
    if settled and _state(path) == before:
        known.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f"{note.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"state": before, "digest": digest}), encoding="utf-8")
        part.replace(note)
    return digest


def of_path(path: Path, known: Path | None = None) -> str:
    """Digest of a file, or of a folder: the relative names and contents of all files below it."""
    if path.is_file():
        return of_file(path, known)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in IGNORED)
    return of_value([[p.relative_to(path).as_posix(), of_file(p, known)] for p in files])


def _read(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


def _state(path: Path) -> list[int]:
    """Device, inode, size, times of modification and change."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]

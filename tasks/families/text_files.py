"""Reads rows of prompts and answers from JSONL or Parquet, and says what is wrong with a file and where.

Rows are numbered from 1: a line's number in JSONL (blank lines are skipped but counted), a row's in Parquet.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tasks.core.errors import BadInput


class Row(NamedTuple):
    """One row: its number in the file, the prompt, and the answer where a field for it is named."""

    number: int
    prompt: str
    answer: str | None


def read_rows(path: Path, prompt_field: str, answer_field: str | None, limit: int | None) -> list[Row]:
    """At most `limit` rows. Raises `BadInput` naming file, row and field."""
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; prepare.source names a .jsonl or .parquet file")
    kinds = {".jsonl": _lines, ".parquet": _parquet}
    if path.suffix not in kinds:
        raise BadInput(f"{path}: '{path.suffix}' is no format of prompts; use .jsonl (an object a line) or .parquet")
    rows: list[Row] = []
    for number, record in kinds[path.suffix](path):
        if limit is not None and len(rows) == limit:
            break
        prompt = _text(path, number, record, prompt_field)
        rows.append(Row(number, prompt, _text(path, number, record, answer_field) if answer_field else None))
    if not rows:
        raise BadInput(f"{path}: has no rows; it needs prompts in a field '{prompt_field}'")
    return rows


def _text(path: Path, number: int, record: dict[str, Any], field: str) -> str:
    if field not in record:
        raise BadInput(
            f"{path}: row {number} has no field '{field}'; its fields are {', '.join(sorted(record)) or 'none'}"
        )
    value = record[field]
    if not isinstance(value, str):
        what = "empty (null)" if value is None else f"of type {type(value).__name__}"
        raise BadInput(f"{path}: row {number}: field '{field}' is {what}; it must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"{path}: row {number}: field '{field}' has half a surrogate pair, no valid text") from error
    return value


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}: row {number} is no JSON in UTF-8 ({error})") from error
            if not isinstance(record, dict):
                raise BadInput(f"{path}: row {number} is a {type(record).__name__}, not an object with fields")
            yield number, record


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import polars as pl

    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadInput(f"{path}: is no readable Parquet file ({error})") from error
    yield from enumerate(table.iter_rows(named=True), start=1)

"""Records of data files: JSONL, JSON, Parquet, CSV or TSV, all but Parquet also gzipped, or a folder of such files.

A record is a mapping from field to value, with its number in the file, counted from 1: the line in JSONL (blank lines
are skipped but counted), the element of a JSON list, the row of Parquet, the row below the header in CSV. Files are
read a piece at a time, so the first records of a large file cost no more than those of a small one. Every complaint is
`BadInput` and says which file, which record, what is wrong and what to do.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from tasks.core.errors import BadInput, did_you_mean

Record = dict[str, Any]
_BEGINS, _ENDS = re.compile(r"\s*\{"), re.compile(r"\s*[,\]]")  # of an element in a JSON list
_BELOW = re.compile(
    r'\{(?:\s*"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[\w.+-]+)\s*,)*\s*"([^"\\]+)"\s*:\s*\[\s*\{'
)  # a list of objects
LONGEST = 16 * 2**20  # bytes of one record; more is a file that is not what its name says
PIECE = 2**20
LARGEST_LIST = 2**30  # bytes of a JSON list, which is in memory as a whole
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
FORMATS = ".jsonl (an object a line), .json (a list of objects), .parquet, .csv, .tsv; .gz may follow"


def data_files(path: Path) -> tuple[list[Path], list[str]]:
    """The data files of a file or folder, by name, and the names of other files in the folder. Raises `BadInput`."""
    if path.is_file():
        if _format(path) is None:
            raise BadInput(f"{path}: '{path.suffix}' is no format of prompts; use {FORMATS}")
        return [path], []
    if not path.is_dir():
        raise BadInput(f"{path}: there is no such file or folder; prepare.source names one: {FORMATS}")
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        raise BadInput(
            f"{path}: was written by `save_to_disk` of datasets; `python -m flows.fetch {path}` makes Parquet of it"
        )
    there = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    files = [p for p in there if _format(p) is not None]
    others = [p.relative_to(path).as_posix() for p in there if _format(p) is None]
    if not files:
        seen = f"only {', '.join(others[:5])}" if others else "no files"
        raise BadInput(f"{path}: is a folder without data files, it has {seen}; use {FORMATS}")
    return files, others


def chosen(files: Sequence[Path], path: Path, pattern: str, where: str) -> list[Path]:
    """The files of the folder whose name, or path below it, is `pattern` (`*` allowed). Raises `BadInput`."""
    names = {file: relative(file, path) for file in files}
    found = [file for file in files if fnmatchcase(names[file], pattern) or fnmatchcase(file.name, pattern)]
    if not found:
        known, hint = ", ".join(list(names.values())[:10]), did_you_mean(pattern, names.values())
        raise BadInput(f"{where}: given '{pattern}', which is no data file of {path} (there: {known}){hint}")
    return found


def relative(file: Path, path: Path) -> str:
    """The file's path below the folder that is read, its name if that is a file itself."""
    return file.name if file == path else file.relative_to(path).as_posix()


def records(file: Path, fields: Mapping[str, str]) -> Iterator[tuple[int, Record]]:
    """The file's records with their numbers; of Parquet `fields` only. `fields`: by name, the option that names each.
    Raises `BadInput`, also for a missing field."""
    read = READERS[_format(file) or ""]
    count = 0
    try:
        for number, record in read(file, fields):
            for field in fields:
                if field not in record:
                    raise _no_field(f"row {number} of {file}", field, fields[field], record, count > 0)
            count += 1
            yield number, record
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{file}: is no whole gzip file ({error}); compress it again, or unpack it") from error
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error})") from error
    if not count:
        raise BadInput(f"{file}: has no rows; it needs fields {', '.join(fields)}, or leave the file out")


def _no_field(where: str, field: str, option: str, known: Iterable[str], elsewhere: bool = False) -> BadInput:
    """The error for a field that is not there, with the nearest that is. `elsewhere`: other rows have it."""
    names = sorted(str(name) for name in known)
    there, near = ", ".join(names) or "none", did_you_mean(field, names)
    advice = f"{near} (its fields: {there})" if near else f"; name one of: {there}"
    if elsewhere:
        advice = f"; correct that row, whose fields are {there}"
    return BadInput(f"{option}: given '{field}', but {where} has no such field{advice}")


def _format(path: Path) -> str | None:
    suffixes = path.suffixes
    last = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else suffixes[-1] if suffixes else ""
    packed = path.suffix == ".gz"
    return last if last in READERS and not (packed and last == ".parquet") else None


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _object(file: Path, number: int, record: Any) -> Record:
    if not isinstance(record, dict):
        raise BadInput(f"{file}: row {number} is a {type(record).__name__}, not an object with fields")
    return record


def _no_json(file: Path, what: str, error: Exception, start: bytes, advice: str) -> BadInput:
    if isinstance(error, UnicodeDecodeError):
        why = f"{error.reason} at byte {error.start}"
        return BadInput(f"{file}: {what}is no JSON in UTF-8 ({why}){_encoding(start) or '; save it as UTF-8'}")
    return BadInput(f"{file}: {what}is no JSON in UTF-8 ({error}); {advice}, as `json.dumps` does")


def _encoding(start: bytes) -> str:
    return "; it looks like UTF-16: `iconv -f UTF-16 -t UTF-8` converts it" if start.startswith(UTF16) else ""


def _too_long(file: Path, number: int) -> BadInput:
    return BadInput(
        f"{file}: row {number} is longer than {LONGEST // 2**20} MiB, which is no prompt; is the file of another format "
        "than its name says, or is a quotation mark not closed?"
    )


# --- formats ---------------------------------------------------------------------------------------------
def _lines(file: Path, fields: Mapping[str, str]) -> Iterator[tuple[int, Record]]:
    with _open(file) as opened:
        number = 0
        while line := opened.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise _too_long(file, number)
            if line.isspace():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise _no_json(file, f"row {number} ", error, line, "write one object in each line") from error
            yield number, _object(file, number, record)


def _list(file: Path, fields: Mapping[str, str]) -> Iterator[tuple[int, Record]]:
    """A list of objects: those of its first piece, then, if they are wanted, all others; a file that begins with an
    object is taken for JSON lines, unless that is all of it and holds a list."""
    with _open(file) as opened:
        first = opened.read(PIECE)
    head = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(first).lstrip()
    if not head.startswith("["):
        if (below := _BELOW.match(head)) and not _is_row(head.partition("\n")[0], fields):
            raise BadInput(
                f"{file}: holds an object with a list below '{below[1]}', which is not read; write the list alone: "
                f"`jq '.\"{below[1]}\"' {file.name}`"
            )
        yield from _lines(file, fields)
        return
    number = 0
    for record in _elements(head):
        number += 1
        yield number, _object(file, number, record)
    with _open(file) as opened:
        whole = opened.read(LARGEST_LIST + 1)
    if len(whole) > LARGEST_LIST:
        raise BadInput(
            f"{file}: is a JSON list of more than {LARGEST_LIST // 2**20} MiB; `jq -c '.[]'` makes .jsonl of it"
        )
    try:
        elements = json.loads(whole.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _no_json(file, "", error, whole[:2], "write one list of objects") from error
    for place, record in enumerate(elements[number:], start=number + 1):
        yield place, _object(file, place, record)


def _is_row(line: str, fields: Mapping[str, str]) -> bool:
    """Whether a line of JSON is an object with one of the fields."""
    try:
        return not fields.keys().isdisjoint(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _elements(head: str) -> Iterator[Any]:
    """The complete elements at the beginning of a JSON list of objects."""
    decoder, place = json.JSONDecoder(), 1
    while (found := _BEGINS.match(head, place)) is not None:
        try:
            record, place = decoder.raw_decode(head, found.end() - 1)
        except (ValueError, RecursionError):
            return
        if (ends := _ENDS.match(head, place)) is None:
            return
        place = ends.end()
        yield record


def _parquet(file: Path, fields: Mapping[str, str]) -> Iterator[tuple[int, Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            for field in fields:
                if field not in opened.schema_arrow.names:
                    raise _no_field(f"the table {file}", field, fields[field], opened.schema_arrow.names)
            number = 0
            for batch in opened.iter_batches(batch_size=4096, columns=list(fields)):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        why = str(error).rstrip(".").partition(". ")[0]
        raise BadInput(
            f"{file}: is no readable Parquet file ({why}); write or fetch it again, or give the file the ending of its format"
        ) from error


def _table(file: Path, fields: Mapping[str, str]) -> Iterator[tuple[int, Record]]:
    """CSV (RFC 4180), or TSV by the file's name: a header, then as many values in every row; all values are text."""
    number = 0
    csv.field_size_limit(LONGEST)
    separator = "\t" if _format(file) == ".tsv" else ","
    with _open(file) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
        try:
            rows = csv.reader(text, delimiter=separator, strict=True)
            header = next(rows, [])
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise BadInput(f"{file}: its header has {', '.join(map(repr, repeated))} more than once; rename one")
            for values in rows:
                if values:
                    number += 1
                    if len(values) != len(header):
                        other = _other_separator(header[0] if len(header) == 1 else "", separator)
                        advice = other or "put values with separators or line breaks in double quotes"
                        raise BadInput(
                            f"{file}: row {number}, line {rows.line_num}: {len(values)} values under {len(header)} fields; {advice}"
                        )
                    yield number, dict(zip(header, values, strict=True))
        except csv.Error as error:
            if "field limit" in str(error):
                raise _too_long(file, number + 1) from error
            with _open(file) as again:
                first = again.readline(LONGEST).decode("utf-8-sig", "replace").strip()
            other = _other_separator(first, separator)
            raise BadInput(f"{file}: row {number + 1} is no CSV ({error}){other and f'; {other}'}") from error
        except UnicodeDecodeError as error:
            start = error.object[:2] if number == 0 else b""
            raise BadInput(
                f"{file}: near row {number + 1}: is no UTF-8 ({error.reason} at byte {error.start} of what was read)"
                f"{_encoding(start) or '; `iconv -f LATIN1 -t UTF-8` converts from Latin-1'}"
            ) from error


def _other_separator(header: str, separator: str) -> str:
    """What to do where the header's fields are separated by another sign; empty where they are not."""
    other = next((sign for sign in ";\t|" if sign in header and separator not in header), None)
    return f"the header, {header[:80]!r}, has {other!r} in it: separate fields with {separator!r}" if other else ""


READERS: dict[str, Callable[[Path, Mapping[str, str]], Iterator[tuple[int, Record]]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _list,
    ".parquet": _parquet,
    ".csv": _table,
    ".tsv": _table,
}

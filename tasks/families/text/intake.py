"""The user's rows: read and mapped, chosen, and rid of what cannot be used, of copies and of what is evaluated.

`select` goes through these steps; every row that a step takes away is a `Drop` with its reason:

    split, limit      a choice of the user's, counted only
    no prompt, no answer, prompt too long          `unusable` says whether they are dropped or refused
    duplicate         equal words in equal order; the first row of each stays; `duplicates`
    near duplicate    of an earlier row that stays; `near_duplicates`
    near copy of a benchmark prompt                the same, with the benchmarks' prompts before all rows
    held-out set, probe set                        the rows with the smallest hashes of their prompts
    shared passage    of what is left, with a held-out, probe or benchmark prompt; `decontaminate`
    labelled, pool    the rest, in the order of the hashes

so that the held-out set depends neither on the order of the rows nor, with `limit_by: sample`, on their number, but for
the choice between near copies.
Rows that break a rule of the format (broken JSON, a missing field, fields of several types) are always refused.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tasks.core import digests
from tasks.core.errors import BadInput
from tasks.families.text import overlap, readers
from tasks.families.text.fields import WHERE, Reader, Row
from tasks.families.text.options import Options
from tasks.families.text.plain import plain

LONGEST_PROMPT = 100_000  # characters
SAMPLED, SAMPLED_FILES = 100, 50  # rows of a file, and files of a folder, that are looked at before any work
SYMBOL = re.compile(r"[<>!]=|[+*/^<>%#&|~]|(?<=[\d\s()])-(?=[\d\s(])")  # which make another question of the same words
LOOK_ALIKES = str.maketrans("−×÷", "-*/")
SMALL = 8 * 2**20  # bytes of data that are read as a whole before any work
Extract = Callable[[str], str | None]  # the answer in a text


class Drop(NamedTuple):
    """A row that is not used, why, and the row or text that it collided with."""

    file: str
    row: int
    id: str | None
    reason: str
    detail: str | None = None
    other_file: str | None = None
    other_row: int | None = None
    other_id: str | None = None
    similarity: float | None = None


@dataclass
class Selected:
    """The parts of the data, benchmark prompts, what was dropped, and counts of rows read and left aside."""

    heldout: list[Row] = field(default_factory=list)
    probe: list[Row] = field(default_factory=list)
    labelled: list[Row] = field(default_factory=list)
    pool: list[Row] = field(default_factory=list)
    benchmarks: list[Row] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def fingerprint(question: str) -> str:
    """Of the words and the signs between them: case, punctuation, spacing and look-alike forms make no new problem, `+`
    in the place of `-` does."""
    return _fingerprint(question, overlap.words(question))


def _fingerprint(question: str, words: list[str]) -> str:
    symbols = SYMBOL.findall(plain(question).translate(LOOK_ALIKES))
    return digests.of_value([words, symbols] if symbols else words)


class Sources(NamedTuple):
    """The files with rows, the files of every benchmark, and files of the folder that are no data."""

    rows: list[Path]
    benchmarks: dict[str, list[Path]]
    others: list[str]


def sources(options: Options, path: Path) -> Sources:
    """The files that the options name. Raises `BadInput`."""
    files, others = readers.data_files(path)
    wanted = options.decontaminate.benchmarks if options.decontaminate else {}
    if wanted and path.is_file():
        raise BadInput(
            f"{WHERE}.decontaminate.benchmarks: names files of the folder prepare.source, but {path} is a file; "
            f"put both into one folder and name that, with {WHERE}.split.file for the rows (DVC then sees them change)"
        )
    benchmarks = {
        name: readers.chosen(files, path, benchmark.file, f"{WHERE}.decontaminate.benchmarks.{name}.file")
        for name, benchmark in sorted(wanted.items())
    }
    taken = {file for several in benchmarks.values() for file in several}
    if options.split.file is not None:
        if path.is_file():
            raise BadInput(
                f"{WHERE}.split.file: given '{options.split.file}', but {path} is a file, no folder; give null"
            )
        rows = readers.chosen(files, path, options.split.file, f"{WHERE}.split.file")
        if both := sorted(readers.relative(file, path) for file in taken & set(rows)):
            raise BadInput(f"{WHERE}.split.file: {', '.join(both)}: cannot be rows and a benchmark at once")
    else:
        rows = [file for file in files if file not in taken]
        if not rows:
            raise BadInput(f"{path}: all its data files are benchmarks, none is left for rows; add one")
    return Sources(rows, benchmarks, others)


def check_options(options: Options) -> None:
    """Raises `BadInput` where options do not go together."""
    if (options.prompt_field is None) == (options.messages_field is None):
        raise BadInput(
            f"{WHERE}: prompt_field is {options.prompt_field!r} and messages_field {options.messages_field!r}; name one "
            "of them, the other is null"
        )
    if options.labelled and options.answer_field is None:
        raise BadInput(
            f"{WHERE}.labelled: given {options.labelled}, but answer_field is null, so no row has an answer "
            "to learn from; name the field or set labelled to 0"
        )
    if (options.split.field is None) != (options.split.value is None):
        raise BadInput(f"{WHERE}.split: field and value go together; give both, or null for both")
    if options.system is not None and options.system_field is not None:
        raise BadInput(f"{WHERE}: both system and system_field are given; one of them is null")
    if options.decontaminate and options.decontaminate.shortest > options.decontaminate.ngram:
        raise BadInput(f"{WHERE}.decontaminate.shortest: given more than ngram; it is at most as many words")


def is_small(options: Options, path: Path) -> bool:
    """Whether the data can be read as a whole before any work."""
    given = sources(options, path)
    files = [*given.rows, *(file for several in given.benchmarks.values() for file in several)]
    return sum(file.stat().st_size * (4 if file.suffix in (".gz", ".parquet") else 1) for file in files) <= SMALL


def sample(options: Options, path: Path) -> None:
    """Reads the first rows of the files. Raises `BadInput` for what is wrong with them."""
    given = sources(options, path)
    reader = Reader(options, path)
    for file in given.rows[:SAMPLED_FILES]:
        for _ in islice(reader.rows(file), SAMPLED):
            pass
    for name, several in given.benchmarks.items():
        for file in several[:SAMPLED_FILES]:
            for _ in islice(reader.benchmark(name, file), SAMPLED):
                pass


def select(options: Options, path: Path, extract: Extract) -> Selected:
    """Everything that is used, and everything that is not. Raises `BadInput` with file, row and field for data that
    cannot work, and where too few rows are left."""
    made = Selected()
    given = sources(options, path)
    if given.others:
        made.counts["files_that_are_no_data"] = len(given.others)
    reader = Reader(options, path)
    rows = _limited(options, _of_split(options, reader, given.rows, made), made)
    if not made.counts["read"]:
        raise BadInput(
            f"{path}: none of its rows is of the split: no '{options.split.value}' in '{options.split.field}'; "
            f"correct {WHERE}.split"
        )
    made.benchmarks = [
        row for name, files in given.benchmarks.items() for f in files for row in reader.benchmark(name, f)
    ]
    rows = list(_usable(options, path, rows, extract, made))
    unique, digests_of, texts = _without_duplicates(options, path, rows, made)
    near = _near(options, unique, texts, made)
    order = sorted((digest, index) for index, digest in enumerate(digests_of) if index not in near)
    _divide(options, path, [unique[index] for _, index in order], made)
    made.counts |= {what: count for what, count in reader.counts.items() if count}
    made.counts["kept"] = sum(len(part) for part in (made.heldout, made.probe, made.labelled, made.pool))
    return made


# --- steps ---------------------------------------------------------------------------------------------------
def _of_split(options: Options, reader: Reader, files: Sequence[Path], made: Selected) -> Iterator[Row]:
    made.counts |= {"read": 0, "other_split": 0}
    for file in files:
        for row, split in reader.split_rows(file):
            if options.split.field is not None and split != options.split.value:
                made.counts["other_split"] += 1
                continue
            made.counts["read"] += 1
            yield row


def _limited(options: Options, rows: Iterator[Row], made: Selected) -> list[Row]:
    """At most `limit` rows, in the order of the files."""
    if options.limit is None:
        return list(rows)
    if options.limit_by == "first":
        return list(islice(rows, options.limit))
    everything = list(rows)
    order = sorted(range(len(everything)), key=lambda index: (fingerprint(everything[index].prompt), index))
    made.counts["beyond_limit"] = max(len(everything) - options.limit, 0)
    return [everything[index] for index in sorted(order[: options.limit])]


def _usable(options: Options, path: Path, rows: Sequence[Row], extract: Extract, made: Selected) -> Iterator[Row]:
    lacking = []
    for row in rows:
        if lack := _lack(options, row, extract):
            lacking.append((row, *lack))
        else:
            yield row
    if lacking and options.unusable == "refuse":
        row, reason, said = lacking[0]
        text = reason == "no answer" and options.extraction == "numeric" and any(row.answer for row, *_ in lacking)
        raise BadInput(
            f"{_place(path, row)}: row {row.number}: {said}{_and_more(len(lacking) - 1)}; correct "
            f"{'it' if len(lacking) == 1 else 'them'}, or set {WHERE}.unusable to drop"
            f"{', or set extraction to text' if text else ''}"
        )
    made.dropped += [_drop(row, reason, detail=said) for row, reason, said in lacking]


def _and_more(rows: int) -> str:
    return f" (and {rows:,} more {'row' if rows == 1 else 'rows'} cannot be used)" if rows else ""


def _lack(options: Options, row: Row, extract: Extract) -> tuple[str, str] | None:
    """The reason why a row cannot be used, and the same in full; None if it can."""
    prompt = options.prompt_field or options.messages_field
    if not row.prompt.strip() or "\x00" in row.prompt:
        return "no prompt", row.lack or f"'{prompt}' has no text, or a NUL character"
    if len(row.prompt) > LONGEST_PROMPT:
        return "prompt too long", f"'{prompt}' has {len(row.prompt):,} characters, more than {LONGEST_PROMPT:,}"
    if options.answer_field and (row.answer is None or extract(row.answer) is None):
        given = "is empty (null)" if row.answer is None else f"({row.answer[:60]!r})"
        return "no answer", f"no answer in '{options.answer_field}' {given}"
    return None


def _without_duplicates(
    options: Options, path: Path, rows: Sequence[Row], made: Selected
) -> tuple[list[Row], list[str], overlap.Hashed]:
    """The first row of each prompt, their fingerprints, and the words of the benchmarks' prompts and then of theirs."""
    texts = overlap.hashed(row.prompt for row in made.benchmarks)
    first: dict[str, Row] = {}
    for row in rows:
        found = overlap.words(row.prompt)
        known = first.setdefault(_fingerprint(row.prompt, found), row)
        if known is row:
            texts.add(found)
            continue
        if options.duplicates == "refuse":
            place = "" if row.file == known.file else f" of {row.file}"
            raise BadInput(
                f"{_place(path, known)}: rows {known.number} and {row.number}{place} have the same prompt "
                f"({row.prompt[:60]!r}); remove one, or set {WHERE}.duplicates to drop to keep the first of each"
            )
        made.dropped.append(_drop(row, "duplicate", known, similarity=1.0))
    return list(first.values()), list(first), texts


def _near(options: Options, rows: Sequence[Row], texts: overlap.Hashed, made: Selected) -> set[int]:
    """Indices of rows that are dropped as near copies; `texts`: the benchmarks' prompts, then the rows'."""
    if options.near_duplicates is None:
        return set()
    near, reserved = options.near_duplicates, len(made.benchmarks)
    found = overlap.near_copies(texts, near.threshold, near.shingle, near.permutations, keep=reserved)
    for index, (other, similarity) in found.items():
        benchmark = other < reserved
        known = made.benchmarks[other] if benchmark else rows[other - reserved]
        reason = "near copy of a benchmark prompt" if benchmark else "near duplicate"
        made.dropped.append(_drop(rows[index - reserved], reason, known, similarity=similarity))
    return {index - reserved for index in found}


def _divide(options: Options, path: Path, rows: Sequence[Row], made: Selected) -> None:
    """Held-out set and probe set from the start; the rest without passages of theirs is labelled rows and the pool."""
    wanted = options.heldout + options.probe + options.labelled
    evaluated = options.heldout + options.probe
    made.heldout, made.probe = list(rows[: options.heldout]), list(rows[options.heldout : evaluated])
    rest = _decontaminated(options, rows[evaluated:], made)
    if len(rest) <= options.labelled:
        reasons = Counter(drop.reason for drop in made.dropped).most_common()
        dropped = f" (dropped: {', '.join(f'{count} {reason}' for reason, count in reasons)})" if reasons else ""
        raise BadInput(
            f"{path}: {min(len(rows), evaluated + len(rest))} different prompts{dropped}, but "
            f"heldout {options.heldout}, probe {options.probe} and labelled {options.labelled} take {wanted} and the pool "
            "needs one; lower them, add prompts, or be less strict in near_duplicates and decontaminate"
        )
    made.labelled, made.pool = rest[: options.labelled], rest[options.labelled :]


def _decontaminated(options: Options, rows: Sequence[Row], made: Selected) -> list[Row]:
    """The rows that share no passage with a prompt that is evaluated."""
    if options.decontaminate is None or not rows:
        return list(rows)
    against = [*made.heldout, *made.probe, *made.benchmarks]
    kinds = ["held-out"] * len(made.heldout) + ["probe"] * len(made.probe) + ["benchmark"] * len(made.benchmarks)
    reserved = overlap.hashed(row.prompt for row in against)
    passages = overlap.Passages(reserved, options.decontaminate.ngram, options.decontaminate.shortest)
    found = passages.find(overlap.hashed(row.prompt for row in rows))
    for index, (other, place, length) in sorted(found.items()):
        passage = " ".join(overlap.words(rows[index].prompt)[place : place + length])
        reason = f"shared passage with a {kinds[other]} prompt"
        made.dropped.append(_drop(rows[index], reason, against[other], detail=passage))
    return [row for index, row in enumerate(rows) if index not in found]


def _drop(
    row: Row, reason: str, other: Row | None = None, detail: str | None = None, similarity: float | None = None
) -> Drop:
    file, number, own = (other.file, other.number, other.id) if other else (None, None, None)
    return Drop(row.file, row.number, row.id, reason, detail, file, number, own, similarity)


def _place(path: Path, row: Row) -> Path:
    return path / row.file if path.is_dir() else path

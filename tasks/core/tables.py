"""The tables: one schema each, checked on writing and on reading, with canonical Parquet bytes.

Rows are found again by content: an id is a hash of what the row says, so lineage survives reruns.
`write` sorts by the table's key, fixes the chunk layout and the row-group size, and goes through a
temporary name, so that equal rows give equal bytes and a half-written file never has the real name.
A sparse column is in a file only where some row has a value: what a run does not use leaves its bytes as they are.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core.errors import StageFailed, TableMismatch, missing

MESSAGES: Any = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
WORDS: Any = pl.List(pl.UInt64)


PROMPTS = pl.Schema(
    {
        "prompt_id": pl.String,  # hash of family and messages
        "messages": MESSAGES,
        "family": pl.String,
        "difficulty": pl.Int32,
        "source": pl.String,  # the block that made it
        "parent_ids": pl.List(pl.String),
        "answer": pl.String,  # null unless the recipe declares that it uses labels
    }
)
CANDIDATES = pl.Schema(
    {
        "candidate_id": pl.String,  # hash of prompt, parent, source, turn, draw, model and response
        "prompt_id": pl.String,
        "parent_id": pl.String,  # the candidate this one refines; null for a sample
        "source": pl.String,  # the block that made it
        "turn": pl.Int32,  # 0 for a first answer
        "draw": pl.Int32,  # sample number within prompt (or parent) and source
        "messages": MESSAGES,  # what the model was asked
        "response": pl.String,  # what it replied, raw
        "answer": pl.String,  # canonical answer, null where none could be extracted
        "prompt_tokens": pl.Int32,
        "tokens": pl.Int32,
        "logprob": pl.Float64,  # sum over response tokens in nats, at temperature 1; null where an endpoint gave none
        "finish_reason": pl.String,  # stop | length
        "model": pl.String,  # digest of the model that replied
    }
)
CRITIQUES = pl.Schema(
    {
        "candidate_id": pl.String,
        "other_id": pl.String,  # the other candidate of a pairwise judgement, else null
        "critic": pl.String,  # name of the critic in params.yaml
        "draw": pl.Int32,
        "text": pl.String,  # raw reply, or the critique assembled from replies
        "verdict": pl.Boolean,  # null when the critic gives none or nothing parsed
        "score": pl.Float64,  # higher is better; null when nothing parsed
        "parsed": pl.Boolean,
        "why": pl.String,  # why it did not parse; null where it did
        "tokens": pl.Int32,  # new tokens this critique cost
        "model": pl.String,  # digest of the judge, null for critics that use no model
    }
)
SFT = pl.Schema(
    {
        "row_id": pl.String,
        "part": pl.String,  # "own" for what the model made, else the skill of the seed corpus
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "weight": pl.Float64,
        "prompt_id": pl.String,
        "candidate_id": pl.String,  # null for rows of the seed corpus
        "iteration": pl.String,  # the iteration that made the row; null for the seed corpus
        "message_weights": pl.List(pl.Float64),  # of the completion's messages, 0: read, not learned; null: each 1
    }
)
PAIRS = pl.Schema(
    {
        "row_id": pl.String,
        "part": pl.String,
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "margin": pl.Float64,
        "weight": pl.Float64,
        "smoothing": pl.Float64,  # how probable it is that the pair is the wrong way round, 0 to 1
        "prompt_id": pl.String,
        "chosen_id": pl.String,
        "rejected_id": pl.String,
        "iteration": pl.String,
    }
)
RATED = pl.Schema(  # answers that are good or bad by themselves
    {
        "row_id": pl.String,
        "part": pl.String,
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "label": pl.Boolean,  # whether it is a good one
        "value": pl.Float64,  # the critic's score; null where it gives none
        "weight": pl.Float64,
        "prompt_id": pl.String,
        "candidate_id": pl.String,
        "iteration": pl.String,
    }
)
DROPPED = pl.Schema({"row_id": pl.String, "prompt_id": pl.String, "block": pl.String, "reason": pl.String})
PREDICTIONS = pl.Schema(
    {
        "prompt_id": pl.String,
        "kind": pl.String,  # greedy | sample | refined
        "draw": pl.Int32,
        "difficulty": pl.Int32,
        "response": pl.String,
        "answer": pl.String,
        "correct": pl.Boolean,  # null where the family has no truth
        "verdict": pl.Boolean,  # the model's own critic
        "score": pl.Float64,
        "tokens": pl.Int32,
    }
)
FINGERPRINTS = pl.Schema(
    {
        "fingerprint": pl.String,
        "part": pl.String,  # heldout | probe | benchmark
        "words": WORDS,  # hashes of the problem's words in order; empty where equal problems alone count
    }
)
ORIGINS = pl.Schema(  # where a prompt of the user's data comes from
    {
        "prompt_id": pl.String,
        "part": pl.String,  # pool | labelled | probe | heldout
        "file": pl.String,  # below prepare.source
        "row": pl.Int64,  # counted from 1: the line of JSONL
        "id": pl.String,  # the row's own, null without `id_field`
    }
)
UNUSED = pl.Schema(  # rows of the user's data that are in no part, and why
    {
        "file": pl.String,
        "row": pl.Int64,
        "id": pl.String,
        "reason": pl.String,
        "detail": pl.String,  # the shared passage, or what is missing
        "other_file": pl.String,  # the row that it collided with
        "other_row": pl.Int64,
        "other_id": pl.String,
        "similarity": pl.Float64,  # Jaccard similarity of their shingles, for near copies
    }
)
INVENTED = pl.Schema(  # prompts that the model wrote, in an iteration and in all before it
    {
        "prompt_id": pl.String,
        "fingerprint": pl.String,
        "text": pl.String,  # the prompt's own text, null for a family whose prompts are not free text
    }
)
LABELS = pl.Schema({"prompt_id": pl.String, "answer": pl.String})

CONTENTS = {  # of a dataset's folder
    "sft": "prompt and completion as messages",
    "pairs": "prompt, chosen and rejected as messages",
    "rated": "prompt and completion as messages, and whether the completion is a good one",
    "dropped": "candidates that are not trained on, with the block that dropped them and its reason",
}
ROW_GROUP = 50_000
SPARSE = frozenset({"message_weights"})


def content_id(*parts: Any) -> str:
    """16 hexadecimal digits of SHA-256 over the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_id(family: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Id of a prompt: two prompts with one text in one family are one prompt."""
    return content_id(family, [[m["role"], m["content"]] for m in messages])


def empty(schema: pl.Schema) -> pl.DataFrame:
    """A table without rows."""
    return pl.DataFrame(schema=schema)


def nothing(schema: pl.Schema) -> Any:
    """The default of a dataclass field that holds such a table: one without rows."""
    return field(default_factory=partial(empty, schema))


def frame(rows: Sequence[Mapping[str, Any]], schema: pl.Schema) -> pl.DataFrame:
    """Rows as a typed table. Raises `TableMismatch` on a missing or surplus column."""
    if not rows:
        return empty(schema)
    return check(pl.DataFrame(rows, schema_overrides=dict(schema), infer_schema_length=None), schema, "rows")


def check(table: pl.DataFrame, schema: pl.Schema, name: str) -> pl.DataFrame:
    """The table with its columns in schema order, sparse ones that are missing added without values; `TableMismatch`
    names every other column that is off."""
    absent = [column for column in schema if column in SPARSE and column not in table.columns]
    table = table.with_columns(pl.lit(None, dtype=schema[column]).alias(column) for column in absent)
    wrong = [f"column '{c}' is missing ({t})" for c, t in schema.items() if c not in table.columns]
    wrong += [f"column '{c}' is not part of the table" for c in table.columns if c not in schema]
    wrong += [
        f"column '{c}' is {table.schema[c]}, not {t}"
        for c, t in schema.items()
        if c in table.columns and table.schema[c] != t
    ]
    if wrong:
        raise TableMismatch(f"{name}: " + "; ".join(wrong))
    return table.select(list(schema))


def write(table: pl.DataFrame, path: Path, schema: pl.Schema, sort: Sequence[str] | None = None) -> None:
    """Writes canonical Parquet: sorted by `sort` (default: all plain columns in schema order, so that
    the order is total), one chunk, fixed row groups, zstd; atomically, by rename."""
    keys = list(sort) if sort else [c for c, t in schema.items() if not t.is_nested()]
    checked = check(table, schema, str(path))
    checked = checked.drop(
        column for column in schema if column in SPARSE and checked[column].null_count() == len(checked)
    )
    keys = [key for key in keys if key in checked.columns]
    ordered = checked.sort(keys, nulls_last=True, maintain_order=True).rechunk()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write_parquet(ordered, part, compression_level=3, row_group_size=ROW_GROUP, statistics=True)
    part.replace(path)


def write_parquet(table: pl.DataFrame, path: Path, **options: Any) -> None:
    """Writes the file with zstd. Raises `StageFailed`, and leaves nothing, where the disk does not take it."""
    try:
        table.write_parquet(path, compression="zstd", **options)
    except (OSError, pl.exceptions.PolarsError) as error:
        path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 2**20
        raise StageFailed(
            f"{path} cannot be written ({error}); {free:,.0f} MiB are free there: make room, or lift the limit on the "
            "size of files, and run it again"
        ) from error


def dataset_card(rows: Mapping[str, int]) -> str:
    """The README.md of a dataset's folder: each table that has rows is a configuration for `datasets.load_dataset`,
    which cannot open an empty one. `rows`: how many a table has; the first that has some is the default."""
    filled = [name for name, count in rows.items() if count]
    lines = ["---", "configs:"] if filled else []
    for name in filled:
        lines += [f"- config_name: {name}", f"  data_files: {name}.parquet"]
        lines += ["  default: true"] if name == filled[0] else []
    lines += ["---", ""] if filled else []
    told = [f"{CONTENTS[name]}: {count:,} row{'' if count == 1 else 's'}" for name, count in rows.items()]
    return "\n".join([*lines, *(f"- `{name}`, {text}" for name, text in zip(rows, told, strict=True))]) + "\n"


def read(path: Path, schema: pl.Schema) -> pl.DataFrame:
    """Reads and checks a table. Raises `MissingArtifact` or `TableMismatch`."""
    if not path.is_file():
        raise missing(path)
    try:
        table = pl.read_parquet(path)
    except Exception as error:  # polars raises several unrelated types for a damaged file
        raise TableMismatch(f"{path} is no readable Parquet file ({error}); restore it with `dvc checkout`") from error
    return check(table, schema, str(path))

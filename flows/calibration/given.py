"""A file of human judgements: labels of single responses, or preferences between two.

JSONL, JSON, CSV, TSV or Parquet, as prompts are read (`tasks.families.text.readers`). Its columns say which it is:

    prompt, response, label      the label is right or wrong: true or false, 1 or 0, yes or no, right or wrong, correct or incorrect
    prompt, chosen, rejected     the human prefers `chosen`

A prompt is text, or a list of messages of which the system's and the last one count. Other columns are passed over.
Everything that cannot work is refused before any model is loaded, in one message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import BadInput, did_you_mean
from tasks.core.family import Family, Messages, user
from tasks.families.text import readers
from tasks.families.text.family import Text

LABELS, PREFERENCES = ("prompt", "response", "label"), ("prompt", "chosen", "rejected")
RIGHT, WRONG = {"true", "1", "1.0", "yes", "right", "correct"}, {"false", "0", "0.0", "no", "wrong", "incorrect"}


@dataclass(frozen=True)
class Judged:
    """One row. Of labels: one response, and whether it is right. Of preferences: the chosen response, then the rejected
    one, and None."""

    prompt: Messages
    responses: tuple[str, ...]
    label: bool | None = None


def read(path: Path, names: Mapping[str, str], family: Family) -> tuple[str, list[Judged]]:
    """`labels` or `preferences`, and the rows. `names`: by column, what the file calls it. Raises `BadInput`."""
    [file, *_], _ = readers.data_files(path)
    wanted = _columns(file, names)
    rows = []
    for number, record in readers.records(file, {names.get(name, name): f"column {name}" for name in wanted}):
        values = {name: record[names.get(name, name)] for name in wanted}
        where = f"{path}, row {number}"
        prompt = _prompt(where, values["prompt"], family)
        if wanted == LABELS:
            rows.append(Judged(prompt, (_text(where, "response", values),), _label(where, values["label"])))
            continue
        pair = _text(where, "chosen", values), _text(where, "rejected", values)
        if pair[0].strip() == pair[1].strip():
            raise BadInput(f"{where}: chosen and rejected are the same text, so nothing is preferred; remove the row")
        rows.append(Judged(prompt, pair))
    return ("labels" if wanted == LABELS else "preferences"), rows


def _columns(file: Path, names: Mapping[str, str]) -> Sequence[str]:
    """Which columns are read. Raises `BadInput` where those of neither kind are there, naming the nearest."""
    if file.suffix == ".parquet":
        there = set(_of_parquet(file))
    else:
        _, first = next(iter(readers.records(file, {})))
        there = set(first)
    lacking = {kind: [names.get(n, n) for n in kind if names.get(n, n) not in there] for kind in (LABELS, PREFERENCES)}
    complete = [kind for kind, missing in lacking.items() if not missing]
    if len(complete) == 2:
        raise BadInput(f"{file}: has labels and preferences; leave one of the columns label and chosen out")
    if complete:
        return complete[0]
    nearest = min(lacking, key=lambda kind: len(lacking[kind]))
    missing = lacking[nearest][0]
    column = next(name for name in nearest if names.get(name, name) == missing)
    raise BadInput(
        f"{file}: has no column '{missing}'{did_you_mean(missing, there)} (its columns: {', '.join(sorted(there))}); wanted "
        f"are {', '.join(LABELS)} or {', '.join(PREFERENCES)}; --column {column}=NAME says what the file calls it"
    )


def _of_parquet(file: Path) -> list[str]:
    import polars as pl

    try:
        return pl.scan_parquet(file).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadInput(f"{file}: is no readable Parquet file ({error})") from error


def _text(where: str, name: str, values: Mapping[str, Any]) -> str:
    value = values[name]
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {name} is {value!r:.80}; a text that is not empty is wanted")
    return value


def _label(where: str, value: Any) -> bool:
    told = str(value).strip().casefold()
    if told not in RIGHT | WRONG:
        raise BadInput(
            f"{where}: label is {value!r:.80}, which is neither right nor wrong; labels have two values: "
            f"{', '.join(sorted(RIGHT))} or {', '.join(sorted(WRONG))}"
        )
    return told in RIGHT


def _prompt(where: str, value: Any, family: Family) -> Messages:
    """The prompt as the family writes it. Raises `BadInput` for one that is none of its prompts."""
    system = None
    if (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value)
    ):
        system = next((m["content"] for m in value if m.get("role") == "system"), None)
        value = value[-1]["content"]
    question = _text(where, "prompt", {"prompt": value})
    made = family.prompt(question, system) if isinstance(family, Text) else user(question)
    try:
        family.difficulty(made)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    return made

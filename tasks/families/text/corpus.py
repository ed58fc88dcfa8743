"""The data of `text`: the user's rows that are used (`intake`), as prompts, labels and rows of the seed corpus."""

from pathlib import Path

from tasks.core.family import SeedData
from tasks.families.text import intake, overlap
from tasks.families.text.family import Text, level
from tasks.families.text.fields import Row


def build(family: Text, root: Path) -> SeedData:
    """The rows, split by hash. Raises `BadInput` for data that cannot work."""
    chosen = intake.select(family.options, root / family.options.path, lambda text: family.extract([], text))
    labelled = [
        {
            "part": "solve",
            "prompt": family.prompt(row.prompt, row.system),
            "completion": [{"role": "assistant", "content": row.answer}],
            "origin": _origin(row),
        }
        for row in chosen.labelled
    ]
    pool, probe, heldout = ([_row(family, row) for row in part] for part in (chosen.pool, chosen.probe, chosen.heldout))
    return SeedData(
        labelled,
        pool,
        probe,
        heldout,
        reserved=[
            {"fingerprint": intake.fingerprint(row.prompt), "words": overlap.hashed([row.prompt])[0]}
            for row in chosen.benchmarks
        ],
        dropped=[drop._asdict() for drop in chosen.dropped],
        counts=chosen.counts,
    )


def _row(family: Text, row: Row) -> dict:
    messages = family.prompt(row.prompt, row.system)
    answer = None if row.answer is None else family.extract(messages, row.answer)
    return {"messages": messages, "difficulty": level(row.prompt.strip()), "answer": answer, "origin": _origin(row)}


def _origin(row: Row) -> dict[str, str | int | None]:
    return {"file": row.file, "row": row.number, "id": row.id}

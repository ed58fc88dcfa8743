"""prepare: the task family's data, from nothing or from the user's files.

Writes, in `data/tasks/`:
    family.json           {"name", "options"}: what every later stage creates the family from
    templates/USE.j2      the prompt templates as they were, which later stages render from, so that an edited one
                          reruns what uses it and nothing else; a remark for a family whose prompts are code
    code.json             digests of the family's modules that ask and read replies, so that an edit of one reruns the
                          stages that parse
    corpus.parquet        SFT rows with labels, `part` = skill: what base trains on and later trainings replay
    prompts.parquet       PROMPTS, the unlabelled pool; `answer` is null. Iterations take it in the order of
                          `prompt_id`, which is a hash, so that the order is a fixed shuffle
    labels.parquet        LABELS of pool prompts, where the family has answers; only the synthesize stage of a
                          run that declares labels reads them
    probe.parquet         PROMPTS with answers, for promotion gates and guards
    heldout.parquet       PROMPTS with answers, for `evaluate` alone
    fingerprints.parquet  FINGERPRINTS of probe, held-out and benchmark problems, so that stages can avoid them
    origins.parquet       ORIGINS: file, row and id of every prompt that comes from the user's data
    dropped.parquet       UNUSED: rows of the user's data that are in no part, why, and what they collided with

A problem is in one of pool, probe and held-out set: what would be twice is refused by fingerprint. (The corpus is
made from problems that a family keeps apart from these three.)
Runs again when `prepare` in params.yaml, the seed, the file or folder that `prepare.source` names or a family's code
or templates change.
"""

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from tasks import families
from tasks.core import block, tables
from tasks.core.context import Context
from tasks.core.errors import BadInput
from tasks.core.family import Family, SeedData

log = logging.getLogger(__name__)


class Options(block.Options):
    """The `prepare` section: a family by name, and its own options."""

    family: str = Field(min_length=1)  # countdown, strings, sums, text, or a module of your own in tasks/families
    source: str = Field(min_length=1)  # what the problems come from: the user's file or folder, or the generator's code
    options: dict[str, Any]  # of the family


@dataclass(frozen=True)
class Prepare:
    """The checked section: the options as given, for the record, and the family made from them."""

    options: Mapping[str, Any]
    family: Family


def parse(section: Mapping[str, Any]) -> Prepare:
    """Checks the section and the family's options. Raises `BadInput` or `UnknownName`; reads no file."""
    given = block.validate(Options, dict(section), "prepare")
    options = families.with_source(given.family, given.options, given.source)
    return Prepare(options, families.create(given.family, options))


def run(context: Context) -> None:
    """Builds the family's data and writes the files of `data/tasks/`."""
    family = context.options.family
    data = families.build(family, random.Random(context.seed), context.root)
    _refuse_shared(family, {"pool": data.pool, "probe": data.probe, "heldout": data.heldout})
    context.save("family", {"name": family.name, "options": context.options.options})
    context.save("code", families.code(family.name))
    templates = context.folder("templates")
    for name, template in families.templates(family.name).items():
        (templates / name).write_text(template, encoding="utf-8")
    context.save("corpus", _corpus(data.corpus))
    for name, rows in {"pool": data.pool, "probe": data.probe, "heldout": data.heldout}.items():
        context.save(name, _prompts(family, rows, keep_answers=name != "pool"))
    labels = [
        {"prompt_id": tables.prompt_id(family.name, row["messages"]), "answer": row["answer"]}
        for row in data.pool
        if row["answer"] is not None
    ]
    context.save("labels", tables.frame(labels, tables.LABELS))
    prints = [
        {"fingerprint": family.fingerprint(row["messages"]), "part": part, "words": family.traces(row["messages"])}
        for part, rows in {"heldout": data.heldout, "probe": data.probe}.items()
        for row in rows
    ] + [{**row, "part": "benchmark"} for row in data.reserved]
    context.save("fingerprints", tables.frame(prints, tables.FINGERPRINTS))
    context.save("origins", _origins(family, data))
    context.save("unused", tables.frame(data.dropped, tables.UNUSED))
    reasons = Counter(row["reason"] for row in data.dropped)
    context.log(corpus=len(data.corpus), pool=len(data.pool), probe=len(data.probe), heldout=len(data.heldout))
    context.log(**{f"rows_{what}": count for what, count in data.counts.items()})
    context.log(**{f"dropped_{reason.replace(' ', '_')}": count for reason, count in sorted(reasons.items())})
    for line in _told(data.counts, reasons):
        log.info(line)


def _told(counts: Mapping[str, int], reasons: Mapping[str, int]) -> list[str]:
    """What became of the user's rows; nothing where the family generates its problems."""
    if not counts:
        return []
    aside = [f"{what.replace('_', ' ')} {n:,}" for what, n in counts.items() if n and what not in ("read", "kept")]
    lines = [f"prepare  {counts['read']:,} rows: kept {counts['kept']:,}{''.join(f', {entry}' for entry in aside)}"]
    lines += [f"prepare  {n:,} dropped: {reason}" for reason, n in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))]
    return lines if not reasons else [*lines, "prepare  each of them is in data/tasks/dropped.parquet"]


def _origins(family: Family, data: SeedData) -> Any:
    """Where the prompts come from, for families that read the user's data."""
    parts = {"pool": data.pool, "probe": data.probe, "heldout": data.heldout, "labelled": data.corpus}
    return tables.frame(
        [
            {"prompt_id": tables.prompt_id(family.name, row.get("messages") or row["prompt"]), "part": part}
            | row["origin"]
            for part, rows in parts.items()
            for row in rows
            if "origin" in row
        ],
        tables.ORIGINS,
    )


def _corpus(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Corpus rows as SFT rows of weight 1; the id counts repetitions, so that equal rows stay apart."""
    seen: dict[str, int] = {}
    made = []
    for row in rows:
        digest = tables.content_id(row["part"], row["prompt"], row["completion"])
        turn = seen[digest] = seen.get(digest, -1) + 1
        made.append(
            {
                "row_id": tables.content_id(digest, turn) if turn else digest,
                "part": row["part"],
                "prompt": row["prompt"],
                "completion": row["completion"],
                "weight": 1.0,
                "prompt_id": None,
                "candidate_id": None,
                "iteration": None,
            }
        )
    return tables.frame(made, tables.SFT)


def _prompts(family: Family, rows: Sequence[Mapping[str, Any]], keep_answers: bool) -> Any:
    """Prompt rows as a table; the pool's answers stay out of it, so that a label-free loop has none to see."""
    return tables.frame(
        [
            {
                "prompt_id": tables.prompt_id(family.name, row["messages"]),
                "messages": row["messages"],
                "family": family.name,
                "difficulty": row["difficulty"],
                "source": "seed",
                "parent_ids": [],
                "answer": row["answer"] if keep_answers else None,
            }
            for row in rows
        ],
        tables.PROMPTS,
    )


def _refuse_shared(family: Family, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raises `BadInput` where one problem is in two parts."""
    owner: dict[str, str] = {}
    for part, rows in parts.items():
        for row in rows:
            found = owner.setdefault(family.fingerprint(row["messages"]), part)
            if found is not part:
                raise BadInput(
                    f"prepare: one problem is both in {found} and in {part}: {row['messages'][-1]['content']!r}; "
                    "every problem may be in one part only"
                )

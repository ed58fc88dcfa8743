"""What has happened in this repository, read from its files: params.yaml, dvc.lock, artifacts and records.

`executions` lists the stage executions whose outputs belong to params.yaml as it is now. dvc.lock may hold
older ones: a stage is left out when a value it was made with differs from params.yaml, when an input
artifact is no longer the one it was made from, or when the stage that makes the input is left out itself.
What is left out was seen when it was current.

The records (one JSON per execution, in the state folder) hold what no artifact may hold: seconds, speeds,
training curves. `record_of` gives an execution its record only if the outputs' digests in the record are
those of the files that are there, so that artifacts which DVC restored get the record of the execution that
made them, or none. None means that the duration is unknown; it is never estimated.

Nothing here imports MLflow, DVC or torch, and nothing here writes.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.history.records import Record
from flows.params import schema, sections
from flows.params.file import parse
from flows.params.schema import UNREAD
from tasks.core import digests
from tasks.core.catalog import ARTIFACTS, BASE
from tasks.core.errors import BadInput

TOKEN_TABLES = {  # stage -> the tables of an iteration that count new tokens in `tokens`
    "sample": ("samples",),
    "critique": ("critiques",),
    "refine": ("refinements", "refinement_critiques"),
}
PAUSES = (0.1, 0.3, 0.6)  # seconds before dvc.lock is read again
HASH_LIMIT = 512 * 2**20  # bytes; larger outputs are not hashed to recognise a record, the smaller ones decide


@dataclass(frozen=True)
class Execution:
    """One current entry of dvc.lock. `md5` identifies the whole entry: command, inputs, values and outputs."""

    stage: str
    iteration: str | None
    md5: str
    params: Mapping[str, str]  # flat, the row's overrides applied: {"sample.iid.temperature": "1.3"}
    deps: Mapping[str, str]  # path -> DVC md5
    outs: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.iteration}" if self.iteration else self.stage

    @property
    def counts_for(self) -> str | None:
        return counts_for(self.stage, self.iteration)


@dataclass
class Files:
    """Digests of files, each computed once per look."""

    root: Path
    _digests: dict[str, str] = field(default_factory=dict)
    _md5s: dict[str, str] = field(default_factory=dict)

    def digest(self, relative: str) -> str:
        """The project's own digest of a file or folder."""
        if relative not in self._digests:
            self._digests[relative] = digests.of_path(self.root / relative)
        return self._digests[relative]

    def md5(self, relative: str) -> str:
        """DVC's md5 of a file."""
        if relative not in self._md5s:
            digest = hashlib.md5(usedforsecurity=False)
            with (self.root / relative).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            self._md5s[relative] = digest.hexdigest()
        return self._md5s[relative]

    def size(self, relative: str) -> int:
        """Bytes of a file, or of all files of a folder."""
        path = self.root / relative
        return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def counts_for(stage: str, iteration: str | None) -> str | None:
    """The iteration that a stage's work counts for: its own; i00 for what comes before i01; None for report."""
    return iteration or (BASE if stage in ("prepare", "base") else None)


def evolution_id(params: Mapping[str, Any]) -> str:
    """32 hexadecimal digits over params.yaml without its tables of iterations and what changes no result (`serving`,
    `runner`, `prices`): one more iteration is the same evolution, any other value is another one."""
    return digests.of_value({k: v for k, v in params.items() if k not in ("iterations", "evaluations", *UNREAD)})


def flatten(value: Any, prefix: str) -> dict[str, str]:
    """Nested mappings as dotted names; anything else as JSON, strings bare: {"a": {"b": [1]}} -> {"a.b": "[1]"}."""
    if isinstance(value, Mapping):
        parts = (flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items())
        return {name: text for part in parts for name, text in part.items()}
    return {prefix: value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)}


def iterations(params: Mapping[str, Any]) -> list[str]:
    """The iterations that are evaluated, i00 first."""
    return sorted((str(iteration) for iteration in params.get("evaluations") or {}), key=sections.number)


def executions(root: Path, params: Mapping[str, Any], files: Files) -> list[Execution]:
    """The entries of dvc.lock that belong to params.yaml as it is now, by iteration, then in data-flow order."""
    path = root / "dvc.lock"
    if not path.is_file():
        return []
    stages = _whole(path).get("stages") or {}
    entries = {name: entry for name, entry in stages.items() if _same_values(_values(entry), params)}
    everything = {out["path"] for entry in stages.values() for out in entry.get("outs", [])}
    while True:
        makers = {out["path"]: out.get("md5") for e in entries.values() for out in e.get("outs", [])}
        fresh = {name: e for name, e in entries.items() if _inputs_stand(e, makers, everything, files)}
        if len(fresh) == len(entries):
            break
        entries = fresh
    found = [_execution(name, entry) for name, entry in entries.items()]
    return sorted(found, key=_order)


def _whole(path: Path) -> dict[str, Any]:
    """dvc.lock. DVC writes it in place: what is cut off is read again a moment later. Raises `BadInput`."""
    for pause in PAUSES:
        try:
            return parse(path.read_text(encoding="utf-8"), path.name)
        except BadInput:
            time.sleep(pause)
    return parse(path.read_text(encoding="utf-8"), path.name)


def made_with(record: Record, params: Mapping[str, Any]) -> bool:
    """Whether the record belongs to the evolution of params.yaml: by its tag, without one by recipe and section."""
    stage, iteration, tags = str(record["stage"]), record["iteration"], record.get("tags") or {}
    if "evolution" in tags:
        return bool(tags["evolution"] == evolution_id(params))
    if stage not in schema.STAGES or iteration not in sections.stage_keys(params, stage):
        return False
    return tags.get("recipe") == params.get("recipe") and record.get("params") == sections.section(
        params, stage, iteration
    )


def record_of(execution: Execution, known: Iterable[Record], files: Files) -> Record | None:
    """The newest finished record whose outputs are the files that are there; `known` newest first."""
    for record in known:
        same = (record["stage"], record["iteration"]) == (execution.stage, execution.iteration)
        if same and record.get("status") == "finished" and _made(record, execution, files):
            return record
    return None


def tokens(root: Path, iteration: str) -> dict[str, int]:
    """New tokens that an iteration's artifacts count, by stage; stages whose tables are missing are left out."""
    import polars as pl

    counted = {}
    for stage, tables in TOKEN_TABLES.items():
        paths = [root / ARTIFACTS[table].at(iteration) for table in tables]
        if all(path.is_file() for path in paths):
            counted[stage] = sum(int(pl.read_parquet(path, columns=["tokens"])["tokens"].sum()) for path in paths)
    return counted


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted names and values that an entry of dvc.lock was made with."""
    return {name: value for section in (entry.get("params") or {}).values() for name, value in section.items()}


def _execution(name: str, entry: Mapping[str, Any]) -> Execution:
    stage, _, iteration = name.partition("@")
    given = _values(entry)
    overrides = [given.pop(k) for k in sorted(given) if k.startswith(("iterations.", "evaluations."))]
    for override in overrides:
        given[stage] = sections.merged(given.get(stage, {}), override)
    canonical = json.dumps(entry, sort_keys=True, default=str).encode()
    return Execution(
        stage,
        iteration or None,
        hashlib.md5(canonical, usedforsecurity=False).hexdigest(),
        flatten(given, ""),
        {d["path"]: str(d.get("md5", "")) for d in entry.get("deps") or []},
        {o["path"]: str(o.get("md5", "")) for o in entry.get("outs") or []},
    )


def _same_values(values: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether every value, by its dotted name, is the one that params.yaml has."""
    for name, value in values.items():
        place: Any = params
        for part in name.split("."):
            if not isinstance(place, Mapping) or part not in place:
                return False
            place = place[part]
        if place != value:
            return False
    return True


def _inputs_stand(
    entry: Mapping[str, Any], makers: Mapping[str, str | None], everything: set[str], files: Files
) -> bool:
    """Whether the entry's input artifacts are what `makers`, a part of `everything` in the lock, made."""
    for dep in entry.get("deps") or []:
        path, md5 = dep["path"], dep.get("md5")
        if path in makers:
            if makers[path] != md5:
                return False
        elif path.startswith("data/"):
            inside = any(path.startswith(f"{out}/") for out in makers)  # a file of a folder that is an output
            around = {out for out in everything if out.startswith(f"{path}/")}  # of a folder with several outputs
            if not (inside or (around and around <= set(makers))):
                return False
            if inside and (files.root / path).is_file() and files.md5(path) != md5:
                return False
    return True


def _made(record: Record, execution: Execution, files: Files) -> bool:
    """Whether the record's outputs are the execution's, and the files that are there."""
    outputs: Mapping[str, str] = record.get("outputs") or {}
    if set(outputs) != set(execution.outs) or not all((files.root / path).exists() for path in outputs):
        return False
    return all(files.size(path) > HASH_LIMIT or files.digest(path) == digest for path, digest in outputs.items())


def _order(execution: Execution) -> tuple[float, float, str]:
    """Iteration by iteration, report last; within one by the data flow."""
    known = execution.stage in schema.STAGES
    place = schema.STAGES.index(execution.stage) if known else len(schema.STAGES)
    return sections.number(execution.counts_for) if execution.counts_for else float("inf"), place, execution.name

"""What lies under data/, read column by column: tables, JSON records and which model is which.

`Artifacts` notes every file that was looked for and is not there, so that a half-finished or partly pulled
repository can be asked, and the answer says what it does not know. Nothing here writes or needs torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from flows.machine import state
from flows.params import sections
from tasks.core import tables
from tasks.core.catalog import ARTIFACTS, BASE
from tasks.core.errors import TableMismatch
from tasks.core.models import folders

Record = dict[str, Any]

HASH_LIMIT = 2**26  # bytes; larger model folders go by their recorded digest, unless nothing else is left to look at


@dataclass
class Artifacts:
    """The artifacts of the repository at `root`. `missing`: files that were asked for and are not there."""

    root: Path
    missing: list[str] = field(default_factory=list)
    _digests: dict[str, str | None] = field(default_factory=dict)
    _records: dict[str, Record] = field(default_factory=dict)

    @cached_property
    def iterations(self) -> list[str]:
        """The iterations that have a folder, in order."""
        found = [
            path.name for path in (self.root / "data").glob("i*") if path.is_dir() and sections.KEY.fullmatch(path.name)
        ]
        return sorted(found, key=sections.number)

    @property
    def loop(self) -> list[str]:
        """The iterations after the base."""
        return [iteration for iteration in self.iterations if iteration != BASE]

    def table(
        self, name: str, iteration: str | None, where: pl.Expr | None = None, columns: Sequence[str] = ()
    ) -> pl.DataFrame:
        """Rows of a table of the catalog, in the order of the file; without `where` all, without `columns` whole ones.
        `iteration`: None for a table of prepare. Raises `TableMismatch`."""
        artifact = ARTIFACTS[name]
        path, schema = artifact.at(iteration), artifact.schema
        assert schema is not None, f"{name} is no table"
        wanted = list(columns) or list(schema)
        if not (self.root / path).is_file():
            if not artifact.sparse:
                self._miss(path)
            return tables.empty(schema).select(wanted)
        try:
            scan = pl.scan_parquet(self.root / path)
            full = tables.check(pl.DataFrame(schema=scan.collect_schema()), schema, path)
            absent = [column for column in full.columns if column not in scan.collect_schema()]
            scan = scan.with_columns(pl.lit(None, dtype=schema[column]).alias(column) for column in absent)
            return scan.filter(pl.lit(True) if where is None else where).select(wanted).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise TableMismatch(f"{path} cannot be read ({error}); restore it with `dvc checkout`") from error

    def record(self, name: str, iteration: str | None) -> Record:
        """A JSON artifact of the catalog, {} where it is not there or holds none."""
        path = ARTIFACTS[name].at(iteration)
        if path not in self._records:
            found = state.read_json(self.root / path)
            if found is None:
                self._miss(path)
            self._records[path] = found or {}
        return self._records[path]

    def there(self, name: str, iteration: str | None) -> bool:
        """Whether an artifact is there."""
        return (self.root / ARTIFACTS[name].at(iteration)).exists()

    def _miss(self, path: str) -> None:
        if path not in self.missing:
            self.missing.append(path)

    # --- models ------------------------------------------------------------------------------------
    def model(self, iteration: str) -> Record:
        """The model that an iteration made, and what became of it; null where no artifact says so."""
        lineage = {} if iteration == BASE else self.record("lineage", iteration)
        policy = self.record("policy", iteration)
        judged = {} if iteration == BASE else self.record("critics", iteration)
        return {
            "iteration": iteration,
            "path": ARTIFACTS["candidate"].at(iteration),
            "digest": self.digest(iteration),
            "initial": lineage.get("initial"),
            "reference": lineage.get("reference"),
            "judge": judged.get("judge"),
            "critics": judged.get("critics"),
            "dataset": lineage.get("dataset"),
            "drawn": lineage.get("rows"),  # block -> part -> rows there were to draw from
            "promoted": policy.get("promoted"),
            "reason": policy.get("reason"),
        }

    def digest(self, iteration: str, limit: float = HASH_LIMIT) -> str | None:
        """Digest of an iteration's candidate: of its files up to `limit` bytes, else as an artifact recorded it."""
        path = ARTIFACTS["candidate"].at(iteration)
        if self._digests.get(path) is None:
            folder = self.root / path
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            recorded = [digest for digest, place in self.pointers if place == path]
            self._digests[path] = recorded[-1] if recorded else None
            if size and (size <= limit or self.points(iteration)):
                self._digests[path] = folders.digest(folder)
        return self._digests[path]

    def points(self, iteration: str) -> bool:
        """Whether an iteration's candidate only points at a model that was there before."""
        folder = self.root / ARTIFACTS["candidate"].at(iteration)
        return (folder / folders.POINTER).is_file() or (
            folders.is_part(folder) and not (folder / folders.ADAPTER).is_file()
        )

    @cached_property
    def pointers(self) -> list[tuple[str, str]]:
        """(digest, path) of every model that a policy, a lineage or a judge's record names, by iteration."""
        return list(dict.fromkeys((pointer["digest"], pointer["path"]) for _, _, pointer in self.named()))

    def named(self) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        """(iteration, role, pointer): initial, reference, judge, and policy for what the next iteration starts from."""
        for iteration in self.iterations:
            roles = {"policy": self.record("policy", iteration)}
            if iteration != BASE:
                lineage = self.record("lineage", iteration)
                roles |= {role: lineage.get(role) or {} for role in ("initial", "reference")}
                roles["judge"] = self.record("critics", iteration).get("judge") or {}
            for role, pointer in roles.items():
                if "digest" in pointer and "path" in pointer:
                    yield iteration, role, pointer

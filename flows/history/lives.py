"""The life of a prompt, a candidate, a dataset row or a model, as one record of plain values.

`life(root, id)` finds what the id, or an unambiguous beginning of it, belongs to, and follows it both ways:
from the prompt over samples, critiques and refinements to the filter's verdict, the dataset rows and the
models that were trained on them; from a model to its initial and reference model, its data and its gate.
All parts of a life hang on one prompt, so each table is filtered by that prompt and read no further.
Only files below data/ are read; the record's `missing` lists those that were looked for and are not there.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from flows.history.artifacts import Artifacts, Record
from tasks.core import tables
from tasks.core.catalog import ARTIFACTS, BASE
from tasks.core.errors import BadInput, MissingArtifact

SHORTEST = 6  # characters of an id that are enough to ask by
SETS = {"pool": "pool", "probe": "probe set", "heldout": "held-out set"}  # tables of prompts that prepare makes
NAMED = {  # column of an iteration's table -> what its ids belong to
    "prompts": {"prompt_id": "prompt"},
    "samples": {"candidate_id": "candidate", "prompt_id": "prompt", "model": "model"},
    "critiques": {"candidate_id": "candidate", "other_id": "candidate", "model": "model"},
    "refinements": {"candidate_id": "candidate", "model": "model"},
    "refinement_critiques": {"candidate_id": "candidate", "model": "model"},
    "sft": {"row_id": "row", "candidate_id": "candidate", "prompt_id": "prompt"},
    "pairs": {"row_id": "row", "chosen_id": "candidate", "rejected_id": "candidate", "prompt_id": "prompt"},
}
ABOUT = [c for c in tables.CANDIDATES if c != "messages"]  # a candidate's own columns


def life(root: Path, given: str) -> Record:
    """The record of whatever the id belongs to; `kind` is prompt, candidate, row or model. Raises `BadInput` for an
    id that is too short, unknown or ambiguous, `MissingArtifact` where there are no artifacts."""
    artifacts = Artifacts(root)
    if not (root / "data" / "tasks").is_dir() and not artifacts.iterations:
        raise MissingArtifact(f"{root / 'data'} holds no artifacts; `dvc repro` makes them, `dvc pull` fetches them")
    kind, full = find(artifacts, given)
    record = {"prompt": _prompt, "candidate": _candidate, "row": _row, "model": _model}[kind](artifacts, full)
    return {"kind": kind, "id": full, **record, "missing": artifacts.missing}


# --- finding -----------------------------------------------------------------------------------------


def find(artifacts: Artifacts, given: str) -> tuple[str, str]:
    """Kind and full id. Raises `BadInput`."""
    start = given.strip().lower()
    if folder := re.fullmatch(r"data/(i\d+)/candidate/?", given.strip()):
        start = artifacts.digest(folder[1], float("inf")) or start
    if len(start) < SHORTEST or not re.fullmatch(r"[0-9a-f]+", start):
        raise BadInput(
            f"'{given}' is no id: at least {SHORTEST} of an id's hexadecimal digits are needed; ids stand in the columns "
            "prompt_id, candidate_id and row_id of the tables, such as data/i01/dataset/sft.parquet, and a model may be named "
            "by its folder"
        )
    found = set(_matches(artifacts, start))
    if not found:  # a model too large to be read without need
        digests = [artifacts.digest(iteration, float("inf")) for iteration in artifacts.iterations]
        found = {("model", digest) for digest in digests if digest and digest.startswith(start)}
    exact = {(kind, full) for kind, full in found if full == start}
    found = exact or found
    if len(found) > 1:
        some = ", ".join(f"{kind} {full}" for kind, full in sorted(found)[:5])
        raise BadInput(f"'{given}' is the beginning of {len(found)} ids ({some}); give more of it")
    if not found:
        away = f"; not there: {', '.join(artifacts.missing)}" if artifacts.missing else ""
        raise BadInput(f"'{given}' is no prompt, candidate, dataset row or model under {artifacts.root / 'data'}{away}")
    return found.pop()


def _matches(artifacts: Artifacts, start: str) -> Iterator[tuple[str, str]]:
    """Kind and full id of everything whose id begins so. Each table is read once."""

    def ids(name: str, iteration: str | None, columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        begins = pl.any_horizontal(pl.col(list(columns)).str.starts_with(start))
        table = artifacts.table(name, iteration, begins, list(columns))
        for column, kind in columns.items():
            yield from ((kind, full) for full in table[column].drop_nulls().unique() if full.startswith(start))

    for name in SETS:
        yield from ids(name, None, {"prompt_id": "prompt"})
    yield from ids("corpus", None, {"row_id": "row"})
    for iteration in artifacts.loop:
        for name, columns in NAMED.items():
            yield from ids(name, iteration, columns)
    digests = [digest for digest, _ in artifacts.pointers] + [
        artifacts.digest(iteration) for iteration in artifacts.iterations
    ]
    yield from (("model", digest) for digest in digests if digest and digest.startswith(start))


# --- prompts and candidates ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Thread:
    """All that hangs on one prompt. `candidates`: iteration -> id -> record; `rows`: dataset rows made of it."""

    prompt: Record
    candidates: dict[str, dict[str, Record]]
    rows: list[Record]

    def tree(self, iteration: str, candidate: str) -> Record:
        """A candidate with its refinements, and theirs."""
        others = self.candidates[iteration]
        after = [name for name, other in others.items() if other["parent_id"] == candidate and name != candidate]
        return {**others[candidate], "refinements": [self.tree(iteration, name) for name in after]}

    def roots(self, iteration: str) -> list[Record]:
        """The samples of an iteration as trees, and refinements whose parent is not there."""
        others = self.candidates[iteration]
        return [self.tree(iteration, name) for name, other in others.items() if other["parent_id"] not in others]

    def ancestors(self, iteration: str, candidate: str) -> list[Record]:
        """What a refinement was made from, first the sample."""
        found: list[Record] = []
        above = self.candidates[iteration].get(self.candidates[iteration][candidate]["parent_id"])
        while above is not None and above not in found:
            found.insert(0, above)
            above = self.candidates[iteration].get(above["parent_id"])
        return found


def thread(artifacts: Artifacts, prompt: str | None, also: Iterable[str] = ()) -> Thread:
    """Everything about a prompt; `also`: candidates to look for even where no table of candidates has them."""
    mine = pl.col("prompt_id") == prompt if prompt else pl.lit(False)
    made = rows(artifacts, mine)
    found: dict[str, dict[str, Record]] = {}
    for iteration in artifacts.loop:
        known: dict[str, Record] = {}
        for name in ("samples", "refinements"):
            chosen = artifacts.table(name, iteration, mine, ABOUT).sort("turn", "source", "draw", "candidate_id")
            known |= {row["candidate_id"]: row for row in chosen.iter_rows(named=True)}
        dropped = artifacts.table("dropped", iteration, mine)
        named = [row for row in dropped["row_id"] if row != prompt]  # candidates, should their table not be there
        named += [name for row in made if row["iteration"] == iteration for name in candidates_of(row)]
        asked = [*known, *named, *also]
        opinions = pl.col("candidate_id").is_in(asked) | pl.col("other_id").is_in(asked)
        critiques = pl.concat(
            [artifacts.table(name, iteration, opinions).sort("critic", "draw") for name in ("critiques", "refinement_critiques")]
        )  # fmt: skip
        critiques = pl.concat([critiques, _seen_from_the_other(critiques)])
        for candidate in [*named, *critiques["candidate_id"].unique(maintain_order=True)]:
            known.setdefault(candidate, dict.fromkeys(ABOUT) | {"candidate_id": candidate, "prompt_id": prompt})
        filtered = all(artifacts.there(name, iteration) for name in ("sft", "pairs", "dropped"))
        for candidate, about in known.items():
            about["critiques"] = critiques.filter(pl.col("candidate_id") == candidate).drop("candidate_id").to_dicts()
            kept = [row["row_id"] for row in made if row["iteration"] == iteration and candidate in candidates_of(row)]
            about["fate"] = _fate(dropped, candidate, prompt, kept, filtered)
        if known:
            found[iteration] = known
    return Thread(_about_prompt(artifacts, prompt) if prompt else {}, found, made)


def _seen_from_the_other(critiques: pl.DataFrame) -> pl.DataFrame:
    """Pairwise critiques as they are about the other candidate: what was better is worse."""
    return critiques.filter(pl.col("other_id").is_not_null()).with_columns(
        candidate_id="other_id", other_id="candidate_id", verdict=~pl.col("verdict"), score=1 - pl.col("score")
    )


def _fate(dropped: pl.DataFrame, candidate: str, prompt: str | None, kept: list[str], filtered: bool) -> Record:
    """`kept` (null: nobody can say), `rows` made of it, and `why`: by which block it went, for what reason."""
    why = [
        f"{block}: {reason}" + ("" if row == candidate else " (the whole prompt)")
        for row, block, reason in dropped.select("row_id", "block", "reason").iter_rows()
        if row in (candidate, prompt)
    ]
    if not filtered and not kept and not why:
        return {"kept": None, "rows": [], "why": ["the iteration's dataset is not there"]}
    return {"kept": bool(kept), "rows": kept, "why": why or ([] if kept else ["passed every filter, in no row"])}


def _about_prompt(artifacts: Artifacts, prompt: str) -> Record:
    """The prompt itself: text, where it comes from, and what was made of it."""
    mine = pl.col("prompt_id") == prompt
    public = [name for name in tables.PROMPTS if name != "answer"]  # the truth of held-out prompts stays where it is
    seen = [(label, artifacts.table(name, None, mine, public)) for name, label in SETS.items()]
    related = mine | pl.col("parent_ids").list.contains(prompt)
    asked = {iteration: artifacts.table("prompts", iteration, related) for iteration in artifacts.loop}
    seen += [(iteration, table.filter(mine)) for iteration, table in asked.items()]
    entries = [(label, row) for label, table in seen for row in table.iter_rows(named=True)]
    about = dict(entries[-1][1]) if entries else dict.fromkeys(tables.PROMPTS) | {"prompt_id": prompt}
    about["answer"] = next((row["answer"] for _, row in entries if row.get("answer") is not None), None)
    about["parent_ids"] = sorted({parent for _, row in entries for parent in row["parent_ids"] or []})
    about["sources"] = [{"where": label, "block": row["source"]} for label, row in entries]
    about["origins"] = artifacts.table("origins", None, mine, ["file", "row", "id"]).to_dicts()
    about["children"] = sorted({name for table in asked.values() for name in table.filter(~mine)["prompt_id"]})
    del about["source"]
    if any(label == SETS["heldout"] for label, _ in entries):
        columns = ["kind", "draw", "response", "answer", "correct", "verdict"]
        predicted = [
            (iteration, artifacts.table("predictions", iteration, mine, columns)) for iteration in artifacts.iterations
        ]
        about["predictions"] = [
            {"iteration": iteration, **row} for iteration, table in predicted for row in table.to_dicts()
        ]
    return about


def _prompt(artifacts: Artifacts, prompt: str) -> Record:
    found = thread(artifacts, prompt)
    trees = {iteration: found.roots(iteration) for iteration in found.candidates}
    return {
        "prompt": found.prompt,
        "ancestors": {},
        "candidates": trees,
        "rows": found.rows,
        "models": _trained(artifacts, found.rows),
    }


def _candidate(artifacts: Artifacts, candidate: str) -> Record:
    found = thread(artifacts, _prompt_of(artifacts, candidate), [candidate])
    mine = [row for row in found.rows if candidate in candidates_of(row)]
    return {
        "prompt": found.prompt,
        "ancestors": {
            iteration: found.ancestors(iteration, candidate)
            for iteration, c in found.candidates.items()
            if candidate in c
        },
        "candidates": {
            iteration: [found.tree(iteration, candidate)] for iteration, c in found.candidates.items() if candidate in c
        },
        "rows": mine,
        "models": _trained(artifacts, mine),
    }


def _prompt_of(artifacts: Artifacts, candidate: str) -> str | None:
    """The prompt that a candidate answers; null where only critiques of it are left."""
    for iteration in artifacts.loop:
        for name in ("samples", "refinements", "sft", "pairs"):
            columns = [c for c, kind in NAMED[name].items() if kind == "candidate"]
            where = pl.any_horizontal([pl.col(column) == candidate for column in columns])
            if (found := artifacts.table(name, iteration, where, ["prompt_id"])["prompt_id"]).len():
                return str(found[0])
        noted = artifacts.table("dropped", iteration, pl.col("row_id") == candidate, ["prompt_id"])["prompt_id"]
        if noted.len():
            return str(noted[0])
    return None


# --- dataset rows ----------------------------------------------------------------------------------------


def candidates_of(row: Record) -> list[str]:
    """The candidates that a dataset row was made of."""
    return [row[name] for name in ("candidate_id", "chosen_id", "rejected_id") if row.get(name)]


def rows(artifacts: Artifacts, where: pl.Expr, messages: bool = False) -> list[Record]:
    """Dataset rows, once each, with `table` (sft or pairs) and `datasets`: the iterations whose dataset has the row,
    as which part, and whether that iteration's training drew from it (null: nobody can say)."""
    found: dict[tuple[str, ...], Record] = {}
    for iteration in artifacts.loop:
        for table in ("sft", "pairs"):
            schema = ARTIFACTS[table].schema or pl.Schema()
            columns = [name for name, kind in schema.items() if messages or not kind.is_nested()]
            for row in artifacts.table(table, iteration, where, columns).iter_rows(named=True):
                part = row.pop("part")
                same = (table, row["row_id"], *candidates_of(row), str(row["iteration"]))
                entry = found.setdefault(same, {"table": table, **row, "datasets": []})
                drawn = artifacts.record("lineage", iteration).get("rows")
                uses = (
                    None if drawn is None else any((part if table == "sft" else "pairs") in p for p in drawn.values())
                )
                entry["datasets"].append({"iteration": iteration, "part": part, "drawn": uses})
    return list(found.values())


def _row(artifacts: Artifacts, row: str) -> Record:
    found = rows(artifacts, pl.col("row_id") == row, messages=True)
    corpus = artifacts.table("corpus", None, pl.col("row_id") == row).to_dicts()
    if corpus and not any(entry["iteration"] is None for entry in found):
        found.append({"table": "sft", **corpus[0], "datasets": []})
    for entry in found:
        if entry["iteration"] is None:  # of the seed corpus, which the base model was trained on
            part = corpus[0]["part"] if corpus else entry["datasets"][0]["part"]
            if not artifacts.points(BASE):
                entry["datasets"].insert(0, {"iteration": BASE, "part": part, "drawn": None})
    prompt = next((entry["prompt_id"] for entry in found if entry["prompt_id"]), None)
    parents = {candidate for entry in found for candidate in candidates_of(entry)}
    thread_ = thread(artifacts, prompt, parents) if prompt or parents else Thread({}, {}, [])
    return {
        "rows": found,
        "prompt": thread_.prompt,
        "ancestors": {},
        "candidates": {
            iteration: [thread_.tree(iteration, name) for name in known if name in parents]
            for iteration, known in thread_.candidates.items()
            if parents & known.keys() and iteration in {entry["iteration"] for entry in found}
        },
        "models": _trained(artifacts, found),
    }


# --- models ------------------------------------------------------------------------------------------


def _trained(artifacts: Artifacts, made: Iterable[Record]) -> list[Record]:
    """The models whose training data had one of the rows."""
    iterations = {place["iteration"] for row in made for place in row["datasets"]}
    return [artifacts.model(iteration) for iteration in artifacts.iterations if iteration in iterations]


def _model(artifacts: Artifacts, digest: str) -> Record:
    """The iterations whose candidate it is, with data and held-out accuracy, and what it was used for."""
    own = []
    for iteration in artifacts.iterations:
        if artifacts.digest(iteration) == digest:
            figures = artifacts.record("metrics", iteration)
            measured = {name: figures.get(name) for name in ("accuracy", "accuracy_low", "accuracy_high")}
            own.append({**artifacts.model(iteration), "data": _parts(artifacts, iteration), "heldout": measured})
    wrote: dict[str, dict[str, int]] = {}
    for iteration in artifacts.loop:
        counts = {
            name: artifacts.table(name, iteration, pl.col("model") == digest, ["model"]).height
            for name in ("samples", "critiques", "refinements", "refinement_critiques")
        }
        if any(counts.values()):
            wrote[iteration] = counts
    return {
        "paths": sorted({path for known, path in artifacts.pointers if known == digest} | {m["path"] for m in own}),
        "models": own,
        "used": [
            {"iteration": iteration, "role": role} for iteration, role, p in artifacts.named() if p["digest"] == digest
        ],
        "wrote": wrote,
    }


def _parts(artifacts: Artifacts, iteration: str) -> list[Record]:
    """Rows of an iteration's training data by table, part and iteration that made them; the base's are the corpus."""
    if iteration == BASE:
        unused = artifacts.points(iteration)  # a pretrained base has learned nothing from the corpus
        found = {} if unused else {"corpus": artifacts.table("corpus", None, columns=["part", "iteration"])}
    else:
        found = {name: artifacts.table(name, iteration, columns=["part", "iteration"]) for name in ("sft", "pairs")}
    return [
        {"table": name, **row}
        for name, table in found.items()
        for row in table.group_by("part", "iteration").agg(rows=pl.len()).sort("part", "iteration").to_dicts()
    ]

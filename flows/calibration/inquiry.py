"""The critics of params.yaml asked about a file's rows, through the code and the stored replies of stage critique.

Nothing is written to data/. Requests go through the engine of params.yaml and into the same shards or request log, so a
second call asks for nothing; shards are computed in this process, whatever `runner` says. The judge is the policy that the iteration's row names. Each pair of a file of preferences
is a prompt of its own, so that exactly that pair is compared, in both orders.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from flows.calibration import agreement, given
from flows.calibration.given import Judged
from flows.history.artifacts import Artifacts
from flows.machine import state
from flows.machine.progress import Progress
from flows.params import compose, file, problems, sections
from tasks import families
from tasks.blocks.critique import pairwise
from tasks.blocks.critique.judging import judged
from tasks.blocks.critique.opinions import DISAGREE, aggregate, outcomes
from tasks.blocks.work import JUDGE, Cast, Work
from tasks.core import tables
from tasks.core.asking.opener import Opener
from tasks.core.block import Bound
from tasks.core.catalog import ARTIFACTS, BASE
from tasks.core.errors import BadInput, MissingArtifact, unknown_name
from tasks.core.family import Family, FreeText
from tasks.core.labels import Truth
from tasks.core.models.pointer import Pointer

FOLDER = "calibration"  # below the state folder


def calibrate(root: Path, path: Path, names: Mapping[str, str], iteration: str | None) -> dict[str, Any]:
    """The figures of every critic, as they are stored in `.autodidact/calibration/` under the file's name. `iteration`:
    whose critics and judge; None: the first. Raises `BadInput` before any work."""
    params = file.load(root)
    problems.check(params, None, compose.names())
    known = sections.iterations(params)
    iteration = iteration or known[0]
    if iteration not in known:
        raise unknown_name("iteration", iteration, known, "--iteration")
    critics: list[Bound] = sections.options(params, "critique", iteration)
    if not critics:
        raise BadInput(
            f"critique: params.yaml has no critic in {iteration}; add one (docs/guides/judges.md), or a recipe that does"
        )
    family = families.load(root)
    kind, rows = given.read(path, names, family)
    pointer = _judge(root, sections.row(params, iteration)["judge"])
    useless = {critic.name: _useless(critic, kind, rows) for critic in critics}
    prompts, candidates, ids = _tables(family, rows, kind)
    state.quiet(root)
    progress = Progress()
    progress.name = "calibrate"
    opener = Opener(root, params["engine"], state.scratch_dir(root), progress=progress, serving=params["serving"])
    with contextlib.closing(opener):
        work = Work(
            prompts=prompts,
            family=family,
            models=Cast(opener, {JUDGE: pointer}),
            truth=Truth(family, "calibrate", False),
            seed=sections.seed(params, "critique", iteration),
            name="calibrate",
            candidates=candidates,
        )
        critiques = judged(work, [critic for critic in critics if not useless[critic.name]])
        tally = opener.take_tally()
    figures: dict[str, dict[str, Any]] = {}
    for critic in critics:
        why = useless[critic.name]
        figures[critic.name] = {"block": critic.kind, "left_out": why}
        if why is None:
            figures[critic.name] |= _figures(critic, kind, family, rows, ids, critiques)
    record = {
        "file": path.name, "kind": kind, "rows": len(rows), "iteration": iteration, "judge": asdict(pointer),
        "critics": figures,
    }  # fmt: skip
    stored = state.folder(state.state_dir(root) / FOLDER) / f"{path.name}.json"
    state.write_json(stored, record)
    return record | {"stored": str(stored), "requests": tally.requests, "asked": tally.made}


def _judge(root: Path, iteration: str) -> Pointer:
    """The policy of an iteration. Raises `MissingArtifact`."""
    found = Artifacts(root).record("pointer", iteration)
    if not found:
        made = "base" if iteration == BASE else f"promote@{iteration}"
        raise MissingArtifact(
            f"the judge is the policy of {iteration}, and {ARTIFACTS['pointer'].at(iteration)} is not there; `dvc repro "
            f"{made}` makes it, `dvc pull` restores it"
        )
    return Pointer(**found)


def _useless(critic: Bound, kind: str, rows: Sequence[Judged]) -> str | None:
    """Why a critic cannot be asked about such rows; None where it can."""
    if "labels" in critic.needs:
        return "it reads the truth, which the labels are"
    if "votes" in critic.gives:
        return "it counts the samples of a prompt, and a file has none"
    prompts = {tables.content_id(row.prompt) for row in rows}
    if "comparisons" in critic.gives and kind == "labels" and len(prompts) == len(rows):
        return "it compares the responses to one prompt, and each prompt has one"
    return None


def _tables(
    family: Family, rows: Sequence[Judged], kind: str
) -> tuple[pl.DataFrame, pl.DataFrame, list[tuple[str, ...]]]:
    """PROMPTS and CANDIDATES of the rows; of each row the ids of its prompt and its candidates."""
    prompts: dict[str, Any] = {}
    candidates: dict[str, Any] = {}
    draws: dict[str, int] = {}
    ids = []
    for row in rows:
        prompt = tables.content_id(family.name, row.prompt, *(row.responses if kind == "preferences" else ()))
        difficulty = family.difficulty(row.prompt)
        prompts[prompt] = {
            "prompt_id": prompt, "messages": row.prompt, "family": family.name, "difficulty": difficulty,
            "source": "calibrate", "parent_ids": [], "answer": None,
        }  # fmt: skip
        mine = []
        for response in row.responses:
            candidate = tables.content_id(prompt, response)
            mine.append(candidate)
            if candidate in candidates:
                continue
            draws[prompt] = draws.get(prompt, -1) + 1
            candidates[candidate] = {
                "candidate_id": candidate, "prompt_id": prompt, "parent_id": None, "source": "given", "turn": 0,
                "draw": draws[prompt], "messages": row.prompt, "response": response,
                "answer": family.extract(row.prompt, response), "prompt_tokens": 0, "tokens": 0, "logprob": None,
                "finish_reason": "stop", "model": "",
            }  # fmt: skip
        ids.append((prompt, *mine))
    asked = tables.frame(list(prompts.values()), tables.PROMPTS)
    return asked, tables.frame(list(candidates.values()), tables.CANDIDATES), ids


def _figures(
    critic: Bound,
    kind: str,
    family: Family,
    rows: Sequence[Judged],
    ids: Sequence[tuple[str, ...]],
    critiques: pl.DataFrame,
) -> dict[str, Any]:
    own = critiques.filter(pl.col("critic") == critic.name)
    if kind == "preferences" and "comparisons" in critic.gives:
        compared = {row["candidate_id"]: row for row in outcomes(own).iter_rows(named=True)}
        texts: dict[str, list[str]] = {}
        for candidate, text in own.select("candidate_id", "text").iter_rows():
            texts.setdefault(candidate, []).append(text)
        return agreement.of_preferences(
            [
                _compared(critic.kind, family, row, name[0], compared.get(name[1]), texts.get(name[1], []))
                for row, name in zip(rows, ids, strict=True)
            ]
        )
    opinions = {
        row["candidate_id"]: (row["verdict"], row["score"]) for row in aggregate(own, critic.name).iter_rows(named=True)
    }
    if kind == "preferences":
        scores = [tuple(opinions.get(candidate, (None, None))[1] for candidate in name[1:]) for name in ids]
        return agreement.of_preferences(
            [agreement.Preferred(name[0], _worth(*pair)) for name, pair in zip(ids, scores, strict=True)]
        )
    return agreement.of_labels(
        [
            agreement.Said(name[0], bool(row.label), *opinions.get(name[1], (None, None)))
            for row, name in zip(rows, ids, strict=True)
        ]
    )


def _compared(
    kind: str, family: Family, row: Judged, prompt: str, opinion: Mapping[str, Any] | None, texts: Sequence[str]
) -> agreement.Preferred:
    """What a critic that compares said of a row. Where most of its draws prefer neither response, its orders
    disagree, or it is a tie."""
    if opinion is None or not isinstance(family, FreeText):
        return agreement.Preferred(prompt, None)
    pair = (row.responses[0], row.responses[1])
    orders = [pairwise.in_both_orders(kind, family, row.prompt, pair, text) for text in texts]
    told = [worth for both in orders for worth in both]
    first, readings = sum(worth == 1.0 for worth in told), sum(worth != 0.5 for worth in told)
    if opinion["better"] is not None:
        return agreement.Preferred(prompt, float(opinion["better"]), first, readings)
    if opinion["why"] == DISAGREE or any(both in ([1.0, 1.0], [0.0, 0.0]) for both in orders):
        return agreement.Preferred(prompt, None, first, readings, disagree=True)
    return agreement.Preferred(prompt, 0.5 if opinion["score"] is not None else None, first, readings)


def _worth(first: float | None, second: float | None) -> float | None:
    """Of the first of two scored responses; None where a score is missing."""
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)

"""What can be compared: an iteration or all of this run, a run in another folder, a commit, an evolution by its name.

A side is a folder with params.yaml, dvc.lock and artifacts. For a commit that is a temporary folder of links into DVC's
cache. An evolution that is not the present one is looked for among the commits: params.yaml and dvc.lock say what
was made there, DVC's cache has it. Artifacts that do not belong to the side's params.yaml are as if they were not there.
"""

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from flows.history import lock, mlflow
from flows.history.artifacts import Artifacts
from flows.params import file, sections
from flows.run import graph
from tasks.core.catalog import ARTIFACTS
from tasks.core.errors import BadInput, MissingArtifact, unknown_name

ITERATION = re.compile(r"(?P<name>.+)@(?P<iteration>i\d{2,4})")
EVOLUTION = re.compile(r"(?:.*-)?(?P<id>[0-9a-f]{6,32})")  # its name in MLflow ends in the first six digits of its id
COMMITS = 500  # that are looked at for an evolution, the newest first
NEEDED = ("predictions", "samples", "critiques", "refinements", "refinement_critiques")  # tables of an iteration


@dataclass(frozen=True)
class Side:
    """One side. `iteration`: the one that was named; None for all of them."""

    label: str
    root: Path
    params: Mapping[str, Any]
    iteration: str | None = None

    @property
    def evolution(self) -> str:
        """Its evolution's name, as in MLflow."""
        return mlflow.name_of(self.params)

    @property
    def family(self) -> str:
        return str(self.params["prepare"]["family"])

    @cached_property
    def iterations(self) -> list[str]:
        """Those that are measured, or the one that was named. Raises `MissingArtifact` without any."""
        wanted = [self.iteration] if self.iteration else lock.iterations(self.params)
        current = None
        if (self.root / "dvc.lock").is_file():
            executions = lock.executions(self.root, self.params, lock.Files(self.root))
            current = {execution.iteration for execution in executions if execution.stage == "evaluate"}
        found = [name for name in wanted if self._there(name) and (current is None or name in current)]
        if not found:
            raise MissingArtifact(
                f"{self.label}: {' and '.join(wanted[-1:])} of {self.evolution} is not measured, or its artifacts are gone "
                f"({ARTIFACTS['predictions'].at(wanted[-1])}); `dvc repro` makes them, `dvc pull` or `dvc fetch "
                "--all-commits` brings those that were pushed"
            )
        return found

    def _there(self, iteration: str) -> bool:
        return (self.root / ARTIFACTS["predictions"].at(iteration)).is_file()

    def predictions(self, iteration: str) -> pl.DataFrame:
        """PREDICTIONS on the held-out prompts. Raises `TableMismatch`."""
        return Artifacts(self.root).table("predictions", iteration)

    def tokens(self, iteration: str) -> int | None:
        """New tokens that the iteration's samples, critiques and refinements have; None where it has none."""
        return sum(lock.tokens(self.root, iteration).values()) or None

    def prompts(self) -> dict[str, str]:
        """The held-out prompts' last messages, by id; none where the table is gone."""
        rows = Artifacts(self.root).table("heldout", None, columns=["prompt_id", "messages"]).iter_rows()
        return {prompt: messages[-1]["content"] for prompt, messages in rows}


def side(root: Path, given: str, folder: Path) -> Side:
    """What `given` names, seen from the repository at `root`; an empty `folder` for links. Raises `UnknownName` with the
    nearest names, `MissingArtifact`, `BadInput`."""
    found = ITERATION.fullmatch(given)
    name, iteration = (found["name"], found["iteration"]) if found else (given, None)
    if sections.KEY.fullmatch(name):
        return _checked(Side(given, root, file.load(root)), iteration or name)
    if (root / name).is_dir():
        if not (root / name / file.FILE).is_file():
            raise BadInput(f"{given}: the folder has no {file.FILE}; name the root of a repository that holds a run")
        return _checked(Side(given, root / name, file.load(root / name)), iteration)
    wanted = EVOLUTION.fullmatch(name)
    present = file.load(root) if (root / file.FILE).is_file() else None
    if wanted and present and lock.evolution_id(present).startswith(wanted["id"]):
        return _checked(Side(given, root, present), iteration)
    commits = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").split()
    if not commits and wanted:
        commits = [c for c, params in _commits(root) if lock.evolution_id(params).startswith(wanted["id"])]
    if not commits:
        raise _unknown(root, given, name, present)
    for commit in commits:
        made = _checked(_linked(root, given, commit, folder / commit), iteration)
        with contextlib.suppress(MissingArtifact):  # an older commit may have the run
            if made.iterations:
                break
    return made


def _checked(made: Side, iteration: str | None) -> Side:
    known = lock.iterations(made.params)
    if iteration is not None and iteration not in known:
        raise unknown_name("iteration", iteration, known, made.label)
    return Side(made.label, made.root, made.params, iteration)


def _unknown(root: Path, given: str, name: str, present: Mapping[str, Any] | None) -> BadInput:
    """Why nothing is found under the name: MLflow knows it and its artifacts are gone, or nobody knows it."""
    seen = mlflow.evolutions(root)
    if name in seen:
        return MissingArtifact(
            f"{given}: MLflow has its figures, but its artifacts are gone: params.yaml has moved on, and no commit has its "
            "params.yaml with the dvc.lock of its run; use its parameters again (`dvc repro` takes what is stored), commit "
            "both files, and compare the commits"
        )
    known = [*seen, *(mlflow.name_of(params) for _, params in _commits(root))]
    known += [mlflow.name_of(present), *lock.iterations(present)] if present else []
    known += _git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").split()
    return unknown_name("run or iteration", given, set(known), "compare")


def _commits(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Commits that changed params.yaml or dvc.lock and have both, newest first, with their parameters."""
    commits = _git(root, "log", "--all", f"-n{COMMITS}", "--format=%H", "--", file.FILE, "dvc.lock").split()
    for commit in commits:
        text = _git(root, "show", f"{commit}:./{file.FILE}")
        if text and _git(root, "ls-tree", commit, "dvc.lock"):
            try:
                yield commit, file.parse(text, f"{commit[:10]}:{file.FILE}")
            except BadInput:  # it was no YAML then
                continue


def _linked(root: Path, label: str, commit: str, folder: Path) -> Side:
    """The commit's files that a comparison reads, as links into DVC's cache. Raises `BadInput`, `MissingArtifact`."""
    folder.mkdir()
    for name in (file.FILE, "dvc.lock"):
        text = _git(root, "show", f"{commit}:./{name}")
        if not text:
            raise BadInput(
                f"{label}: commit {commit[:10]} has no {name}; commit it with the run, then it can be compared"
            )
        (folder / name).write_text(text, encoding="utf-8")
    made = Side(label, folder, file.load(folder))
    stages = file.parse((folder / "dvc.lock").read_text(encoding="utf-8"), f"{label}: dvc.lock").get("stages") or {}
    outs = {str(o["path"]): str(o.get("md5", "")) for entry in stages.values() for o in entry.get("outs") or []}
    stored = graph.cached(root, list(outs.values()))
    tasks = stored.get(outs.get("data/tasks", ""))
    listed = json.loads(tasks.read_text(encoding="utf-8")) if tasks else []
    inside = {f"data/tasks/{entry['relpath']}": str(entry["md5"]) for entry in listed}
    stored |= graph.cached(root, list(inside.values()))
    wanted = [ARTIFACTS[name].at(key) for name in NEEDED for key in lock.iterations(made.params)]
    for path in (*wanted, ARTIFACTS["heldout"].path):
        if source := stored.get((outs | inside).get(path, "")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(source)
    return made


def _git(root: Path, *arguments: str) -> str:
    """What git says; nothing where it refuses."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else ""

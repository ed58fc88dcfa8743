"""A user's working copy of this repository in a temporary folder, and the commands a user gives there."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.estimate import demands as workload
from flows.params.file import load
from tests.support.paths import ROOT

IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def workspace(
    folder: Path, cache: Path, recipe: str = "self_evolution", size: str | None = "mini", iterations: int | None = None
) -> Path:
    """A git repository with the project's code, at miniature size, with a DVC cache that may be shared."""
    folder.mkdir(parents=True)
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for name in ("params.yaml", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/.gitignore", folder / "data/.gitignore")
    run(folder, "git", "init", "-q")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "start")
    run(folder, "dvc", "init", "-q")
    configure(folder, cache)
    use(folder, recipe, size, iterations)
    return folder


def configure(folder: Path, cache: Path) -> None:
    """What `dvc config core.analytics false` and `dvc cache dir` write."""
    (folder / ".dvc/config").write_text(f"[core]\n    analytics = false\n[cache]\n    dir = {cache}\n")


def use(folder: Path, recipe: str, size: str | None = "mini", iterations: int | None = None) -> None:
    """Writes params.yaml for a recipe, and a size on top of it; with so many iterations, or theirs."""
    more = ["--iterations", str(iterations)] if iterations else []
    for name in filter(None, (recipe, size)):
        run(folder, "python", "-m", "flows.recipe", "use", name, *more)


def environment(folder: Path) -> dict[str, str]:
    """What a user's shell would have there: no settings of Prefect, MLflow or DVC from outside, modules compiled once."""
    outside = ("PREFECT_", "MLFLOW_", "DVC_", "PYTEST_", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(outside)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "GIT_CEILING_DIRECTORIES": str(folder.parent)}


def run(folder: Path, *command: str, code: int = 0) -> str:
    """Output of a command, both streams; fails unless it exits with `code`."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, f"{' '.join(command)} exited {done.returncode}, not {code}:\n{output}"
    return output


def ran(output: str) -> list[str]:
    """Stages that a `dvc repro` really ran, from what it printed."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def requests_made(folder: Path) -> Counter[str]:
    """How many requests the model has answered so far, by stage; replies that were stored do not count."""
    made: Counter[str] = Counter()
    for path in (folder / ".autodidact/records").glob("*.json"):
        record = json.loads(path.read_text())
        name = f"{record['stage']}@{record['iteration']}" if record["iteration"] else record["stage"]
        made[name] += int(record["figures"].get("requests_made", 0))
    return +made


def asked_for(folder: Path) -> dict[str, tuple[int, float, int, int]]:
    """By stage: requests that were told before, at most and expected, and those that were wanted and made since."""
    params = load(folder)
    task = workload.task(folder, params, True)
    questions = workload.count_questions(task.family, task.answers)
    told = workload.demands(params, task.evaluated, questions.most)
    found = {}
    for path in (folder / ".autodidact/records").glob("*.json"):
        record = json.loads(path.read_text())
        figures, demands = record["figures"], told.get((record["stage"], record["iteration"]), [])
        expected = sum(questions.expected(d.requests) if d.kind == "question" else d.requests for d in demands)
        wanted, made = int(figures.get("requests", 0)), int(figures.get("requests_made", 0))
        found[f"{record['stage']}@{record['iteration']}"] = (sum(d.requests for d in demands), expected, wanted, made)
    return found


def assert_told(folder: Path) -> None:
    """The bounds hold, stage by stage, and are within a factor of 2.5 of what was wanted; what was expected within 3 of
    what was made."""
    asked = asked_for(folder)
    assert any(wanted for _, _, wanted, _ in asked.values())
    for name, (most, expected, wanted, made) in asked.items():
        assert made <= wanted <= most <= 2.5 * wanted, name
        assert made / 3 <= expected <= 3 * made, name


@contextmanager
def kept_server(folder: Path) -> Iterator[None]:
    """Keeps one Prefect server for several runs: it is gone when the last process of its run is gone."""
    code = "import sys; from pathlib import Path; from flows.machine import state; from flows.run.background import server; state.quiet(Path.cwd()); "
    code += "server.wait(Path.cwd(), server.ensure(Path.cwd())); print(flush=True); sys.stdin.read()"
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment(folder), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    owner.stdout.readline()
    try:
        yield
    finally:
        owner.communicate()


def edit(folder: Path, path: str, value: Any) -> None:
    """Sets one value of params.yaml, given by its dotted path; rows of `evaluations` follow those of `iterations`."""
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text())
    *parents, last = path.split(".")
    place = params
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    params["evaluations"] = {key: params["evaluations"].get(key, {}) for key in ("i00", *params["iterations"])}
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def one_thread(folder: Path) -> None:
    """Models are asked, and trained in the loop, by one thread: the other core is another test's."""
    edit(folder, "engine.threads", 1)
    for trainer in yaml.safe_load((folder / "params.yaml").read_text())["train"]:
        edit(folder, f"train.{trainer}.threads", 1)


def lock(folder: Path) -> dict[str, Any]:
    """The stages of dvc.lock."""
    return yaml.safe_load((folder / "dvc.lock").read_text())["stages"]


def digests(folder: Path) -> dict[str, str]:
    """The md5 of every artifact, by path."""
    return {out["path"]: out["md5"] for stage in lock(folder).values() for out in stage.get("outs", [])}


def forget(folder: Path, names: Sequence[str]) -> None:
    """Makes DVC forget that it has run these stages."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    for name in names:
        del lock["stages"][name]
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    shutil.rmtree(folder.parent / "cache/runs")

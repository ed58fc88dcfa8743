"""Runs one stage: what every command in dvc.yaml calls, and what `flows.evolve` calls for each stage in turn.

    python -m flows.stage STAGE [ITERATION]      # python -m flows.stage sample i02

The stage's params are checked, with the whole of params.yaml, before any work. The stage then runs inside a Prefect
flow named after it, as one cached task keyed on the digests of its declared dependencies and on its declared params,
so that the cache can only agree with DVC. The cached result is a small record of outputs and digests; a hit counts only
if those bytes are in place, otherwise the task runs again. Under `dvc repro` they never are: DVC has removed them.

Outputs are built in a staging folder, checked against dvc.yaml and renamed into place; a stage that fails leaves none,
and one that refuses its input puts back what DVC had removed for it.
What the execution cost goes into a record (`flows.history.records`), never into an artifact.

Exit codes: 0 done, 1 the stage failed, 2 bad input.
"""

import contextlib
import logging
import os
import shutil
import sys
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.history import lock, records
from flows.machine import state, terminal
from flows.machine.progress import Progress
from flows.run import declared, graph, outputs, workers
from flows.run.background import fork, server
from flows.run.declared import Declared
from flows.run.project import Part, Project
from tasks.core import digests
from tasks.core.asking.model import Model
from tasks.core.context import Context
from tasks.core.errors import AutodidactError, BadInput, StageFailed
from tasks.core.models.pointer import Pointer

if TYPE_CHECKING:
    from tasks.core.asking.opener import Opener


CHATTY = ("prefect", "transformers", "datasets", "trl", "accelerate", "mlflow", "httpx", "alembic", "dvc", "filelock")
FIGURES_SHOWN = 3
READ_FILES = ("prepare", "base")  # the stages that read files and models of the user


class Runner:
    """Runs stages of one repository. Keeps models loaded between stages where several run in one process."""

    def __init__(self, root: Path, files: bool = True, project: Project | None = None) -> None:
        """Reads dvc.yaml, and reads and checks params.yaml as a whole, with `files` also the files it names. Raises
        `BadInput`."""
        self.root = root
        self.project = project or Project()
        self.params = self.project.params(root, files)
        self.graph = declared.graph(root)
        self.progress = Progress()
        self._opener: Opener | None = None

    def execute(self, stage: str, iteration: str | None, since: float | None = None) -> None:
        """One stage, as a Prefect flow. Needs a Prefect server (`flows.run.background.server`), or Prefect starts its own.

        `since`: when the execution began (seconds since 1970), if the time before this call belongs to it too.
        Raises `BadInput` before any work, `StageFailed` (with the traceback in a log file) afterwards."""
        began = time.time() if since is None else since
        described = self.declared(stage, iteration)
        part = self.project.part(self.params, stage, iteration)
        context = self._context(stage, iteration, part)
        inputs = outputs.digest(self.root, described.deps)
        self.progress.name = context.name
        record = self._record(context, part.section, inputs, began)
        records.write_record(self.root, record)
        try:
            results, work = self._in_flow(context, described, inputs)
        except BaseException as error:
            record |= {"status": "failed", "error": str(error) or type(error).__name__}
            with contextlib.suppress(OSError):  # a full disk, for instance, must not hide what went wrong
                records.write_record(self.root, self._measured(record, context, began))
            if isinstance(error, BadInput) or not isinstance(error, Exception):
                raise
            raise self._failure(context.name, error) from error
        finally:
            self.progress.close()
            shutil.rmtree(context.staging, ignore_errors=True)
        if work is None:
            records.drop_record(self.root, record)
            print(f"{context.name}  unchanged: its outputs are those of an earlier run", flush=True)
            return
        record |= {"status": "finished", "outputs": results, "work_seconds": work}
        records.write_record(self.root, self._measured(record, context, began))
        print(summary(context.name, context.figures, time.time() - began), flush=True)

    def _in_flow(
        self, context: Context, described: Declared, inputs: Mapping[str, str]
    ) -> tuple[dict[str, str], float | None]:
        """Digests of the outputs, and the seconds of work; None for them if an earlier run's outputs are in place."""
        from prefect import flow, task
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
        from prefect.task_runners import ThreadPoolTaskRunner

        silence()
        work: list[float] = []
        key = digests.of_value([context.stage, context.iteration, inputs, described.params])

        def run(key: str) -> dict[str, dict[str, str]]:
            before = time.perf_counter()
            self.project.run(context.stage)(context)
            work.append(time.perf_counter() - before)
            outputs.check(context.staging, described.outs, context.name)
            outputs.publish(context.staging, self.root, described.outs)
            return {"outputs": outputs.digest(self.root, described.outs)}

        stage_task = task(name=context.stage, task_run_name=context.name, **workers.stored(self.root))(run)

        def body() -> dict[str, str]:
            _discard_unreadable(self.root, key)
            found = stage_task(key)["outputs"]
            if not work and not outputs.unchanged(self.root, found):
                found = stage_task.with_options(refresh_cache=True)(key)["outputs"]
            return found

        runner: Any = ThreadPoolTaskRunner(max_workers=1)
        whole = flow(name=context.stage, flow_run_name=context.name, task_runner=runner, persist_result=False)(body)
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # or each flow waits a second for its end
            found = whole()
        return found, sum(work) if work else None

    def declared(self, stage: str, iteration: str | None) -> Declared:
        """What dvc.yaml declares for the stage. Raises `UnknownName` for a stage or an iteration that is not there."""
        return declared.declared(self.graph, self.params, stage, iteration)

    def _context(self, stage: str, iteration: str | None, part: Part) -> Context:
        name = f"{stage}@{iteration}" if iteration else stage
        return Context(
            stage=stage,
            iteration=iteration,
            row=part.row,
            iterations=tuple(self.params.get("evaluations", {})),
            options=part.options,
            seed=part.seed,
            labels=bool(self.params["labels"]),
            engine=self.params["engine"],
            root=self.root,
            staging=outputs.staging(self.root, name),
            scratch=state.scratch_dir(self.root),
            open_model=self._open_model,
            progress=self.progress,
            apart=self.params["runner"]["training"],
            release=self._release,
        )

    def _release(self) -> None:
        if self._opener is not None:
            self._opener.release()

    def _open_model(self, pointer: Pointer) -> Model:
        if self._opener is None:
            scratch = state.scratch_dir(self.root)
            self._opener = self.project.opener(self.root, scratch, self.params, self.progress)
        return self._opener(pointer)

    def close(self) -> None:
        """Gives the models' memory back, and ends what processes they have."""
        if self._opener is not None:
            self._opener.close()

    def _record(
        self, context: Context, section: Mapping[str, Any], inputs: Mapping[str, str], began: float
    ) -> dict[str, Any]:
        return {
            "id": f"{context.stage}@{context.iteration or ''}-{uuid.uuid4().hex[:12]}",
            "stage": context.stage,
            "iteration": context.iteration,
            "status": "running",
            "pid": os.getpid(),
            "process_started": _process_start(),
            "started": began,
            "params": dict(section),
            "tags": {
                "recipe": str(self.params["recipe"]),
                "evolution": lock.evolution_id(self.params),
                "git.commit": records.commit(self.root),
            },
            "figures": {},
            "curves": [],
            "inputs": dict(inputs),
            "outputs": {},
            "seconds": None,
            "work_seconds": None,
            "error": None,
        }

    def _measured(self, record: dict[str, Any], context: Context, began: float) -> dict[str, Any]:
        if self._opener is not None:
            tally = self._opener.take_tally()
            context.spend(**tally.figures())
            if tally.seconds:
                context.log(engine_tokens_per_second=round(tally.tokens / tally.seconds, 1))
        measured = {
            "seconds": round(time.time() - began, 3),
            "figures": context.figures,
            "curves": context.curves,
            "tags": record["tags"] | context.tags,
        }
        if record["work_seconds"] is not None:
            measured["work_seconds"] = round(record["work_seconds"], 3)
        return record | measured

    def _failure(self, name: str, error: Exception) -> StageFailed:
        log = state.logs_dir(self.root) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            log.write_text("".join(traceback.format_exception(error)))
            where = f"traceback: {os.path.relpath(log)}"
        except OSError as unwritten:
            where = f"its traceback could not be written ({unwritten})"
        said = str(error) if isinstance(error, AutodidactError) else f"{type(error).__name__}: {error}"
        said = said.removeprefix(f"{name}: ")
        return StageFailed(f"{name} failed: {said}\n  no artifact of it was kept; {where}")


def summary(name: str, figures: Mapping[str, float], seconds: float) -> str:
    """The line of a finished stage: its name, its first figures, its seconds."""
    shown = [f"{_number(value)} {what.replace('_', ' ')}" for what, value in list(figures.items())[:FIGURES_SHOWN]]
    return "  ".join([name, *([", ".join(shown)] if shown else []), f"{seconds:.1f} s"])


def silence() -> None:
    """Libraries may warn, not chat; how a run ended is said by this module, once, and not by Prefect too."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # says at each end that it has not ended yet


def command(
    root: Path,
    stage: str,
    iteration: str | None = None,
    pid: int | None = None,
    keeper: Sequence[str] | None = None,
    project: Project | None = None,
) -> int:
    """Runs the stage with a server, says on stderr what went wrong; the exit code.

    `pid`: the process on whose behalf this one works, if not its own. `keeper`: the command that starts a process which
    keeps the libraries loaded; if this call starts one, a fork of it does the work. `project`: as of `Runner`."""
    terminal.listen()
    try:
        state.quiet(root)
        given = dict(os.environ)
        runner = Runner(root, stage in READ_FILES, project)
        runner.declared(stage, iteration)
        url = server.ensure(root, pid, keeper)
        words = [stage, *([iteration] if iteration else [])]
        if keeper and (code := fork.ask(root, words, server.warm_process(root), given)) is not None:
            return code
        server.wait(root, url)
        with contextlib.closing(runner):
            runner.execute(stage, iteration, since=_process_start(pid))
    except AutodidactError as error:
        print(error, file=sys.stderr)
        if isinstance(error, BadInput) and "DVC_STAGE" in os.environ:
            graph.put_back(root, os.environ["DVC_STAGE"])
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; nothing of it was kept", file=sys.stderr)
        return 1
    return 0


def _discard_unreadable(root: Path, key: str) -> None:
    """Prefect does not write results atomically: a process that was killed may have left half of one."""
    stored = workers.results(root) / key
    if stored.exists() and state.read_json(stored) is None:
        stored.unlink()


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.4g}"


def _process_start(pid: int | None = None) -> float:
    import psutil

    return psutil.Process(pid).create_time()

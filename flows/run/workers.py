"""The shards of a stage as cached Prefect tasks: in this process, or on the workers of a Ray cluster.

A shard is run unless its stored file is there and whole, whatever Prefect's cache says. What a shard took (requests,
tokens, seconds) comes back from wherever it was computed. The first failure stops the rest.

On a Ray cluster (`flows.run.cluster`, section `runner`) Prefect's own RayTaskRunner runs the same tasks. A worker process
loads the model with its first shard and keeps it. It reads the model from, and writes the shard into, the folder of
this repository: all machines share it, at the same path. A shard counts once this process finds it whole. A worker
that is lost costs the shard it was at, which is then computed again.
"""

import contextlib
import pickle
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.machine import state
from tasks.core.errors import StageFailed

if TYPE_CHECKING:
    from tasks.core.asking.shards import Finished, Job, Spent

ATTEMPTS = 4  # at a shard whose worker is lost


def run_here(jobs: "Sequence[Job]", finished: "Finished" = lambda spent: None) -> None:
    """Runs each job that is not done as a task of the flow that is running, in this process."""
    from prefect import task

    missing = _missing(jobs)
    if not missing:
        return
    stopped = threading.Event()

    def shard(key: str) -> "Spent":
        if stopped.is_set():
            raise StageFailed("another shard failed")
        try:
            return missing[key].run()
        except BaseException:
            stopped.set()  # here, before the next shard can start
            raise

    # The task's argument is the key alone: Prefect walks through whatever it is given, and a job may hold a model.
    shard_task = task(name="shard", task_run_name="shard-{key}", refresh_cache=True, **stored(Path.cwd()))(shard)
    try:
        for future in [shard_task.submit(key) for key in missing]:
            finished(future.result())
    finally:
        stopped.set()


def run_on_ray(
    jobs: "Sequence[Job]",
    finished: "Finished" = lambda spent: None,
    *,
    root: Path,
    runner: Mapping[str, Any],
    threads: int,
) -> None:
    """Runs each job that is not done as a task of the flow that is running, on the cluster of the section `runner`,
    at most `runner.workers` at a time, each on `threads` CPUs. What is under way when one fails is still finished."""
    missing = _missing(jobs)
    if not missing:
        return
    from flows.run import cluster

    cluster.connect(root, runner, threads)
    import ray
    from prefect import task
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    lost_errors = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
    waiting, lost = list(missing), Counter[str]()
    running: dict[Any, tuple[str, Any]] = {}
    failure: Exception | None = None
    with _seen(root) as mark, _named(), RayTaskRunner() as tasks, remote_options(**resources(runner, threads)):
        shard = task(name="shard", task_run_name="shard-{key}", refresh_cache=True, **stored(root))(_remote(root, mark))
        while running or (waiting and failure is None):
            while waiting and failure is None and len(running) < runner["workers"]:
                key = waiting.pop(0)
                future = tasks.submit(shard, {"key": key, "packed": pickle.dumps(missing[key])})
                running[future.wrapped_future] = (key, future)
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            key, future = running.pop(done)
            try:
                spent = future.result()
                _verify(missing[key])
                finished(spent)
            except lost_errors as error:
                lost[key] += 1
                if lost[key] < ATTEMPTS:
                    print(f"a Ray worker was lost ({type(error).__name__}); its shard is computed again", flush=True)
                    waiting.insert(0, key)
                elif failure is None:
                    failure = StageFailed(f"{ATTEMPTS} Ray workers were lost over the same shard; the last: {error}")
            except ray.exceptions.RayTaskError as error:
                failure = failure or StageFailed(f"a Ray worker failed: {type(error.cause).__name__}: {error.cause}")
            except Exception as error:  # noqa: BLE001 - raised below, when what is under way has been stored
                failure = failure or error
    if failure is not None:
        raise failure


def resources(runner: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What Ray reserves for a shard. A worker process serves any number of shards, also where it has a GPU."""
    return {"num_cpus": threads, "num_gpus": runner["gpus"], "max_calls": 0, "max_retries": 0}


def stored(root: Path) -> dict[str, Any]:
    """How results are kept: a small JSON file named by the task's argument `key`."""
    return {
        "cache_key_fn": lambda context, arguments: arguments["key"],
        "persist_result": True,
        "result_storage": results(root),
        "result_serializer": "json",
        "retries": 0,
    }


def results(root: Path) -> Path:
    """The folder of Prefect's stored results."""
    folder = state.prefect_dir(root) / "results"
    folder.mkdir(exist_ok=True)
    return folder


def _missing(jobs: "Sequence[Job]") -> "dict[str, Job]":
    from prefect.context import FlowRunContext

    known = {job.key: job for job in jobs}
    missing = {key: job for key, job in known.items() if not job.valid()}
    flow_run = FlowRunContext.get()
    if flow_run is None or flow_run.flow_run is None:
        raise StageFailed(
            "shards are Prefect tasks and need a running flow; start the stage with `python -m flows.stage`"
        )
    if len(missing) < len(known):
        print(f"{flow_run.flow_run.name}  {len(known) - len(missing)} of {len(known)} shards were stored", flush=True)
    return missing


def _verify(job: "Job") -> None:
    if not job.valid():
        raise StageFailed(
            f"a Ray worker computed shard {job.key}, and it is not here, or not whole; "
            "all machines of the cluster need this repository's folder at the same path"
        )


def _remote(root: Path, mark: Path) -> "Callable[[str, bytes], Spent]":
    """What a worker does. A nested function, so that it is sent as code: whether the worker finds this project's
    modules is the first thing to see."""
    folder, seen = str(root), str(mark)

    def shard(key: str, packed: bytes) -> "Spent":
        import pickle
        import platform
        import sys
        from pathlib import Path

        if not Path(seen).exists():
            raise RuntimeError(
                f"the Ray worker on {platform.node()} does not see {folder} as it is here; all machines of the cluster "
                "need this repository's folder at the same path, or set runner.name: local"
            )
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spent: Spent = pickle.loads(packed).run()
        return spent

    return shard


@contextlib.contextmanager
def _seen(root: Path) -> Iterator[Path]:
    """A new file in scratch: who sees it shares the folder with this process."""
    mark = state.scratch_dir(root) / f"seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Flow and stage as workers are told of them: by name, without the functions that run in this process."""
    from prefect import flow, task
    from prefect.context import FlowRunContext, TaskRunContext

    def nothing() -> None:
        return None

    with contextlib.ExitStack() as stack:
        if (outer := FlowRunContext.get()) is not None and outer.flow is not None:
            stack.enter_context(outer.model_copy(update={"flow": flow(name=outer.flow.name)(nothing)}))
        if (inner := TaskRunContext.get()) is not None:
            stack.enter_context(inner.model_copy(update={"task": task(name=inner.task.name)(nothing)}))
        yield

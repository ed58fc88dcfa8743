"""Training in a process of its own: so that a GPU's memory is free of it afterwards, and on several GPUs or machines.

    python -m tasks.core.process FOLDER
    accelerate launch --config_file FILE -m tasks.core.process FOLDER   # with `accelerate: FILE` in the block's options

`fit` and `reference_logps` do what those of `tasks.core.trainers` and `tasks.core.losses` do, with the same arguments,
in such a process. FOLDER, in scratch, holds the request: `request.json` (paths, options, seed), `arrays.npz` (token
rows and plans, no pickles), and afterwards the answer: `result.json`, `result.npy`. On CPU without `accelerate` the
bytes are those of training in this process: the same code with the same threads. With it each process takes its share
of a step's rows, which are summed in another order.

On several machines the same command runs on each of them, over a file system that they share; the stage gives it on
the first, and prints it. A process that loses the one it works for stops.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.core import batches
from tasks.core.context import Pointer
from tasks.core.errors import BadInput, StageFailed

if TYPE_CHECKING:
    from tasks.core.trainers import Fitted

Progress = Callable[[int, int], None]
Arrays = dict[str, np.ndarray]

MARK = "@progress "
LINES = 30  # of a failed process's output that are shown
KINDS = {kind.__name__: kind for kind in (batches.SftBatches, batches.PairBatches, batches.Rows)}
PARENT = "AUTODIDACT_PARENT"


# --- this side ---------------------------------------------------------------------------------------


def fit(
    kind: str,
    initial: Path,
    output: Path,
    checkpoints: Path,
    sources: Sequence[batches.Batches],
    options: Mapping[str, Any],
    seed: int,
    progress: Progress,
    base: Pointer | None = None,
) -> "Fitted":
    """`trainers.fit` in another process, or in those that `options["accelerate"]` describes."""
    from tasks.core.trainers import Fitted

    arrays: Arrays = {}
    for number, source in enumerate(sources):
        _flatten(source, str(number), arrays)
    request = {
        "call": "fit",
        "kind": kind,
        "initial": str(initial.absolute()),
        "output": str(output.absolute()),
        "checkpoints": str(checkpoints.absolute()),
        "sources": [type(source).__name__ for source in sources],
        "options": dict(options),
        "seed": seed,
        "base": [base.path, base.digest] if base else None,
    }
    folder = checkpoints.with_name(f"{checkpoints.name}.request")
    with _request(folder, request, arrays):
        _run(folder, options["accelerate"], options["threads"], progress)
        return Fitted(**json.loads((folder / "result.json").read_text()))


def reference_logps(
    folder: Path, rows: batches.Rows, precision: str, progress: Progress, limit: int, threads: int, place: Path
) -> np.ndarray:
    """`losses.reference_logps` in another process, whose request is kept at `place` meanwhile."""
    arrays: Arrays = {}
    _flatten(rows, "rows", arrays)
    request = {"call": "reference", "folder": str(folder.absolute()), "precision": precision, "limit": limit}
    with _request(place, request | {"options": {"threads": threads}}, arrays):
        _run(place, None, threads, progress)
        found: np.ndarray = np.load(place / "result.npy")
        return found


def command(folder: Path, accelerate: str | None) -> list[str]:
    """What is run."""
    module = ["-m", "tasks.core.process", str(folder)]
    if accelerate is None:
        return [sys.executable, *module]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", accelerate, *module]


@contextlib.contextmanager
def _request(folder: Path, request: Mapping[str, Any], arrays: Arrays) -> Any:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
    (folder / "request.json").write_text(json.dumps(request))
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, accelerate: str | None, threads: int, progress: Progress) -> None:
    """Runs the request and passes its progress on. Raises what it raised, `StageFailed` if it fell without a word."""
    asked = command(folder.absolute(), accelerate)
    if accelerate is not None:
        print(f"training: {' '.join(['accelerate launch', *asked[3:]])}", flush=True)
    code = Path(__file__).parents[2]
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    told = {PARENT: f"{socket.gethostname()}:{os.getpid()}", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    process = subprocess.Popen(
        asked,
        env={**os.environ, **told},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that all of its processes can be ended together
    )
    last: deque[str] = deque(maxlen=LINES)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                done, total = line.removeprefix(MARK).split()
                progress(int(done), int(total))
            else:
                last.append(line.rstrip())
        process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if (folder / "error.json").is_file():
        error = json.loads((folder / "error.json").read_text())
        raise {"BadInput": BadInput}.get(error["type"], StageFailed)(error["message"])
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise StageFailed(f"the training process ended with {how}\n" + "\n".join(last))


def _flatten(value: Any, name: str, into: Arrays) -> None:
    for field in fields(value):
        part = getattr(value, field.name)
        if is_dataclass(part):
            _flatten(part, f"{name}.{field.name}", into)
        else:
            into[f"{name}.{field.name}"] = np.asarray(part)


# --- the other side ----------------------------------------------------------------------------------


def _built(kind: str, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    values: dict[str, Any] = {}
    for field in fields(KINDS[kind]):
        key = f"{name}.{field.name}"
        if key not in arrays:
            values[field.name] = _built("Rows", key, arrays)
        else:
            values[field.name] = arrays[key].item() if arrays[key].ndim == 0 else arrays[key]
    return KINDS[kind](**values)


def _watch(parent: str) -> None:
    """Ends this process when the one that it works for, on this machine, is gone."""
    import psutil

    host, _, pid = parent.rpartition(":")
    if host != socket.gethostname():
        return

    def look() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            working = psutil.Process(int(pid))
            while working.is_running() and working.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _tell(done: int, total: int) -> None:
    print(f"{MARK}{done} {total}", flush=True)


def work(folder: Path) -> None:
    """Does what the request in `folder` asks for."""
    import torch

    request = json.loads((folder / "request.json").read_text())
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    torch.set_num_threads(int(request["options"]["threads"]))
    if request["call"] == "reference":
        from tasks.core import losses

        rows = _built("Rows", "rows", arrays)
        path, precision, limit = Path(request["folder"]), request["precision"], request["limit"]
        np.save(folder / "result.npy", losses.reference_logps(path, rows, precision, _tell, limit))
        return
    from tasks.core import trainers

    sources = [_built(kind, str(number), arrays) for number, kind in enumerate(request["sources"])]
    options = json.loads(json.dumps(request["options"]), object_hook=lambda given: SimpleNamespace(**given))
    fitted = trainers.fit(
        request["kind"],
        Path(request["initial"]),
        Path(request["output"]),
        Path(request["checkpoints"]),
        sources,
        options,
        request["seed"],
        _tell if _first() else lambda done, total: None,
        Pointer(*request["base"]) if request["base"] else None,
    )
    if _first():
        result = {"history": fitted.history, "steps": fitted.steps, "seconds": fitted.seconds}
        (folder / "result.json").write_text(json.dumps(result))


def _first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def main(folder: Path) -> int:
    if PARENT in os.environ:
        _watch(os.environ[PARENT])
    try:
        work(folder)
    except (BadInput, StageFailed) as error:
        aside = folder / f"error-{os.getpid()}.json"
        aside.write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
        aside.replace(folder / "error.json")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

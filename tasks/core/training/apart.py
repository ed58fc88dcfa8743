"""Training in a process of its own: so that a GPU's memory is free of it afterwards, and on several GPUs or machines.

    python -m tasks.core.training.apart FOLDER
    accelerate launch --config_file FILE -m tasks.core.training.apart FOLDER   # with `accelerate: FILE` in the block's options

`fit` and `reference_logps` do what those of `tasks.core.training.trainers` and `tasks.core.training.losses` do, with the same arguments,
in such a process. FOLDER, in scratch, holds the request: `request.json` (paths, options, seed), `arrays.npz` (token
rows and plans, no pickles), and afterwards the answer: `result.json`, `result.npy`; or what went wrong: `error.json` in
words of this project, `unexpected.json` in others. (One of several processes may fail because another did, so the first
goes before the second.) What it prints goes to a log beside FOLDER, which stays where nothing else says why it failed.
On CPU without `accelerate` the bytes are those of training in this process: the same code with the same threads. With
it each process takes its share of a step's rows, which are summed in another order.

On several machines the same command runs on each of them, over a file system that they share; the stage gives it on
the first, and prints it. A process that loses the one it works for stops.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tasks.core import memory
from tasks.core.errors import BadInput, OutOfMemory, StageFailed
from tasks.core.models.pointer import Pointer
from tasks.core.training import batches, encoding
from tasks.core.training.options import OPTIONS
from tasks.core.training.request import Fit, Fitted, Reference, Steps

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

MARK = "@progress "
ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (BadInput, MemoryError)}
ENDS = re.compile(r"(?:exitcode *: |died with <Signals\.)(-?\w+)")  # how launchers tell of a process that failed
KINDS = {kind.__name__: kind for kind in (batches.SftBatches, batches.PairBatches, batches.RatedBatches, encoding.Rows)}
PARENT = "AUTODIDACT_PARENT"


# --- this side ---------------------------------------------------------------------------------------


def fit(request: Fit, progress: Steps) -> Fitted:
    """`trainers.fit` in another process, or in those that `request.options.accelerate` describes."""
    folder = request.checkpoints.with_name(f"{request.checkpoints.name}.request")
    with _sent(request, folder):
        _run(folder, request.options.accelerate, request.options.threads, progress)
        return Fitted(**json.loads((folder / "result.json").read_text()))


def reference_logps(request: Reference, progress: Steps, place: Path) -> np.ndarray:
    """`losses.reference_logps` in another process, whose request is kept at `place` meanwhile."""
    with _sent(request, place):
        _run(place, None, request.threads, progress)
        found: np.ndarray = np.load(place / "result.npy")
        return found


def command(folder: Path, accelerate: str | None) -> list[str]:
    """What is run."""
    module = ["-m", "tasks.core.training.apart", str(folder)]
    if accelerate is None:
        return [sys.executable, *module]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", accelerate, *module]


@contextlib.contextmanager
def _sent(request: Fit | Reference, folder: Path) -> Iterator[None]:
    """Writes the request into the folder, which is gone afterwards."""
    told, arrays = _packed(request)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
    (folder / "request.json").write_text(json.dumps(told))
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _packed(request: Fit | Reference) -> tuple[dict[str, Any], Arrays]:
    """A request as JSON and arrays; `_unpacked` is the other way."""
    arrays: Arrays = {}
    if isinstance(request, Reference):
        _flatten(request.rows, "rows", arrays)
        told = {"precision": request.precision, "limit": request.limit, "threads": request.threads}
        return {"call": "reference", "model": str(request.model.absolute()), **told}, arrays
    for number, source in enumerate(request.sources):
        _flatten(source, str(number), arrays)
    paths = {name: str(getattr(request, name).absolute()) for name in ("initial", "output", "checkpoints")}
    told = {
        "call": "fit",
        "kind": request.kind,
        **paths,
        "sources": [type(source).__name__ for source in request.sources],
        "options": request.options.model_dump(),
        "seed": request.seed,
        "base": [request.base.path, request.base.digest] if request.base else None,
    }
    return told, arrays


def _unpacked(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Fit | Reference:
    if told["call"] == "reference":
        rows = _built("Rows", "rows", arrays)
        return Reference(Path(told["model"]), rows, told["precision"], told["limit"], told["threads"])
    sources = tuple(_built(kind, str(number), arrays) for number, kind in enumerate(told["sources"]))
    initial, output, checkpoints = (Path(told[name]) for name in ("initial", "output", "checkpoints"))
    options = OPTIONS[told["kind"]](**told["options"])
    base = Pointer(*told["base"]) if told["base"] else None
    return Fit(told["kind"], initial, output, checkpoints, sources, options, told["seed"], base)


def _run(folder: Path, accelerate: str | None, threads: int, progress: Steps) -> None:
    """Runs the request and passes its progress on. Raises what it raised (for a lack of memory `MemoryError`),
    `OutOfMemory` where it was killed, `StageFailed` if it fell in another way."""
    asked = command(folder.absolute(), accelerate)
    if accelerate is not None:
        log.info("training: %s", " ".join(["accelerate launch", *asked[3:]]))
    code = Path(__file__).parents[3]
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
    printed = folder.with_suffix(".log")
    try:
        assert process.stdout is not None
        with printed.open("w", encoding="utf-8") as written:
            for line in process.stdout:
                if line.startswith(MARK):
                    done, total = line.removeprefix(MARK).split()
                    progress(int(done), int(total))
                else:
                    written.write(line)
        process.wait()
    finally:
        _end(process)
    _check(folder, process.returncode, printed)


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the process and all that it started; accelerate gives each of its own a session."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
                child.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _check(folder: Path, code: int, log: Path) -> None:
    """Raises what went wrong. The log stays where only it says why."""
    printed = log.read_text(encoding="utf-8").strip()
    said = (folder / "error.json").is_file()
    killed = code == -signal.SIGKILL or (code != 0 and not {"-9", "SIGKILL"}.isdisjoint(ENDS.findall(printed)))
    if said or killed or not code:
        log.unlink()
    if said:
        error = json.loads((folder / "error.json").read_text())
        raise ERRORS.get(error["type"], StageFailed)(error["message"])
    if killed:
        raise OutOfMemory("the training process was killed (signal 9), most often because memory ran out")
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        why = printed.rpartition("\n")[2]
        if (folder / "unexpected.json").is_file():
            why = json.loads((folder / "unexpected.json").read_text())["message"]
        raise StageFailed(
            f"the training process ended with {how} ({why}); what it printed is in {os.path.relpath(log)}"
        )


def _flatten(value: Any, name: str, into: Arrays) -> None:
    for field in fields(value):
        part = getattr(value, field.name)
        if is_dataclass(part):
            _flatten(part, f"{name}.{field.name}", into)
        elif part is not None:
            into[f"{name}.{field.name}"] = np.asarray(part)


# --- the other side ----------------------------------------------------------------------------------


def _built(kind: str, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    values: dict[str, Any] = {}
    for field in fields(KINDS[kind]):
        key = f"{name}.{field.name}"
        if any(known.startswith(f"{key}.") for known in arrays):
            values[field.name] = _built("Rows", key, arrays)
        elif key in arrays:
            values[field.name] = arrays[key].item() if arrays[key].ndim == 0 else arrays[key]
    return KINDS[kind](**values)


def _watch(parent: str) -> None:
    """Ends this process when the one that it works for, on this machine, is gone, or the launcher between them."""
    host, _, pid = parent.rpartition(":")
    needed = {os.getppid()} | ({int(pid)} if host == socket.gethostname() else set())

    def look() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            working = [psutil.Process(one) for one in needed]
            while all(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in working):
                time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _tell(done: int, total: int) -> None:
    sys.stdout.write(f"{MARK}{done} {total}\n")
    sys.stdout.flush()


def work(folder: Path) -> None:
    """Does what the request in `folder` asks for."""
    import torch

    told = json.loads((folder / "request.json").read_text())
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        request = _unpacked(told, dict(stored))
    if isinstance(request, Reference):
        from tasks.core.training import losses

        torch.set_num_threads(request.threads)
        np.save(folder / "result.npy", losses.reference_logps(request, _tell))
        return
    from tasks.core.training import trainers

    torch.set_num_threads(request.options.threads)
    fitted = trainers.fit(request, _tell if _first() else lambda done, total: None)
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
        _leave(folder / "error.json", error, str(error))
        return 1
    except Exception as error:
        if memory.is_short(error):
            _leave(folder / "error.json", MemoryError(), memory.reason(error))
        else:
            _leave(folder / "unexpected.json", error, traceback.format_exception_only(error)[0].partition("\n")[0])
        raise  # its traceback goes to the log
    return 0


def _leave(path: Path, error: Exception, message: str) -> None:
    aside = path.with_name(f"{path.stem}-{socket.gethostname()}-{os.getpid()}.json")
    aside.write_text(json.dumps({"type": type(error).__name__, "message": message}))
    aside.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

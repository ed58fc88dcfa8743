"""What vLLM's processes need around them: an environment, and somebody who ends them.

vLLM takes many settings from environment variables, and on CPU sets some itself (LD_PRELOAD among them) that nothing
else started here should inherit, so the environment is put back when its processes are up. They are spawned, not
forked: this process has threads and may hold a GPU's context. vLLM's engine process does not notice when the one
that started it is killed, and would hold its memory for ever; a shell that waits for the end of a pipe ends it then.
"""

import contextlib
import multiprocessing
import os
import subprocess
from collections.abc import Iterator, Sequence

WATCH = 'read -r _; kill -9 "$@"'  # the pipe ends when this process does


@contextlib.contextmanager
def environment(threads: int, cpu_cache_gib: int, eager: bool) -> Iterator[None]:
    """While vLLM is imported and started. `threads`: that it computes with on CPU; `cpu_cache_gib`: its KV cache there;
    `eager`: nothing is compiled, also none of the small functions that vLLM compiles when they are first needed."""
    before = dict(os.environ)
    os.environ |= {
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": before.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(cpu_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    if eager:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def children() -> set[int]:
    """Processes that `multiprocessing` has started here and that still run."""
    return {int(process.pid) for process in multiprocessing.active_children() if process.pid}


def watch(processes: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Kills the processes when this one has ended, however it did, unless `unwatch` is called before."""
    return subprocess.Popen(
        ["/bin/sh", "-c", WATCH, "sh", *map(str, processes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def unwatch(watcher: "subprocess.Popen[bytes]") -> None:
    """Ends what `watch` started."""
    watcher.kill()
    watcher.communicate()

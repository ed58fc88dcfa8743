"""vLLM's processes: started with the environment they need, and never left behind.

vLLM takes many settings from environment variables, and on CPU sets some (LD_PRELOAD among them) that nothing else here
should inherit, so the environment is put back when its processes are up. They are spawned, not forked: this process
has threads and may hold a GPU's context. vLLM's engine process does not notice when the one that started it is
killed, and would hold its memory for ever; a shell that waits for the end of a pipe ends it then.
"""

import contextlib
import multiprocessing
import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

WATCH = 'read -r _; kill -9 "$@" 2>/dev/null'  # the pipe ends when this process does
STOPPING = 30.0  # seconds the processes have for their end


def start(options: Mapping[str, Any], threads: int, cpu_cache_gib: int) -> Any:
    """A `vllm.LLM` with these options. `threads`: that it computes with on CPU. Raises what vLLM raises."""
    before = {process.pid for process in multiprocessing.active_children()}
    with _environment(threads, cpu_cache_gib):
        from vllm import LLM

        llm: Any = LLM(**options)
    started = [str(process.pid) for process in multiprocessing.active_children() if process.pid not in before]
    llm.watch = subprocess.Popen(
        ["/bin/sh", "-c", WATCH, "sh", *started],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    return llm


def stop(llm: Any) -> None:
    """Ends the processes of `llm`, whether they work or have ended already."""
    llm.watch.kill()
    llm.watch.communicate()
    llm.llm_engine.engine_core.shutdown(STOPPING)


@contextlib.contextmanager
def _environment(threads: int, cpu_cache_gib: int) -> Iterator[None]:
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
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})

"""Where the state lives that is no artifact: everything in it may be deleted, and no artifact changes by it.

`.autodidact/` of the main repository holds `scratch/` (shards, training checkpoints), `prefect/` (server, database,
results), `mlflow/`, `records/` and `logs/`. Under `dvc exp` a stage runs in a working copy while `DVC_ROOT` names the
main repository, whose state is then used; only `staging/`, where outputs are built, belongs to the working copy,
because outputs are moved out of it by rename.
"""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.core.errors import Unwritable

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns that it is going to be so
    "GOMP_SPINCOUNT": "1000",  # threads wait awake for microseconds only: longer, and two processes on two cores crawl;
    # not at all (OMP_WAIT_POLICY=PASSIVE), and training takes 1.7 times as long on an idle machine
}


THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def main_root(root: Path) -> Path:
    """The repository that owns the state: `DVC_ROOT` where DVC set it, else `root`."""
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def state_dir(root: Path) -> Path:
    """`.autodidact/` of the main repository; it exists, and git ignores it."""
    return folder(main_root(root) / ".autodidact")


def scratch_dir(root: Path) -> Path:
    """Resumable work, keyed by content."""
    return folder(state_dir(root) / "scratch")


def logs_dir(root: Path) -> Path:
    """Tracebacks and the output of background processes."""
    return folder(state_dir(root) / "logs")


def prefect_dir(root: Path) -> Path:
    """Prefect's home: its database, its stored results, and `server.json`."""
    return folder(state_dir(root) / "prefect")


def staging_dir(root: Path) -> Path:
    """Where outputs are built: in `root` itself, so that moving them into place is a rename."""
    return folder(root.resolve() / ".autodidact" / "staging")


def quiet(root: Path) -> None:
    """Sets the environment that Prefect, MLflow and the Hugging Face libraries read when they are imported. Where a
    proxy is set, requests to this machine are kept from it: no proxy leads back here."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_HOME"] = str(prefect_dir(root))
    names = {name.lower() for name, value in os.environ.items() if value}
    if names & {"http_proxy", "https_proxy", "all_proxy"}:
        given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        hosts = [host.strip() for host in given.split(",") if host.strip()]
        hosts += [host for host in THIS_MACHINE if host not in hosts and "*" not in hosts]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes through a temporary name, so that a reader sees the old or the new text, never half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's mapping; None where there is no file or no mapping in it."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> Unwritable:
    return Unwritable(
        f"{path}: cannot be written ({error.strerror or error}); make room, or give write permission there; .autodidact "
        "may also be moved away or deleted: it holds no artifact"
    )

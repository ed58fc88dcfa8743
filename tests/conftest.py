"""Fixtures that all tests share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.machine import state

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", state.QUIET["GOMP_SPINCOUNT"])  # as in every run: tests share the cores
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

SLOW = (  # files that take a minute or more, the longest first
    "e2e/test_repro.py", "e2e/test_faults.py", "e2e/test_recipes.py", "e2e/test_sharing.py", "e2e/test_kills.py",
    "e2e/test_edits.py", "e2e/test_accounting.py", "tasks/blocks/train/test_job.py", "flows/test_evolve.py",
    "flows/run/test_kills.py", "tasks/test_train.py", "e2e/test_endpoint.py", "e2e/test_label_free.py",
    "extras/test_ray.py", "extras/test_vllm_flow.py", "extras/test_vllm_server.py", "extras/test_vllm.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files come first, so that at the end no process works alone (with xdist's `--no-loadscope-reorder`)."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(SLOW)))


@pytest.fixture(autouse=True)
def _as_logging_was() -> Iterator[None]:
    """Undoes what a command of this process did so that the terminal hears the stages (`flows.machine.terminal`)."""
    yield
    said = logging.getLogger("tasks")
    said.handlers, said.propagate = [], True
    said.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The API address of a Prefect server with an empty database, for tests that run flows; it takes ten seconds or
    more to start. Flows of this process use it; one of another process does if `PREFECT_API_URL` says so."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())

"""What is refused before Ray is asked; the rest needs Ray, and is in tests/extras."""

from pathlib import Path
from typing import Any

import pytest

from flows.machine import processes
from flows.run import cluster, workers
from tasks.core.errors import BadInput

LOCAL: dict[str, Any] = {"name": "local", "address": None, "workers": 2, "gpus": 0.0, "training": "auto"}
RAY = {**LOCAL, "name": "ray"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda module: object())


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda module: None)
    with pytest.raises(BadInput, match="ray and prefect_ray cannot be imported; install the extra `ray`"):
        cluster.check(RAY)
    cluster.check(LOCAL)


@pytest.mark.usefixtures("installed")
def test_an_address_where_nothing_is() -> None:
    silent = f"127.0.0.1:{processes.free_port()}"
    for address in (silent, f"ray://{silent}"):
        with pytest.raises(BadInput, match=f"no Ray cluster answers at {address}"):
            cluster.check({**RAY, "address": address})
    cluster.check({**LOCAL, "address": silent})


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("address", ["auto", "the big one", "http://host:8265", "host", "host:port"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(BadInput, match="allowed are null, ray://HOST:PORT and HOST:PORT"):
        cluster.check({**RAY, "address": address})


def test_a_worker_that_does_not_see_the_folder(tmp_path: Path) -> None:
    work = workers._remote(tmp_path, tmp_path / "seen-elsewhere")
    with pytest.raises(RuntimeError, match=r"does not see .* as it is here; all machines of the cluster need"):
        work("key", b"")

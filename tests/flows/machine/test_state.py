"""The environment of a run."""

import http.server
import os
import threading
import urllib.request
from pathlib import Path

import httpx
import pytest

from flows.machine import state

DEAD = "http://127.0.0.1:9"  # nothing answers there
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *map(str.lower, NAMES), *state.QUIET, "PREFECT_HOME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_requests_to_this_machine_go_to_no_proxy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setenv(name, DEAD)
    state.quiet(tmp_path)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    assert urllib.request.getproxies_environment()
    assert urllib.request.proxy_bypass("127.0.0.1")
    assert httpx.get(url, timeout=5).status_code in (200, 404)
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://example.invalid/", timeout=5)
    server.server_close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "localhost,127.0.0.1,::1"),
        ("example.org, localhost", "example.org,localhost,127.0.0.1,::1"),
        ("*", "*"),
    ],
)
def test_what_is_kept_from_proxies_already_stays(
    given: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", given)
    state.quiet(tmp_path)
    assert os.environ["NO_PROXY"] == given  # there is no proxy
    monkeypatch.setenv("https_proxy", DEAD)
    state.quiet(tmp_path)
    state.quiet(tmp_path)
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == told

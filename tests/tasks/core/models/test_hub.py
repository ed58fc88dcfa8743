"""Models of the hub, fetched from a hub on loopback that this file plays."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.core.models import hub
from tests.support.paths import ROOT

COMMIT = "c" * 40
FILES = {"config.json": b'{"model_type": "qwen3"}', "model.safetensors": b"weights", "pytorch_model.bin": b"a pickle"}
ASK = """
import json, sys
from tasks.core.models import hub
from tasks.core.errors import BadInput
for asked in sys.argv[1:]:
    call, name = asked.split(":")
    try:
        print(json.dumps([str(getattr(hub, call)(name))]))
    except BadInput as error:
        print(json.dumps(["refused", str(error)]))
"""


class Hub(BaseHTTPRequestHandler):
    """The hub's answers for owner/whole, owner/pickles and owner/gated; anything else is not found."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        if f"{owner}/{name}" == "owner/gated" and (not api or rest == ["auth-check"]):
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access to model is restricted")
        if owner != "owner" or name not in ("whole", "pickles", "gated"):
            return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        files = {n: c for n, c in FILES.items() if name != "pickles" or not n.endswith(".safetensors")}
        if api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        if api:
            about = {"id": f"owner/{name}", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            return self.answer(200, json.dumps(about).encode(), Content_Type="application/json")
        content = files[rest[-1]]
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(cache: Path, endpoint: str, *asked: str, **environment: str) -> list[list[str]]:
    """What each of `asked` (CALL:NAME) gives in a new process: [result], or ["refused", message]."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    told = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, *asked],
        cwd=ROOT, env={**kept, **told, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_is_looked_for_fetched_once_and_then_cached(tmp_path, endpoint):
    before, seen, fetched = ask(tmp_path, endpoint, "cached:owner/whole", "look:owner/whole", "fetch:owner/whole")
    assert before == seen == ["None"]
    folder = Path(fetched[0])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    gone = "http://127.0.0.1:9"
    assert ask(tmp_path, gone, "cached:owner/whole", "fetch:owner/whole") == [fetched, fetched]
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    assert not hub.is_whole(folder)


def test_each_refusal_says_what_to_do(tmp_path, endpoint):
    names = ["look:owner/gated", "fetch:owner/gated", "look:owner/nowhere", "fetch:owner/nowhere", "look:owner/pickles"]
    refused = [
        *ask(tmp_path, endpoint, *names),
        *ask(tmp_path, endpoint, "look:owner/whole", "fetch:owner/whole", HF_HUB_OFFLINE="1"),
        *ask(tmp_path, "http://127.0.0.1:9", "look:owner/whole", "fetch:owner/whole"),
    ]
    expected = [
        "owner/gated is gated: accept its terms on its page on the hub, then `hf auth login`",
        "owner/nowhere is no folder and not on the hub, or is private there; check the name",
        "owner/pickles has no *.safetensors on the hub",
        "HF_HUB_OFFLINE forbids fetching it; unset it, or run `hf download owner/whole`",
        "owner/whole is no folder and not in the local Hugging Face cache, and the hub does not answer as it should",
    ]
    for (kind, message), part in zip(
        refused, [e for e in expected for _ in range(1 + ("pickles" not in e))], strict=True
    ):
        assert kind == "refused"
        assert part in message
        assert "\n" not in message

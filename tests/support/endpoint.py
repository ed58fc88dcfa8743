"""A server on loopback that speaks OpenAI's protocol as far as the tests need it, and fails as it is told to."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flows.params import compose
from tasks.core.asking.endpoint import EndpointModel
from tasks.core.asking.opener import Opener
from tasks.core.models.pointer import Pointer
from tests.support.models import ENGINE

Body = dict[str, Any]
Answer = bytes | int | tuple[int, dict[str, str], bytes] | str | None


def completion(body: Body, text: str, finish: str = "stop") -> bytes:
    """The reply to a request of /completions or /chat/completions, shaped as vLLM shapes it."""
    words = [*text.split(), "<eos>"]
    asked = body.get("prompt") or " ".join(message["content"] for message in body["messages"])
    usage = {"prompt_tokens": len(asked.split()), "completion_tokens": len(words)}
    usage["total_tokens"] = sum(usage.values())
    if "messages" in body:
        content = [{"token": word, "logprob": -0.25, "bytes": None, "top_logprobs": []} for word in words]
        choice: Body = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
    else:
        logprobs = {"tokens": words, "token_logprobs": [-0.25] * len(words), "text_offset": [], "top_logprobs": []}
        choice = {"text": text, "logprobs": logprobs}
    choice |= {"index": 0, "finish_reason": finish}
    return json.dumps({"id": "x", "model": body["model"], "choices": [choice], "usage": usage}).encode()


class Endpoint:
    """The server; `with` starts and ends it. `answer(body, before)` decides on each reply, `before` being how often
    the same body was posted already: bytes are a reply with status 200, a number is a status with an error in OpenAI's
    shape, a triple is status, headers and body, "cut" closes the connection in mid-body, "drop" before any byte, and
    a text like "wait 3" says nothing for so many seconds."""

    def __init__(self, answer: Callable[[Body, int], Answer], models: tuple[str, ...] = ("m",)) -> None:
        self.answer, self.models = answer, models
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                listed = {"object": "list", "data": [{"id": name} for name in endpoint.models]}
                self._send(200, {}, json.dumps(listed).encode())

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                answer = endpoint._record(json.loads(raw), raw, dict(self.headers), self.path)
                try:
                    self._reply(answer)
                except OSError:
                    self.close_connection = True
                finally:
                    with endpoint._lock:
                        endpoint.in_flight -= 1

            def _reply(self, answer: Answer) -> None:
                if isinstance(answer, bytes):
                    self._send(200, {}, answer)
                elif isinstance(answer, int):
                    error = {"error": {"message": f"trouble {answer}", "code": answer}}
                    self._send(answer, {}, json.dumps(error).encode())
                elif isinstance(answer, tuple):
                    self._send(*answer)
                else:
                    if str(answer).startswith("wait"):
                        time.sleep(float(str(answer).split()[1]))
                    elif answer == "cut":
                        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{"choices": [')
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that was killed is no error of the server."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _record(self, body: Body, raw: bytes, headers: dict[str, str], path: str) -> Answer:
        with self._lock:
            before = self._seen[raw.decode()]
            self._seen[raw.decode()] += 1
            self.asked.append({**body, "path": path})
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return self.answer(body, before)

    def repeated(self) -> int:
        """Requests that had been posted before."""
        return len(self.asked) - len(self._seen)

    def __enter__(self) -> "Endpoint":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def asked_model(
    place: Path, url: str, digest: str = "d" * 32, endpoint: dict[str, Any] | None = None, **serving: Any
) -> EndpointModel:
    """A model behind an endpoint that renders messages itself."""
    options = {"base_urls": [url], "backoff": 0.01, "retries": 2, "quarantine_share": 0.1, "concurrency": 8}
    options |= {"key_variable": "TEST_ENDPOINT_KEY"}
    engine = {**ENGINE, "name": "openai", "endpoint": {**ENGINE["endpoint"], "protocol": "chat", **(endpoint or {})}}
    opener = Opener(place, engine, place / "scratch")
    opener.serving = {"openai": {**compose.shared()["serving"]["openai"], **options, **serving}}
    return opener(Pointer("some/model", digest))

"""How fast the openai engine asks an endpoint that takes no time to answer.

    python -m tests.benchmarks.endpoint [--calls 1000] [--repeats 5]

The server, on loopback and in a process of its own, answers every request at once with the same reply. Timed is what a
stage does: `EndpointModel.generate` with an empty request log, one request a prompt, every reply parsed, logged and read back;
then the same again, all of it from the log. The target: 1,000 calls in less than 3.4 s.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from flows.params import compose
from tasks.core.asking.opener import Opener
from tasks.core.engines.contract import Sampling
from tasks.core.models.pointer import Pointer
from tests.support.endpoint import completion
from tests.support.models import ENGINE
from tests.support.tiny import user

TARGET = 3.4  # seconds for 1,000 calls


class Instant(asyncio.Protocol):
    """Answers whatever is a whole request."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(self.reply)


def serve(connection: Connection) -> None:
    """Serves until the process is ended; sends the port."""
    body = completion({"model": "m", "messages": [{"content": "add 1 2"}]}, "1 + 2 = 3 " * 4)
    Instant.reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
        connection.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def seconds(folder: Path, url: str, calls: int) -> tuple[float, float]:
    """Seconds for so many calls that are made, and for the same ones from the log."""
    endpoint = {**ENGINE["endpoint"], "protocol": "chat"}
    serving = {**compose.shared()["serving"]["openai"], "base_urls": [url]}
    taken = []
    for _ in range(2):
        opener = Opener(folder, {**ENGINE, "name": "openai", "endpoint": endpoint}, folder / "scratch")
        opener.serving = {"openai": serving}
        model = opener(Pointer("m", "d" * 32))
        began = time.perf_counter()
        replies = model.generate([user(f"add {i} 2") for i in range(calls)], Sampling(1, 1.0, 1.0, 32, 0), "calls")
        taken.append(time.perf_counter() - began)
        assert not any(reply.failed for several in replies for reply in several)
    return taken[0], taken[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.endpoint", description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    concurrency = compose.shared()["serving"]["openai"]["concurrency"]
    print(f"{options.calls:,} calls, {concurrency} at once; target {TARGET * options.calls / 1000:.2f} s")
    slowest = 0.0
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            asked, again = seconds(Path(folder), url, options.calls)
        print(f"asked {asked:6.2f} s ({options.calls / asked:6,.0f} a second)   from the log {again:6.3f} s")
        slowest = max(slowest, asked)
    server.terminate()
    if slowest > TARGET * options.calls / 1000:
        raise SystemExit("slower than the target")


if __name__ == "__main__":
    main()

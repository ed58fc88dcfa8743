"""HTTP calls that are tried again: many bodies posted to one path of one of several servers, side by side.

What is wrong with a request is one of three things:
  for now       no connection, timeout, 408, 409, 425, 429, 5xx, a body that breaks off or cannot be read: tried again, on
                the next server where there is one, then after a wait that doubles (exponential backoff, half of it jitter)
  for good      any other status: the same body would be refused again, so it is given up at once
  for everybody 401, 402, 403, a model that no server has (404), no server that can be reached: the whole call ends
Where a server says how long to wait (`Retry-After`, seconds or a date), nobody asks it sooner.

A call that ends early lets the requests in flight end first: what they bring has been paid for.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from tasks.core.engines.contract import Unusable
from tasks.core.engines.options import Openai
from tasks.core.errors import AutodidactError, BadInput, StageFailed

PASSING = {408, 409, 425, 429}  # and 5xx
FORBIDDEN = {401, 402, 403}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DIRECT = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))  # no proxy leads back to this machine
CONNECTING = 10.0  # seconds
WORDS = 300  # of a server's own, kept for messages
SECRET = 16  # characters that a key has at least; "EMPTY" and the like may stand in a reply

Arrived = Callable[[int, str], None]  # (number of the body, reply); raises `Unusable`
Failed = Callable[[int, str, str], None]  # (number of the body, reason, the server's words)


@dataclass
class Server:
    """One of the base URLs. `free`: when it may be asked again, on the monotonic clock."""

    url: str
    free: float = 0.0
    has_model: bool = True
    words: str = ""  # what it said when it had not


@dataclass(eq=False)
class Fault(Exception):
    """Why one try brought nothing."""

    reason: str  # short, the same for the same fault
    words: str = ""
    status: int | None = None
    wait: float | None = None  # seconds that the server asked for
    final: bool = False

    @property
    def unreachable(self) -> bool:
        return self.reason == "unreachable"


@dataclass
class Caller:
    """Posts bodies to `path` below the servers' base URLs. `model` and `key_variable` are for messages."""

    path: str
    model: str
    options: Openai
    servers: list[Server] = field(init=False)
    retries: int = 0  # since the caller was made
    _current: int = 0
    _next_slot: float = 0.0

    def __post_init__(self) -> None:
        self.servers = [Server(url.rstrip("/")) for url in self.options.base_urls]

    def post(self, bodies: Sequence[bytes], key: str | None, arrived: Arrived, failed: Failed) -> None:
        """Posts every body; `arrived` or `failed` is called once for each that was not cut off by an early end.

        `key`: sent as bearer token. Raises `BadInput` or `StageFailed` for what is wrong for everybody, or what
        `arrived` or `failed` raise."""
        if not any(server.has_model for server in self.servers):
            self.servers = [Server(server.url) for server in self.servers]
        asyncio.run(_Run(self, bodies, key, arrived, failed).all())

    def next_slot(self) -> float:
        """Seconds to wait so that no more requests start than `requests_per_minute`."""
        if self.options.requests_per_minute is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self._next_slot)
        self._next_slot = start + 60 / self.options.requests_per_minute
        return start - now

    def server(self) -> Server:
        """The server to ask now: the current one, or if it must be left alone, one that need not."""
        now = time.monotonic()
        order = [
            server for server in (*self.servers[self._current :], *self.servers[: self._current]) if server.has_model
        ]
        return min(order, key=lambda server: max(0.0, server.free - now))  # the first of equals

    def leave(self, server: Server) -> None:
        """Turns to the next server, unless that was done already."""
        if self.servers[self._current] is server:
            self._current = (self._current + 1) % len(self.servers)

    def delay(self, tried: int, fault: Fault) -> float:
        """Seconds before the next try, after `tried` tries."""
        usable = max(1, sum(server.has_model for server in self.servers))
        if tried % usable:
            return 0.0  # another server has not been asked yet
        wait = min(self.options.longest_wait, self.options.backoff * 2.0 ** (tried // usable - 1))
        return (fault.wait or 0.0) + wait * random.uniform(0.5, 1.0)


class _Run:
    """One call of `Caller.post`, in its event loop."""

    def __init__(
        self, caller: Caller, bodies: Sequence[bytes], key: str | None, arrived: Arrived, failed: Failed
    ) -> None:
        self.caller, self.options = caller, caller.options
        self.bodies, self.key, self.arrived, self.failed = bodies, key, arrived, failed
        self.ended: AutodidactError | None = None
        self.stop = asyncio.Event()

    async def all(self) -> None:
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        local = all(_is_loopback(server.url) for server in self.caller.servers)
        trusted = httpx.create_ssl_context()
        todo = iter(range(len(self.bodies)))

        async def worker() -> None:
            # A client each: the work of a pool grows with the square of its connections.
            limits = httpx.Limits(max_connections=1)
            async with httpx.AsyncClient(
                headers=headers, limits=limits, timeout=None, verify=trusted, trust_env=not local, mounts=DIRECT
            ) as client:
                await self._work(client, todo)

        await asyncio.gather(*(worker() for _ in range(min(self.options.concurrency, len(self.bodies)))))
        if self.ended is not None:
            raise self.ended

    async def _work(self, client: httpx.AsyncClient, todo: Iterator[int]) -> None:
        for number in todo:
            if self.stop.is_set():
                return
            try:
                await self._one(client, number)
            except AutodidactError as error:
                self.ended = self.ended or error
                self.stop.set()

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        """Tries until there is a reply, no try is left, or the call ends."""
        tried, connected = 0, False
        while True:
            await self._sleep(self.caller.next_slot())
            while not self.stop.is_set() and (pause := self.caller.server().free - time.monotonic()) > 0:
                await self._sleep(pause)
            if self.stop.is_set():
                return
            server = self.caller.server()
            try:
                await self._try(client, server, number)
                return
            except Fault as fault:
                if fault.status == 404:
                    await self._without_model(client, server, fault)
                    continue
                tried += 1
                connected = connected or not fault.unreachable
                if fault.final or tried > self.options.retries:
                    self._give_up(number, fault, connected)
                    return
                self.caller.retries += 1
                self._mind(server, fault, tried)
                await self._sleep(self.caller.delay(tried, fault))

    async def _try(self, client: httpx.AsyncClient, server: Server, number: int) -> None:
        """Hands the reply over, or raises `Fault`; `BadInput` where the key is refused."""
        try:
            async with asyncio.timeout(self.options.timeout):
                reply = await client.post(f"{server.url}/{self.caller.path}", content=self.bodies[number])
        except TimeoutError:
            raise Fault("timeout") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise Fault("unreachable", str(error)) from None
        except httpx.HTTPError as error:
            raise Fault("connection closed", str(error)) from None
        if reply.status_code in FORBIDDEN:
            raise self._forbidden(server, reply.status_code)
        if reply.status_code != 200:
            status = reply.status_code
            passing = status in PASSING or status >= 500
            raise Fault(f"HTTP {status}", self._words(reply), status, _retry_after(reply.headers), not passing)
        try:
            raw = reply.content.decode()
            self.arrived(number, self._without_key(raw) if len(self.key or "") >= SECRET else raw)
        except UnicodeDecodeError:
            raise Fault("no UTF-8") from None
        except Unusable as error:
            raise Fault(str(error), self._words(reply), final=error.final) from None

    def _mind(self, server: Server, fault: Fault, tried: int) -> None:
        """What a fault means for the other requests: another server, or a pause."""
        if fault.wait is not None and fault.wait > self.options.longest_wait:
            raise StageFailed(
                f"{server.url} asks for a pause of {fault.wait:,.0f} s ({fault.reason}, Retry-After), and "
                f"serving.openai.longest_wait is {self.options.longest_wait:g} s; run it again later, or lower "
                "requests_per_minute or concurrency there; every reply that arrived is kept"
            )
        pause = fault.wait or (self.caller.delay(tried, fault) if fault.status == 429 else 0.0)
        server.free = max(server.free, time.monotonic() + pause)
        self.caller.leave(server)

    def _give_up(self, number: int, fault: Fault, connected: bool) -> None:
        if connected:
            self.failed(number, fault.reason, fault.words)
            return
        urls = ", ".join(server.url for server in self.caller.servers)
        raise StageFailed(
            f"no server answers at {urls} ({fault.words or fault.reason}); start it, or name one that runs in "
            "serving.openai.base_urls; every reply that arrived is kept"
        )

    def _forbidden(self, server: Server, status: int) -> BadInput:
        name = self.options.key_variable
        sent = f"the key in the environment variable {name}" if self.key else f"no key: the variable {name} is not set"
        return BadInput(
            f"{server.url} refuses the request (HTTP {status}), which had {sent}; export {name} with a key that may use "
            f"model {self.caller.model} there (serving.openai.key_variable names the variable)"
        )

    async def _without_model(self, client: httpx.AsyncClient, server: Server, fault: Fault) -> None:
        """Goes on without a server that does not have the model. Raises `BadInput` if no server is left."""
        server.has_model, server.words = False, fault.words
        self.caller.leave(server)
        if any(other.has_model for other in self.caller.servers):
            return
        self.stop.set()
        lines = [f"{one.url} has {await self._models(client, one) or one.words}" for one in self.caller.servers]
        model = self.caller.model
        raise BadInput(
            f"no server has model {model} at /{self.caller.path} (HTTP 404): {'; '.join(lines)}; start one with "
            f"`vllm serve {model}`, name a model that is there in engine.endpoint.model, or, where a server has only "
            "/chat/completions, set engine.endpoint.protocol to chat"
        )

    async def _models(self, client: httpx.AsyncClient, server: Server) -> str:
        """The names of the server's models, empty where it does not tell."""
        try:
            async with asyncio.timeout(min(CONNECTING, self.options.timeout)):
                listed = (await client.get(f"{server.url}/models")).json()["data"]
            return self._without_key(", ".join(str(model["id"]) for model in listed))[:WORDS]
        except (TimeoutError, httpx.HTTPError, ValueError, KeyError, TypeError):
            return ""

    def _words(self, reply: httpx.Response) -> str:
        return " ".join(self._without_key(reply.text).split())[:WORDS]

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    async def _sleep(self, seconds: float) -> None:
        """Waits, but no longer than the call goes on."""
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self.stop.wait()
            except TimeoutError:
                pass


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header asks for, None where it is missing or says nothing."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK

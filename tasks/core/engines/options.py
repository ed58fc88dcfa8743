"""How engines are served: options that change no result."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import Field

from tasks.core.block import Options


class Vllm(Options):
    """The `vllm` engine."""

    memory_share: float = Field(gt=0, le=1)  # of the GPU's memory, for weights and KV cache
    cpu_cache_gib: int = Field(ge=1)  # KV cache where there is no GPU
    longest: int | None = Field(ge=8)  # tokens of prompt and reply; null: the model's positions
    eager: bool  # nothing compiled, no CUDA graphs: starts sooner, runs slower
    sleep: bool  # on a GPU: started once; while training has the GPU it sleeps and holds little of its memory


class Openai(Options):
    """The `openai` engine: servers that speak OpenAI's protocol. The key is read from the environment."""

    base_urls: list[str]  # tried in this order when one fails
    key_variable: str = Field(min_length=1)  # of the environment; no key is sent where it is not set
    concurrency: int = Field(ge=1, le=4096)  # requests in flight
    requests_per_minute: int | None = Field(ge=1)  # retries included; null: as fast as it goes
    timeout: float = Field(gt=0)  # seconds for one request
    retries: int = Field(ge=0, le=20)  # of one request
    backoff: float = Field(ge=0)  # seconds before the first retry, doubled before every further one, with jitter
    longest_wait: float = Field(gt=0)  # seconds before a retry, at most; a server that asks for more fails the stage
    quarantine_share: float = Field(ge=0, le=1)  # of a call's requests that may fail for good; more fail the stage


def endpoint_problems(section: Openai) -> Iterator[str]:
    """What cannot work in `serving.openai`, a line each. Values that may hold a key are not repeated."""
    where = "serving.openai"
    if not section.base_urls:
        yield f"{where}.base_urls: given no address; name at least one server, like http://127.0.0.1:8000/v1"
    for index, url in enumerate(section.base_urls):
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            sound = False
        if not sound:
            yield f"{where}.base_urls.{index}: is no address of a server; write one like http://127.0.0.1:8000/v1"
        elif parts.username or parts.password or parts.query or parts.fragment:
            yield (
                f"{where}.base_urls.{index}: holds a name, a password or a query; write the plain address, and put the "
                f"key into the environment variable that {where}.key_variable names"
            )
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", section.key_variable):
        yield (
            f"{where}.key_variable: is no name of an environment variable (capitals, digits, _); write the variable's name, "
            "never the key itself"
        )


NO_SCORES = (  # of a server that renders messages itself
    "engine.endpoint.protocol is chat, which has no way to ask for them; use the protocol completions (vLLM and SGLang tell "
    "them there)"
)

"""What decides how fast, where and at what price models answer, and nothing of what they answer.

The sections `serving` (one mapping per engine), `runner` and `prices` of params.yaml. No stage depends on
them, so changing them reruns nothing; whatever changes a reply belongs into the section `engine`.
"""

from typing import Literal

from pydantic import Field

from tasks.core.blocks import Options


class Vllm(Options):
    """The `vllm` engine."""

    memory_share: float = Field(gt=0, le=1)  # of the GPU's memory, for weights and KV cache
    cpu_cache_gib: int = Field(ge=1)  # KV cache where there is no GPU
    longest: int | None = Field(ge=8)  # tokens of prompt and reply; null: the model's positions
    eager: bool  # nothing compiled, no CUDA graphs: starts sooner, runs slower


class Openai(Options):
    """The `openai` engine: servers that speak OpenAI's protocol. The key is read from the environment."""

    base_urls: list[str]  # tried in this order when one fails
    key_variable: str = Field(min_length=1)  # of the environment; no key is sent where it is not set
    concurrency: int = Field(ge=1, le=4096)  # requests in flight
    requests_per_minute: int | None = Field(ge=1)
    timeout: float = Field(gt=0)  # seconds for one request
    retries: int = Field(ge=0, le=20)  # of one request, with exponential backoff
    quarantine_share: float = Field(ge=0, le=1)  # of a call's requests that may fail for good; more fail the stage


class Serving(Options):
    """The `serving` section."""

    vllm: Vllm
    openai: Openai


class Runner(Options):
    """The `runner` section: where shards are computed."""

    name: Literal["local", "ray"]
    address: str | None  # of an existing Ray cluster; null: one is started on this machine
    workers: int = Field(ge=1)  # processes with an engine of their own (ray)


class Prices(Options):
    """The `prices` section, in any one currency."""

    currency: str = Field(min_length=1)
    prompt_tokens: float = Field(ge=0)  # a million
    completion_tokens: float = Field(ge=0)  # a million
    engine_hours: float = Field(ge=0)  # an hour of the machine while the engine is busy
    training_hours: float = Field(ge=0)  # an hour of the machine in train and base


DEFAULTS = {
    "serving": Serving(
        vllm=Vllm(memory_share=0.9, cpu_cache_gib=2, longest=None, eager=False),
        openai=Openai(
            base_urls=["http://127.0.0.1:8000/v1"],
            key_variable="OPENAI_API_KEY",
            concurrency=64,
            requests_per_minute=None,
            timeout=120.0,
            retries=6,
            quarantine_share=0.01,
        ),
    ).model_dump(),
    "runner": Runner(name="local", address=None, workers=2).model_dump(),
    "prices": Prices(
        currency="USD", prompt_tokens=0.0, completion_tokens=0.0, engine_hours=0.0, training_hours=0.0
    ).model_dump(),
}
SECTIONS = {"serving": Serving, "runner": Runner, "prices": Prices}

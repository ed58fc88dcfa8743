"""What decides how fast, where and at what price models answer, and nothing of what they answer.

The sections `serving` (one mapping per engine), `runner` and `prices` of params.yaml. No stage depends on
them, so changing them reruns nothing; whatever changes a reply belongs into the section `engine`.
"""

from typing import Literal

from pydantic import Field

from tasks.core.blocks import Options
from tasks.core.engines.options import Openai, Vllm


class Serving(Options):
    """The `serving` section."""

    vllm: Vllm
    openai: Openai


class Runner(Options):
    """The `runner` section: where shards are computed, and where training runs."""

    name: Literal["local", "ray"]  # where shards are computed: in this process, or on a Ray cluster
    address: str | None  # of an existing Ray cluster; null: one is started on this machine
    workers: int = Field(ge=1)  # processes with an engine of their own (ray)
    gpus: float = Field(ge=0)  # GPUs that each of them has to itself (ray)
    training: Literal["auto", "always", "never"]  # in a process of its own; auto: where there is a GPU


class Prices(Options):
    """The `prices` section, in any one currency."""

    currency: str = Field(min_length=1)  # its name
    prompt_tokens: float = Field(ge=0)  # a million
    completion_tokens: float = Field(ge=0)  # a million
    engine_hours: float = Field(ge=0)  # an hour of the machine while the engine is busy
    training_hours: float = Field(ge=0)  # an hour of the machine in train and base

    @property
    def any(self) -> bool:
        """Whether anything has a price."""
        return any(value for value in self.model_dump().values() if not isinstance(value, str))


DEFAULTS = {
    "serving": Serving(
        vllm=Vllm(memory_share=0.9, cpu_cache_gib=2, longest=None, eager=False, sleep=False),
        openai=Openai(
            base_urls=["http://127.0.0.1:8000/v1"],
            key_variable="OPENAI_API_KEY",
            concurrency=64,
            requests_per_minute=None,
            timeout=120.0,
            retries=6,
            backoff=0.5,
            longest_wait=60.0,
            quarantine_share=0.01,
        ),
    ).model_dump(),
    "runner": Runner(name="local", address=None, workers=2, gpus=0.0, training="auto").model_dump(),
    "prices": Prices(
        currency="USD", prompt_tokens=0.0, completion_tokens=0.0, engine_hours=0.0, training_hours=0.0
    ).model_dump(),
}
SECTIONS = {"serving": Serving, "runner": Runner, "prices": Prices}

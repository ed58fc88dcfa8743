"""What params.yaml may hold outside the stages' sections."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from flows.params.file import FILE
from flows.params.sections import STAGES
from tasks.core.blocks import Options, validate
from tasks.core.engines.options import Openai, Vllm
from tasks.core.errors import BadInput

SECRET = re.compile(r"(?i).*(api_?key|authori[sz]ation|password|secret|bearer|(access|auth)_?token).*")


class Endpoint(Options):
    """What of an endpoint decides its replies (engine `openai`)."""

    model: str | None = Field(min_length=1)  # the name to ask the server for; null: the model's path
    protocol: Literal["completions", "chat"]  # the prompt rendered here, or messages that the server renders
    length_field: Literal["max_tokens", "max_completion_tokens"]  # what the server calls the reply's longest length
    extra: dict[str, Any]  # further fields of every request; null takes one of OpenAI's own out


class Engine(Options):
    """The `engine` section: which engine answers, how it computes, and how requests are cut into shards."""

    name: str  # transformers, vllm or openai
    precision: Literal["float32", "bfloat16"]  # that the model is loaded and computes in
    threads: int = Field(ge=1)  # of a CPU
    batch_size: int = Field(ge=1)  # requests computed side by side
    rows_per_shard: int = Field(ge=1)  # replies that are stored together, about: a shard
    draws_per_shard: int = Field(ge=1)  # of one prompt in a shard, so that a higher n leaves the old ones alone
    endpoint: Endpoint


class Shared(Options):
    """The values that belong to no stage."""

    recipe: str = Field(min_length=1)  # its name, for people
    seed: int = Field(ge=0, lt=2**31)  # of data, sampling and training
    labels: bool  # whether the loop may see the answers


def engine(params: Mapping[str, Any]) -> Engine:
    """The validated `engine` section. Raises `BadInput`."""
    from tasks.core.engines import check_name

    checked: Engine = validate(Engine, params["engine"], "engine")
    check_name(checked.name, "engine.name")
    own = {"model", "prompt", "messages", "n", "stream", "echo", "temperature", "top_p", "seed", "logprobs"}
    for name in sorted(own | {"max_tokens", "max_completion_tokens"}):
        if checked.endpoint.extra.get(name) is not None:
            raise BadInput(
                f"engine.endpoint.extra.{name}: is set elsewhere in {FILE} or not at all; write null to leave it out"
            )
    if secret := sorted(name for name in checked.endpoint.extra if SECRET.fullmatch(name)):
        raise BadInput(
            f"engine.endpoint.extra.{secret[0]}: looks like a key, and {FILE} is no place for one: export it as the environment "
            "variable that serving.openai.key_variable names"
        )
    return checked


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


SECTIONS = {"serving": Serving, "runner": Runner, "prices": Prices}
TOP = ("recipe", "seed", "labels", "engine", *SECTIONS, *STAGES, "iterations", "evaluations")

"""What params.yaml may hold: one model of the whole file, from which shapes, nearest names and the page of options follow.

What stands inside a stage's section is that stage's affair: its module's `parse` says (`flows.params.sections`).
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from tasks.core import engines
from tasks.core.block import Options
from tasks.core.engines.options import Openai, Vllm, endpoint_problems
from tasks.core.errors import BadInput

SECRET = re.compile(r"(?i).*(api_?key|authori[sz]ation|password|secret|bearer|(access|auth)_?token).*")
Section = dict[str, Any]


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


class Row(Options):
    """A row of `iterations`: the earlier iterations whose models this one uses, and what it overrides in a section."""

    previous: str  # whose policy samples
    initial: str  # whose policy training starts from
    reference: str  # whose policy is DPO's reference model
    judge: str  # whose policy criticises
    past: str  # whose policy a block may ask besides
    synthesize: Section
    sample: Section
    critique: Section
    refine: Section
    filter: Section
    train: Section
    promote: Section


class File(Options):
    """params.yaml."""

    recipe: str = Field(min_length=1)  # its name, for people
    seed: int = Field(ge=0, lt=2**31)  # of data, sampling and training
    labels: bool  # whether the loop may see the answers
    engine: Engine
    serving: Serving
    runner: Runner
    prices: Prices
    prepare: Section
    base: Section
    synthesize: Section
    sample: Section
    critique: Section
    refine: Section
    filter: Section
    train: Section
    evaluate: Section
    promote: Section
    report: Section
    iterations: dict[str, Row] = Field(min_length=1)
    evaluations: dict[str, Section]  # a row of overrides of `evaluate` for i00 and every iteration


TOP = tuple(File.model_fields)
SHARED = ("recipe", "seed", "labels")
UNREAD = ("serving", "runner", "prices")  # sections that no stage depends on, because they change no result
STAGES = tuple(name for name in TOP if File.model_fields[name].annotation == Section)
MODELS = tuple(name for name, field in Row.model_fields.items() if field.annotation is str)
OVERRIDDEN = tuple(name for name in Row.model_fields if name not in MODELS)  # sections that a row may override
LOOP = tuple(name for name in STAGES if name in (*OVERRIDDEN, "evaluate"))  # stages of every iteration
WITH_BLOCKS = ("synthesize", "sample", "critique", "refine", "filter", "train")  # sections made of named blocks


def beyond_shape(file: File) -> Iterator[str]:
    """What cannot work in the shared sections although its shape is right, a line each."""
    where, endpoint = "engine", file.engine.endpoint
    try:
        engines.check_name(file.engine.name, f"{where}.name")
    except BadInput as error:
        yield str(error)
    own = {"model", "prompt", "messages", "n", "stream", "echo", "temperature", "top_p", "seed", "logprobs"}
    for name in sorted(own | {"max_tokens", "max_completion_tokens"}):
        if endpoint.extra.get(name) is not None:
            yield f"{where}.endpoint.extra.{name}: is set elsewhere in params.yaml or not at all; write null to leave it out"
    for name in sorted(name for name in endpoint.extra if SECRET.fullmatch(name)):
        yield (
            f"{where}.endpoint.extra.{name}: looks like a key, and params.yaml is no place for one: export it as the "
            "environment variable that serving.openai.key_variable names"
        )
    yield from endpoint_problems(file.serving.openai)

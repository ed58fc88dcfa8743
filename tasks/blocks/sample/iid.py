"""Independent samples."""

import polars as pl
from pydantic import Field

from tasks.blocks.sample.candidates import candidates
from tasks.core.asking.demand import Counts, Demand
from tasks.core.asking.local import Asker
from tasks.core.blocks import Options
from tasks.core.engines.base import Sampling
from tasks.core.family import Family


class IidK(Options):
    n: int = Field(ge=1)  # samples a prompt
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


class Single(Options):
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


def iid_k(prompts: pl.DataFrame, family: Family, model: Asker, seed: int, name: str, options: IidK) -> pl.DataFrame:
    """`n` independent samples of every prompt."""
    sampling = Sampling(options.n, options.temperature, options.top_p, options.max_new_tokens, seed)
    asked = prompts["messages"].to_list()
    replies = model.generate(asked, sampling, name)
    return candidates(family, model.digest, name, 0, prompts["prompt_id"].to_list(), asked, asked, replies)


def single(prompts: pl.DataFrame, family: Family, model: Asker, seed: int, name: str, options: Single) -> pl.DataFrame:
    """One answer to every prompt: greedy where temperature is 0."""
    return iid_k(prompts, family, model, seed, name, IidK(n=1, **options.model_dump()))


def requested(options: IidK, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts * options.n, options.max_new_tokens, options.n)]


def answered(options: Single, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts, options.max_new_tokens)]

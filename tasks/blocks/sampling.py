"""Sampling blocks: prompts in, candidate answers out (rows of CANDIDATES)."""

from collections.abc import Sequence

import polars as pl
from pydantic import Field

from tasks.core import tables
from tasks.core.asking.demand import Counts, Demand
from tasks.core.asking.local import Asker
from tasks.core.blocks import Block, Options, Requests
from tasks.core.engines.base import Completion, Sampling
from tasks.core.family import Family, Messages


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


def candidates(
    family: Family,
    digest: str,
    source: str,
    turn: int,
    prompt_ids: Sequence[str],
    questions: Sequence[Messages],
    asked: Sequence[Messages],
    replies: Sequence[Sequence[Completion]],
    parents: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """CANDIDATES from replies. `questions`: the prompt's own messages, which answers are extracted against;
    `asked`: what the model read (the same for a sample, the refinement template for a refinement). A reply that
    failed is no candidate; the others keep their draws."""
    rows = []
    for index, several in enumerate(replies):
        prompt, parent = prompt_ids[index], parents[index] if parents else None
        for draw, reply in enumerate(several):
            if reply.failed:
                continue
            rows.append(
                (
                    tables.content_id(prompt, parent, source, turn, draw, digest, reply.text),
                    prompt,
                    parent,
                    source,
                    turn,
                    draw,
                    asked[index],
                    reply.text,
                    family.extract(questions[index], reply.text),
                    reply.prompt_tokens,
                    reply.tokens,
                    reply.logprob,
                    reply.finish_reason,
                    digest,
                )
            )
    return pl.DataFrame(rows, schema=tables.CANDIDATES, orient="row")


BLOCKS: dict[str, Block] = {"iid_k": iid_k, "single": single}


def _sampled(options: IidK, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts * options.n, options.max_new_tokens, options.n)]


def _answered(options: Single, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts, options.max_new_tokens)]


REQUESTS: dict[Block, Requests] = {iid_k: _sampled, single: _answered}

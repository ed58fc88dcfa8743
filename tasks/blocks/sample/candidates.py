"""Candidates from replies."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tasks.core import tables
from tasks.core.engines.contract import Completion
from tasks.core.family import Family, Messages


@dataclass(frozen=True)
class Asked:
    """One conversation that a model was asked, and what it is about."""

    prompt_id: str
    question: Messages  # the prompt's own messages, which answers are extracted against
    messages: Messages  # what the model read: the same for a sample, the template for a refinement
    parent_id: str | None = None  # the candidate that it refines


def candidates(
    family: Family, digest: str, source: str, turn: int, asked: Sequence[Asked], replies: Sequence[Sequence[Completion]]
) -> pl.DataFrame:
    """CANDIDATES from the replies to each conversation. A reply that failed is no candidate; the others keep their
    draws. `digest`: of the model that replied."""
    rows = [
        {
            "candidate_id": tables.content_id(about.prompt_id, about.parent_id, source, turn, draw, digest, reply.text),
            "prompt_id": about.prompt_id,
            "parent_id": about.parent_id,
            "source": source,
            "turn": turn,
            "draw": draw,
            "messages": about.messages,
            "response": reply.text,
            "answer": family.extract(about.question, reply.text),
            "prompt_tokens": reply.prompt_tokens,
            "tokens": reply.tokens,
            "logprob": reply.logprob,
            "finish_reason": reply.finish_reason,
            "model": digest,
        }
        for about, several in zip(asked, replies, strict=True)
        for draw, reply in enumerate(several)
        if not reply.failed
    ]
    return pl.DataFrame(rows, schema=tables.CANDIDATES)

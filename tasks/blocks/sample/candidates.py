"""Candidates from replies."""

from collections.abc import Sequence

import polars as pl

from tasks.core import tables
from tasks.core.engines.base import Completion
from tasks.core.family import Family, Messages


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

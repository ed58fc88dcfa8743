"""Answers as training rows."""

from dataclasses import replace

import polars as pl

from tasks.blocks.filter.selection import Selection, reply_of, row_id
from tasks.core import tables
from tasks.core.blocks import Options


def positives(state: Selection, options: Options) -> Selection:
    """One SFT row for every candidate kept: the prompt itself, answered by the response."""
    questions = state.prompts.select("prompt_id", question="messages")
    rows = [
        (row_id(question, response), "own", question, reply_of(response), 1.0, prompt, candidate, state.iteration)
        for question, response, prompt, candidate in state.kept.join(questions, on="prompt_id", how="left")
        .select("question", "response", "prompt_id", "candidate_id")
        .iter_rows()
    ]
    made = pl.DataFrame(rows, schema=tables.SFT, orient="row")
    return replace(state, sft=pl.concat([state.sft, made]))

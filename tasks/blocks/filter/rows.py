"""Answers as training rows."""

from dataclasses import replace

import polars as pl

from tasks.blocks.filter.selection import Selection, reply_of, row_id
from tasks.core import tables
from tasks.core.block import Block, Options


def positives(state: Selection, options: Options) -> Selection:
    """One SFT row for every candidate kept: the prompt itself, answered by the response."""
    questions = state.prompts.select("prompt_id", question="messages")
    kept = state.kept.join(questions, on="prompt_id", how="left")
    rows = [
        {
            "row_id": row_id(question, response),
            "part": "own",
            "prompt": question,
            "completion": reply_of(response),
            "weight": 1.0,
            "prompt_id": prompt,
            "candidate_id": candidate,
            "iteration": state.iteration,
        }
        for question, response, prompt, candidate in kept.select(
            "question", "response", "prompt_id", "candidate_id"
        ).iter_rows()
    ]
    return replace(state, sft=pl.concat([state.sft, tables.frame(rows, tables.SFT)]))


BLOCKS = {"positives": Block(positives, gives=frozenset({"rows of own"}), phase="build")}

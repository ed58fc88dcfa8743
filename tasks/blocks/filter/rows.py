"""Answers as training rows: to be learnt as they stand, or as good and bad ones."""

from dataclasses import replace
from typing import Any, Literal

import polars as pl
from pydantic import Field

from tasks.blocks.filter.selection import Selection, reply_of, row_id
from tasks.blocks.filter.weighing import Weight, scores, weights
from tasks.core import tables
from tasks.core.block import Block, Options, Read

Messages = list[dict[str, str]]


class Rows(Options):
    of: list[str]  # names of the blocks of sample and refine whose candidates become rows; []: all
    reads: Literal["prompt", "asked", "dialogue"]  # what a row's model reads before it writes
    weight: Weight | None  # null: 1
    part: str = Field(min_length=1)  # of the dataset


def rows(state: Selection, options: Rows) -> Selection:
    """One SFT row for every candidate kept. Its prompt is the prompt itself (`reads: prompt`), or what the model was asked
    (`asked`: a revision is learnt as a revision). With `dialogue` it is the prompt, and the completion holds all
    that followed, of which only the last reply is learnt."""
    kept, dropped, known = _of(state, options.of), state.dropped, None
    if options.weight is not None:
        known = scores(state, options.weight.critic, "rows.weight")
        silent = kept.filter(
            ~pl.col("candidate_id").is_in([name for name, score in known.items() if score is not None])
        )
        dropped = state.note("rows", [(c, p, "no score to weigh by") for c, p in silent.select(IDS).iter_rows()])
        kept = kept.join(silent, on="candidate_id", how="anti", maintain_order="left")
    values = [1.0] * kept.height
    if options.weight is not None and known is not None:
        values = weights([known[name] or 0.0 for name in kept["candidate_id"]], options.weight, "rows")
    made = [
        _read(question, asked, response, options.reads)
        | {"part": options.part, "weight": weight, "prompt_id": prompt, "candidate_id": candidate}
        | {"iteration": state.iteration}
        for (question, asked, response, prompt, candidate), weight in zip(
            kept.select("question", "messages", "response", "prompt_id", "candidate_id").iter_rows(),
            values,
            strict=True,
        )
    ]
    return replace(state, sft=pl.concat([state.sft, tables.frame(made, tables.SFT)]), dropped=dropped)


class Rated(Options):
    critic: str  # whose verdict is the label
    of: list[str]  # names of the blocks of sample and refine whose candidates are rated; []: all
    part: str = Field(min_length=1)  # of the dataset


def rated(state: Selection, options: Rated) -> Selection:
    """Every candidate kept as a good or a bad answer by the critic's verdict: what KTO learns from. Without a verdict it
    is neither."""
    opinions = state.opinions(options.critic, "rated").select("candidate_id", "verdict", "score")
    kept = _of(state, options.of).join(opinions, on="candidate_id", how="left", maintain_order="left")
    silent = kept.filter(pl.col("verdict").is_null())
    noted = [(c, p, "no judgement") for c, p in silent.select(IDS).iter_rows()]
    columns = ("question", "response", "prompt_id", "candidate_id", "verdict", "score")
    made = [
        {
            "row_id": row_id(question, response),
            "part": options.part,
            "prompt": question,
            "completion": reply_of(response),
            "label": verdict,
            "value": score,
            "weight": 1.0,
            "prompt_id": prompt,
            "candidate_id": candidate,
            "iteration": state.iteration,
        }
        for question, response, prompt, candidate, verdict, score in kept.filter(pl.col("verdict").is_not_null())
        .select(columns)
        .iter_rows()
    ]
    told = pl.concat([state.rated, tables.frame(made, tables.RATED)])
    return replace(state, rated=told, dropped=state.note("rated", noted))


IDS = ("candidate_id", "prompt_id")


def _of(state: Selection, sources: list[str]) -> pl.DataFrame:
    """The kept candidates of these sources, with their prompts' messages as `question`."""
    kept = state.kept.filter(pl.col("source").is_in(sources)) if sources else state.kept
    questions = state.prompts.select("prompt_id", question="messages")
    return kept.join(questions, on="prompt_id", how="left", maintain_order="left")


def _read(question: Messages, asked: Messages, response: str, reads: str) -> dict[str, Any]:
    """Prompt and completion of a row, and its id."""
    reply = reply_of(response)
    if reads == "dialogue" and asked[: len(question)] == question and len(asked) > len(question):
        turns = [*asked[len(question) :], *reply]
        weighed = {"message_weights": [0.0] * (len(turns) - 1) + [1.0]}
        return {
            "row_id": row_id(question, *(turn["content"] for turn in turns)),
            "prompt": question,
            "completion": turns,
        } | weighed
    prompt = asked if reads == "asked" else question
    return {"row_id": row_id(prompt, response), "prompt": prompt, "completion": reply}


def _reads(options: Rows) -> list[Read]:
    return options.weight.reads("weight") if options.weight else []


def _gives(options: Rows) -> frozenset[str]:
    return frozenset({f"rows of {options.part}"})


def _rates(options: Rated) -> frozenset[str]:
    return frozenset({f"rated rows of {options.part}"})


BLOCKS = {
    "rows": Block(rows, gives=_gives, phase="build", reads=_reads),
    "rated": Block(rated, gives=_rates, needs=frozenset({"verdicts"}), phase="build"),
}

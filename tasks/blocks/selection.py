"""Filter blocks: candidates with critiques in, training rows out, and every drop with its reason.

A block takes the selection so far and returns the next. Blocks run by phase, within a phase in the order of PHASES:
`select` (which candidates are trusted), `limit` (duplicates and caps), `build` (rows and pairs, with their weights),
`mix` (earlier rounds and the seed corpus). What did not parse, ties, equal texts and missing
scores never become a preference; they are counted.
"""

from collections import Counter
from dataclasses import replace

import polars as pl
from pydantic import Field

from tasks.blocks.pairs import pairs_best_worst, pairs_preferred, pairs_vote_margin
from tasks.blocks.selecting import Selection, reply_of, row_id
from tasks.core import tables
from tasks.core.blocks import Block, Bound, Options
from tasks.core.errors import BadInput, unknown_name


class OfCritic(Options):
    critic: str  # name of a critic of this iteration


class AtLeast(Options):
    critic: str
    at_least: float  # the lowest score that is kept


# --- select ------------------------------------------------------------------------------------------


def accepted(state: Selection, options: OfCritic) -> Selection:
    """Keeps what the critic accepts."""
    verdict = pl.col("verdict")
    return _by_opinion(
        state,
        options.critic,
        "accepted",
        pl.when(verdict.is_null()).then(_silence()).when(~verdict).then(pl.lit("refused")),
    )


def threshold(state: Selection, options: AtLeast) -> Selection:
    """Keeps what the critic scores at least so high."""
    score = pl.col("score")
    low = pl.lit(f"score below {options.at_least:g}")
    return _by_opinion(
        state,
        options.critic,
        "threshold",
        pl.when(score.is_null()).then(_silence()).when(score < options.at_least).then(low),
    )


def majority(state: Selection, options: AtLeast) -> Selection:
    """Keeps candidates whose answer is their prompt's only most common one, with a vote share of at least so much
    (Large Language Models Can Self-Improve, Huang et al. 2022). `critic` is a `vote` critic."""
    share = pl.col("score")
    reason = (
        pl.when(pl.col("verdict").is_null())
        .then(_silence())
        .when(~pl.col("verdict"))
        .then(pl.lit("not the most common answer"))
        .when(share < options.at_least)
        .then(pl.lit(f"vote share below {options.at_least:g}"))
    )
    return _by_opinion(state, options.critic, "majority", reason)


def _silence() -> pl.Expr:
    return pl.coalesce(pl.concat_str(pl.lit("no judgement: "), pl.col("why")), pl.lit("no judgement"))


def _by_opinion(state: Selection, critic: str, block: str, reason: pl.Expr) -> Selection:
    opinions = state.opinions(critic, block).with_columns(reason=reason)
    missing = state.kept.join(opinions, on="candidate_id", how="anti").select(
        "candidate_id", reason=pl.lit("not judged")
    )
    return state.narrow(block, pl.concat([opinions.select("candidate_id", "reason"), missing]))


def well_formed(state: Selection, options: Options) -> Selection:
    """Keeps finished responses that give an answer by the family's grammar; says nothing about truth."""
    reason = (
        pl.when(pl.col("answer").is_null())
        .then(pl.lit("no answer"))
        .when(pl.col("finish_reason") != "stop")
        .then(pl.lit("unfinished"))
    )
    return state.narrow("well_formed", state.kept.select("candidate_id", reason=reason))


class Length(Options):
    min_tokens: int = Field(ge=0)  # fewest
    max_tokens: int = Field(ge=1)  # most


def length(state: Selection, options: Length) -> Selection:
    """Keeps responses of `min_tokens` to `max_tokens` tokens."""
    tokens = pl.col("tokens")
    reason = (
        pl.when(tokens < options.min_tokens)
        .then(pl.lit(f"shorter than {options.min_tokens} tokens"))
        .when(tokens > options.max_tokens)
        .then(pl.lit(f"longer than {options.max_tokens} tokens"))
    )
    return state.narrow("length", state.kept.select("candidate_id", reason=reason))


class RelativeLength(Options):
    longest: float = Field(gt=0, le=1)  # quantile of the lengths that counts as the longest
    below: int = Field(ge=0)  # tokens that a response may be shorter than that


def relative_length(state: Selection, options: RelativeLength) -> Selection:
    """Drops responses shorter than the longest ones to prompts of the same difficulty, by more than `below` tokens: a
    model that is asked for more than it was trained on mostly stops too early (the length filter of Self-Improving
    Transformers, which takes the longest of the batch; a quantile forgives a few that ran on)."""
    lengths = state.kept.join(state.prompts.select("prompt_id", "difficulty"), on="prompt_id", how="left")
    longest = pl.col("tokens").quantile(options.longest, "lower").over("difficulty")
    short = pl.col("tokens") < longest - options.below
    reason = pl.when(short).then(pl.lit("shorter than the longest of its difficulty"))
    return state.narrow("relative_length", lengths.select("candidate_id", reason=reason))


def keep_all(state: Selection, options: Options) -> Selection:
    """Keeps everything: unfiltered self-training, the lower bound that a filter must beat."""
    return state


# --- limit -------------------------------------------------------------------------------------------


def deduplicate(state: Selection, options: Options) -> Selection:
    """Keeps one of several equal responses to a prompt: the earliest turn, then the lowest id."""
    ordered = state.kept.sort("prompt_id", "turn", "candidate_id")
    again = pl.int_range(pl.len()).over("prompt_id", pl.col("response").str.strip_chars()) > 0
    reasons = ordered.select("candidate_id", reason=pl.when(again).then(pl.lit("duplicate")))
    return state.narrow("deduplicate", reasons)


class Cap(Options):
    per_prompt: int = Field(ge=1)  # candidates, at most


def cap(state: Selection, options: Cap) -> Selection:
    """Keeps at most `per_prompt` candidates of a prompt, chosen by id, which is as good as at random."""
    ordered = state.kept.sort("prompt_id", "candidate_id")
    over = pl.int_range(pl.len()).over("prompt_id") >= options.per_prompt
    reasons = ordered.select("candidate_id", reason=pl.when(over).then(pl.lit("over the cap")))
    return state.narrow("cap", reasons)


# --- build -------------------------------------------------------------------------------------------


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


# --- mix ---------------------------------------------------------------------------------------------


class Accumulate(Options):
    apart: bool  # false: earlier rows count like new ones; true: they are a part of the training mixture of their own


def accumulate(state: Selection, options: Accumulate) -> Selection:
    """Adds the own rows and pairs of earlier iterations. With `apart`, older rows get the part `earlier`,
    so that the training mixture can hold the newest iteration at a fixed share; in the first iteration, which has
    none, the new rows stand in for them."""
    older = state.earlier_sft.filter(pl.col("part").is_in(["own", "earlier"])).unique(
        "row_id", keep="first", maintain_order=True
    )
    old_pairs = state.earlier_pairs.join(state.pairs, on="row_id", how="anti")
    state = replace(state, pairs=pl.concat([state.pairs, old_pairs]))
    if options.apart:
        older = (state.sft if older.is_empty() else older).with_columns(part=pl.lit("earlier"))
        return replace(state, sft=pl.concat([state.sft, older]))
    older = older.join(state.sft, on="row_id", how="anti")
    return replace(state, sft=pl.concat([state.sft, older]))


class Replay(Options):
    parts: list[str] = Field(min_length=1)  # skills of the seed corpus


def replay(state: Selection, options: Replay) -> Selection:
    """Adds the seed corpus, so that what the base model learned is not forgotten. Raises `BadInput` for a part
    that the corpus does not have."""
    known = state.corpus["part"].unique().to_list()
    for part in options.parts:
        if part not in known:
            raise unknown_name("part", part, known, "filter.replay.parts")
    return replace(state, sft=pl.concat([state.sft, state.corpus.filter(pl.col("part").is_in(options.parts))]))


PHASES: dict[str, dict[str, Block]] = {
    "select": {
        "accepted": accepted,
        "threshold": threshold,
        "majority": majority,
        "well_formed": well_formed,
        "length": length,
        "relative_length": relative_length,
        "keep_all": keep_all,
    },
    "limit": {"deduplicate": deduplicate, "cap": cap},
    "build": {
        "positives": positives,
        "pairs_best_worst": pairs_best_worst,
        "pairs_vote_margin": pairs_vote_margin,
        "pairs_preferred": pairs_preferred,
    },
    "mix": {"accumulate": accumulate, "replay": replay},
}
BLOCKS: dict[str, Block] = {name: block for blocks in PHASES.values() for name, block in blocks.items()}
BUILDERS = frozenset(PHASES["build"].values())


def in_order(bounds: list[Bound]) -> list[Bound]:
    """The blocks by phase, then in the order of PHASES, then by name. Raises `BadInput` if nothing builds rows."""
    if bounds and not any(bound.block in BUILDERS for bound in bounds):
        raise BadInput(
            f"filter: no block builds training rows; add one of {', '.join(sorted(PHASES['build']))} "
            f"(given: {', '.join(bound.name for bound in bounds)})"
        )
    place = {block: index for index, block in enumerate(BLOCKS.values())}
    return sorted(bounds, key=lambda bound: (place[bound.block], bound.name))


def reasons(dropped: pl.DataFrame) -> list[str]:
    """Lines such as "accepted dropped 120: refused", most frequent first."""
    counts = Counter(dropped.select("block", "reason").iter_rows())
    return [f"{block} dropped {count}: {reason}" for (block, reason), count in counts.most_common()]

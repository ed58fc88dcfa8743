"""Which candidates are trusted."""

import polars as pl
from pydantic import Field

from tasks.blocks.filter.selection import Selection
from tasks.core.block import Block, Options


class OfCritic(Options):
    critic: str  # name of a critic of this iteration


class AtLeast(Options):
    critic: str
    at_least: float  # the lowest score that is kept


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


def contested(state: Selection, options: OfCritic) -> Selection:
    """Keeps the candidates of prompts of which the critic accepts some candidates and refuses others: what is always right,
    and what never is, has nothing to tell apart (EAST leaves such prompts out)."""
    verdicts = state.opinions(options.critic, "contested").select("candidate_id", "verdict")
    told = state.kept.join(verdicts, on="candidate_id", how="left")
    yes = pl.col("verdict").fill_null(False).any().over("prompt_id")
    no = (~pl.col("verdict").fill_null(True)).any().over("prompt_id")
    reason = (
        pl.when(~yes).then(pl.lit("none of the prompt accepted")).when(~no).then(pl.lit("all of the prompt accepted"))
    )
    return state.narrow("contested", told.select("candidate_id", reason=reason))


def keep_all(state: Selection, options: Options) -> Selection:
    """Keeps everything: unfiltered self-training, the lower bound that a filter must beat."""
    return state


BLOCKS = {
    "contested": Block(contested, needs=frozenset({"verdicts"}), phase="select"),
    "accepted": Block(accepted, needs=frozenset({"verdicts"}), phase="select"),
    "threshold": Block(threshold, needs=frozenset({"scores"}), phase="select"),
    "majority": Block(majority, needs=frozenset({"votes"}), phase="select"),
    "well_formed": Block(well_formed, phase="select"),
    "length": Block(length, phase="select"),
    "relative_length": Block(relative_length, phase="select"),
    "keep_all": Block(keep_all, phase="select"),
}

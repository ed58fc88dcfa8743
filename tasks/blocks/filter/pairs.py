"""Preference pairs, from scores or from comparisons. What did not parse, ties, equal texts, missing scores: never one."""

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import polars as pl
from pydantic import Field

from tasks.blocks.critique.opinions import undecided
from tasks.blocks.filter.selection import Selection, reply_of, row_id
from tasks.core import tables
from tasks.core.block import Block, Options


class PairsBestWorst(Options):
    critic: str
    min_margin: float = Field(gt=0)  # smallest difference in score that counts as a preference
    per_prompt: int = Field(ge=1)  # pairs, at most


def pairs_best_worst(state: Selection, options: PairsBestWorst) -> Selection:
    """Best against worst by the critic's score (Self-Rewarding Language Models, Yuan et al. 2024); the k-th best
    against the k-th worst where `per_prompt` is more than one."""
    scored = _scored(state, options.critic, "pairs_best_worst")
    return _pair(state, scored, "pairs_best_worst", options.min_margin, options.per_prompt, lambda margin: 1.0)


class PairsVoteMargin(Options):
    critic: str  # a vote critic
    at_least: float = Field(ge=0, le=1)  # gate: vote share of the chosen answer
    per_prompt: int = Field(ge=1)  # pairs, at most


def pairs_vote_margin(state: Selection, options: PairsVoteMargin) -> Selection:
    """Most against least voted answer with weight (V+ - V-)/k (Self-Consistency Preference Optimization, Prasad et
    al. 2024): scores are vote shares V/k, so the weight is their difference. Gate: V+/k >= `at_least`."""
    scored = _scored(state, options.critic, "pairs_vote_margin")
    best = pl.col("score").max().over("prompt_id")
    weak = scored.filter(best < options.at_least)
    reason = f"vote share below {options.at_least:g}"
    noted = [(prompt, prompt, reason) for prompt in weak["prompt_id"].unique(maintain_order=True)]
    state = replace(state, dropped=state.note("pairs_vote_margin", noted))
    strong = scored.filter(best >= options.at_least).unique(["prompt_id", "answer"], keep="first", maintain_order=True)
    return _pair(state, strong, "pairs_vote_margin", 1e-9, options.per_prompt, lambda margin: margin)


class PairsPreferred(Options):
    critic: str  # a pairwise critic
    min_margin: float = Field(ge=0, le=1)  # smallest |2 score - 1|: 1 where every draw says the same
    per_prompt: int = Field(ge=1)  # pairs, at most


def pairs_preferred(state: Selection, options: PairsPreferred) -> Selection:
    """Every pair that the judge decided, better against worse; of a prompt those with the largest margin. Only pairs of
    candidates that are both kept."""
    responses = dict(state.kept.select("candidate_id", "response").iter_rows())
    prompts = dict(state.kept.select("candidate_id", "prompt_id").iter_rows())
    found: dict[str, list[tuple[float, str, str]]] = {}
    skipped = []
    outcomes = state.outcomes(options.critic, "pairs_preferred").with_columns(
        why=pl.coalesce("why", undecided("better", "score"))
    )
    for one, two, better, score, why in outcomes.select(
        "candidate_id", "other_id", "better", "score", "why"
    ).iter_rows():
        if one not in responses or two not in responses:
            continue
        prompt = prompts[one]
        margin = 0.0 if score is None else round(abs(2 * score - 1), 6)
        if better is None:
            skipped.append((one, prompt, why))
        elif margin < options.min_margin:
            skipped.append((one, prompt, "margin too small"))
        elif responses[one].strip() == responses[two].strip():
            skipped.append((one, prompt, "equal texts"))
        else:
            found.setdefault(prompt, []).append((-margin, *((one, two) if better else (two, one))))
    rows = []
    for prompt, question in state.prompts.select("prompt_id", "messages").iter_rows():
        for place, (margin, good, bad) in enumerate(sorted(found.get(prompt, []))):
            if place >= options.per_prompt:
                skipped.append((good, prompt, "over the cap"))
                continue
            chosen, rejected = (good, responses[good]), (bad, responses[bad])
            rows.append(_row(state, prompt, question, chosen, rejected, margin=-margin, weight=1.0))
    told = {*found, *(prompt for _, prompt, _ in skipped)}
    skipped += [(prompt, prompt, "no pair compared") for prompt in state.prompts["prompt_id"] if prompt not in told]
    return _with(state, rows, "pairs_preferred", sorted(skipped))


def _scored(state: Selection, critic: str, block: str) -> pl.DataFrame:
    """The kept candidates that have a score, in a fixed order."""
    opinions = state.opinions(critic, block).select("candidate_id", "score")
    joined = state.kept.join(opinions, on="candidate_id", how="inner")
    return joined.filter(pl.col("score").is_not_null()).sort("prompt_id", "candidate_id")


def _pair(
    state: Selection, scored: pl.DataFrame, block: str, margin: float, count: int, weight: Callable[[float], float]
) -> Selection:
    """Pairs from scored candidates: k-th best against k-th worst while the margin holds."""
    questions = dict(state.prompts.select("prompt_id", "messages").iter_rows())
    rows, skipped = [], []
    known = {*scored["prompt_id"], *state.dropped.filter(pl.col("block") == block)["prompt_id"]}
    skipped += [(p, p, "no candidate with a score") for p in state.prompts["prompt_id"] if p not in known]
    ranked = scored.sort(["prompt_id", "score", "candidate_id"], descending=[False, True, False])
    ordered = ranked.select("prompt_id", "candidate_id", "response", "score").iter_rows()
    for prompt, group in groupby(ordered, key=itemgetter(0)):
        found = [row[1:] for row in group]
        for k in range(min(count, len(found) // 2) or 1):
            (good, chosen, high), (bad, rejected, low) = found[k], found[-1 - k]
            if good == bad:
                skipped.append((good, str(prompt), "nothing to compare with"))
            elif high - low < margin:
                skipped.append((good, str(prompt), "tie"))
            elif chosen.strip() == rejected.strip():
                skipped.append((good, str(prompt), "equal texts"))
            else:
                gap = round(high - low, 6)
                question, both = questions[str(prompt)], ((good, chosen), (bad, rejected))
                rows.append(_row(state, str(prompt), question, *both, margin=gap, weight=round(weight(gap), 6)))
    return _with(state, rows, block, skipped)


def _row(
    state: Selection,
    prompt: str,
    question: Any,
    chosen: tuple[str, str],
    rejected: tuple[str, str],
    margin: float,
    weight: float,
) -> dict[str, Any]:
    """A row of PAIRS. `chosen`, `rejected`: id and response of a candidate."""
    return {
        "row_id": row_id(question, chosen[1], rejected[1]),
        "part": "own",
        "prompt": question,
        "chosen": reply_of(chosen[1]),
        "rejected": reply_of(rejected[1]),
        "margin": margin,
        "weight": weight,
        "smoothing": 0.0,
        "prompt_id": prompt,
        "chosen_id": chosen[0],
        "rejected_id": rejected[0],
        "iteration": state.iteration,
    }


def _with(state: Selection, rows: list[dict[str, Any]], block: str, skipped: list[tuple[str, str, str]]) -> Selection:
    """The state with these pairs, and with what made none."""
    made = tables.frame(rows, tables.PAIRS)
    return replace(state, pairs=pl.concat([state.pairs, made]), dropped=state.note(block, skipped))


BLOCKS = {
    "pairs_best_worst": Block(pairs_best_worst, gives=frozenset({"pairs"}), needs=frozenset({"scores"}), phase="build"),
    "pairs_vote_margin": Block(
        pairs_vote_margin, gives=frozenset({"pairs"}), needs=frozenset({"votes"}), phase="build"
    ),
    "pairs_preferred": Block(
        pairs_preferred, gives=frozenset({"pairs"}), needs=frozenset({"comparisons"}), phase="build"
    ),
}

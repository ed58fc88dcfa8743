"""Preference pairs, from scores or from comparisons. What did not parse, ties, equal texts, missing scores: never one."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import polars as pl
from pydantic import Field, field_validator

from tasks.blocks.critique.opinions import undecided
from tasks.blocks.filter.picking import Picker, picked
from tasks.blocks.filter.selection import Selection, reply_of, row_id
from tasks.blocks.filter.weighing import PairWeight, Smoothing, scores, smoothed
from tasks.blocks.filter.weighing import weights as weighed
from tasks.core import tables
from tasks.core.block import Block, Options, Read


class Pairs(Options):
    """Which candidates are compared, and what a pair of them weighs."""

    within: Literal["prompt", "parent"]  # what both sides share; parent: an answer, and what it was revised into
    chosen: Picker
    rejected: Picker
    min_margin: float | None  # smallest difference in score that counts as a preference; null: any, even none
    per_prompt: int = Field(ge=1)  # pairs of what both share, at most
    weight: PairWeight | None  # null: 1
    smoothing: float | Smoothing = Field(union_mode="left_to_right")  # 0: as it stands, 0.5: says nothing
    part: str = Field(min_length=1)  # of the dataset

    @field_validator("smoothing")
    @classmethod
    def _share(cls, smoothing: float | Smoothing) -> float | Smoothing:
        if isinstance(smoothing, float) and not 0 <= smoothing <= 1:
            raise ValueError("it is between 0 and 1")
        return smoothing


def pairs(state: Selection, options: Pairs) -> Selection:
    """The k-th of the chosen against the k-th of the rejected, while the margin holds and no candidate comes twice.

    Best against worst is Self-Rewarding Language Models (Yuan et al. 2024). The most against the least voted answer,
    weighed by the margin (V+ - V-)/k of their vote shares, is Self-Consistency Preference Optimization (Prasad et al.
    2024). Accepted against refused by the verifier is the pair of correct and wrong of rejection-sampling DPO."""
    group = _groups(state, options.within)
    chosen = picked(state, options.chosen, group, "pairs.chosen")
    rejected = picked(state, options.rejected, group, "pairs.rejected")
    found, skipped = _matched(group, chosen, rejected, options)
    if options.weight is None:
        weights = [1.0] * len(found)
    else:
        known = scores(state, options.weight.critic, "pairs.weight") if options.weight.critic else {}
        values = [match.margin if options.weight.critic is None else known.get(match.chosen[0]) for match in found]
        unknown = [match for match, value in zip(found, values, strict=True) if value is None]
        skipped += [(match.chosen[0], match.prompt, "no score to weigh by") for match in unknown]
        found = [match for match, value in zip(found, values, strict=True) if value is not None]
        weights = weighed([value for value in values if value is not None], options.weight, "pairs")
    if isinstance(options.smoothing, Smoothing):
        told = scores(state, options.smoothing.critic, "pairs.smoothing")
        smoothing = smoothed([match.chosen[0] for match in found], told, options.smoothing, "pairs")
    else:
        smoothing = [options.smoothing] * len(found)
    questions = dict(state.prompts.select("prompt_id", "messages").iter_rows())
    rows = [
        _row(
            state,
            match.prompt,
            questions[match.prompt],
            match.chosen,
            match.rejected,
            margin=match.margin,
            weight=weight,
        )
        | {"smoothing": soft, "part": options.part}
        for match, weight, soft in zip(found, weights, smoothing, strict=True)
    ]
    return _with(state, rows, f"pairs_{options.chosen.pick}_{options.rejected.pick}", skipped)


class _Match(NamedTuple):
    """Two candidates that make a pair, each with its response."""

    prompt: str
    chosen: tuple[str, str]
    rejected: tuple[str, str]
    margin: float


def _groups(state: Selection, within: str) -> pl.DataFrame:
    """`candidate_id` and `group` of all candidates: the prompt, or the first answer that a revision goes back to."""
    rows = state.candidates.select("candidate_id", "prompt_id", "parent_id")
    if within == "prompt":
        return rows.select("candidate_id", group="prompt_id")
    parents = {candidate: parent for candidate, _, parent in rows.iter_rows() if parent is not None}
    first = []
    for candidate in rows["candidate_id"]:
        while candidate in parents:
            candidate = parents[candidate]
        first.append(candidate)
    return rows.select("candidate_id", group=pl.Series(first, dtype=pl.String))


def _matched(
    group: pl.DataFrame, chosen: pl.DataFrame, rejected: pl.DataFrame, options: Pairs
) -> tuple[list[_Match], list[tuple[str, str, str]]]:
    """The pairs of every group, and why others are none: (id, prompt, reason)."""
    sides = [
        {str(name): rows.drop("group").rows() for (name,), rows in side.group_by("group", maintain_order=True)}
        for side in (chosen, rejected)
    ]
    found: list[_Match] = []
    skipped: list[tuple[str, str, str]] = []
    for name in group["group"].unique(maintain_order=True).sort():
        ours, theirs = (side.get(name, []) for side in sides)
        if not ours or not theirs:
            prompt = (ours or theirs or [(name, name)])[0][1]
            skipped.append((name, prompt, (options.rejected if ours else options.chosen).lack))
        used: set[str] = set()
        for (good, prompt, text, high), (bad, _, other, low) in list(zip(ours, theirs, strict=False))[
            : options.per_prompt
        ]:
            if good in used or bad in used or (used and good == bad):
                break
            used |= {good, bad}
            margin = round(high - low, 6) if high is not None and low is not None else 0.0
            if good == bad:
                skipped.append((good, prompt, "nothing to compare with"))
            elif options.min_margin is not None and margin < options.min_margin:
                skipped.append((good, prompt, "tie"))
            elif text.strip() == other.strip():
                skipped.append((good, prompt, "equal texts"))
            else:
                found.append(_Match(prompt, (good, text), (bad, other), margin))
    return found, skipped


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


def _reads(options: Pairs) -> list[Read]:
    soft = options.smoothing
    return [
        *options.chosen.reads("chosen"),
        *options.rejected.reads("rejected"),
        *(options.weight.reads("weight") if options.weight else []),
        *(soft.reads("smoothing") if isinstance(soft, Smoothing) else []),
    ]


def _gives(options: Pairs) -> frozenset[str]:
    return frozenset({f"pairs of {options.part}"})


BLOCKS = {
    "pairs": Block(pairs, gives=_gives, phase="build", reads=_reads),
    "pairs_preferred": Block(
        pairs_preferred, gives=frozenset({"pairs of own"}), needs=frozenset({"comparisons"}), phase="build"
    ),
}

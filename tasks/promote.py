"""promote: whether the next iteration starts from this candidate or from the policy that was there before.

Reads the probe-set results of this and of the previous iteration, never held-out ones, and the previous
`policy.json`. Writes `data/iN/pointer.json`, the promoted model's path and digest and nothing else, which is what
the next iteration depends on (models are not copied), and `data/iN/policy.json`, the decision:
  path, digest      the promoted model's folder and content digest
  promoted          whether that is this iteration's candidate
  reason            one sentence for people
  gate_metric       the figure that decided, null when there was none to decide by
  candidate_score, previous_score   the figure of the candidate and of the previous policy, on the probe set
  scores            the promoted policy's gate figures on the probe set, for the next promotion
  alarms            the guards that went off, by name; they warn and do not decide
and, with a `significance`:
  test              of the candidate against the policy on the same probe prompts: `significance`, the one-sided `p_value`,
                    `prompts`, those `gained` and `lost` (right for one of both alone), the `smallest_difference` of
                    accuracy that these prompts would have told (null: none), and `too_small`: the candidate is ahead, but
                    not by that much
  by_prompt         whether the promoted policy's greedy answer to each probe prompt is right, for the next promotion

The gate: candidate_score >= previous_score - tolerance. With a `significance` it is another one: the exact one-sided
McNemar test (`tasks.core.uncertainty`) says at that level that the candidate is more accurate; the tolerance plays no
part. The previous policy may be older than the previous
candidate, which was then refused; so its score is taken from its own record, and from the previous probe
results only where it has none (the base). Where the metric was not measured, because the family has no truth, the
gate is the first of the label-free figures in `LABEL_FREE` that both have.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.core.block import Options, validate
from tasks.core.context import Context
from tasks.core.errors import BadInput, unknown_name
from tasks.core.models.pointer import Pointer
from tasks.core.uncertainty import detectable, mcnemar_better

Figures = Mapping[str, float | None]
Right = Mapping[str, bool | None]  # prompt id -> whether its answer is right

LABEL_FREE = ("answer_variety", "vote_share")  # higher is better; the first that is there decides
GATES = (
    "accuracy", "refine_accuracy", "critique_precision", "critique_recall", "critique_accuracy", "critique_auroc",
    "balance", "verification_gap", *LABEL_FREE,
)  # fmt: skip
COUNTED = re.compile(r"(pass_at|maj_at|best_of|accuracy_difficulty)_\d+")  # gates that come in several sizes

# Levels at which a guard is an alarm. From the survey of warnings that the guards come from: a verification gap that
# is gone, refinement that breaks more than it mends, one answer to a fifth of everything, a quarter more tokens a
# round. Chosen here: a quarter fewer different answers a round, critiques of which three in ten cannot be read.
MOST_COMMON = 0.2
LONGER = 1.25
FEWER = 0.75
UNPARSED = 0.3


class Promotion(Options):
    """The `promote` section."""

    metric: str  # a figure of the probe set, higher is better
    tolerance: float = Field(ge=0)  # how far below the previous policy a candidate may be
    significance: float | None = Field(gt=0, lt=0.5)  # promoted only if a paired test calls it better; null: tolerance


def parse(section: Mapping[str, Any]) -> Promotion:
    """The section, checked. Raises `BadInput`, or `UnknownName` for a figure that is no gate."""
    options: Promotion = validate(Promotion, section, "promote")
    if options.metric not in GATES and not COUNTED.fullmatch(options.metric):
        raise unknown_name("metric", options.metric, [*GATES, "pass_at_8", "maj_at_8", "best_of_8"], "promote.metric")
    return options


def run(context: Context) -> None:
    from tasks.core.digests import KNOWN
    from tasks.core.models.folders import digest

    previous = context.row["previous"]
    probe, before = context.load("probe_metrics"), context.load("probe_metrics", previous)
    policy = context.load("policy", previous)
    scores, earlier = gates(probe), policy.get("scores") or gates(before)
    right, theirs, level = by_prompt(probe), policy.get("by_prompt") or by_prompt(before), context.options.significance
    if level is None:
        decision = decide(scores, earlier, context.options)
    else:
        decision = compare(right, theirs, scores, earlier, level)
    candidate = digest(context.path("candidate"), context.scratch / KNOWN)
    chosen = {"path": context.where("candidate"), "digest": candidate, "scores": scores}
    if not decision["promoted"]:
        chosen = {"path": policy["path"], "digest": policy["digest"], "scores": earlier}
    if level is not None:
        chosen["by_prompt"] = right if decision["promoted"] else theirs
    record = {**decision, **chosen, "alarms": alarms(probe["guards"], before["guards"])}
    context.log(promoted=float(decision["promoted"]), alarms=len(record["alarms"]))
    context.tags["promoted"] = str(decision["promoted"]).lower()
    context.tags["reason"] = decision["reason"]
    context.save("policy", record)
    context.point(Pointer(record["path"], record["digest"]))


def gates(probe: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a `probe.json` that can decide. `answer_variety` is 1 - most_common_answer_share: low when the
    model says the same to everything, the collapse that needs no labels to be seen."""
    figures = {name: value for name, value in probe["metrics"].items() if name in GATES or COUNTED.fullmatch(name)}
    common = probe["metrics"].get("most_common_answer_share")
    return figures | {"answer_variety": None if common is None else round(1 - common, 6)}


def decide(candidate: Figures, previous: Figures, options: Promotion) -> dict[str, Any]:
    """promoted, reason, gate_metric, candidate_score and previous_score."""
    for name in (options.metric, *LABEL_FREE):
        ours, theirs = candidate.get(name), previous.get(name)
        if ours is not None and theirs is not None:
            break
    else:
        reason = f"promoted without a gate: the probe set has neither {options.metric} nor a label-free figure"
        return {
            "promoted": True, "reason": reason, "gate_metric": None, "candidate_score": None, "previous_score": None,
        }  # fmt: skip
    promoted = ours >= theirs - options.tolerance - 1e-9
    told = f"probe {name} {ours:.4f} against {theirs:.4f} of the previous policy, tolerance {options.tolerance:g}"
    reason = f"{'promoted' if promoted else 'kept the previous policy'}: {told}"
    if name != options.metric:
        reason += f"; {options.metric} is not there (no truth, or not measured), so a label-free figure decided"
    return {
        "promoted": promoted, "reason": reason, "gate_metric": name, "candidate_score": ours, "previous_score": theirs,
    }  # fmt: skip


def by_prompt(probe: Mapping[str, Any]) -> Right:
    """What a `probe.json` says of each prompt; empty where evaluate was not asked to (`evaluate.probe_by_prompt`)."""
    found: Right = probe.get("by_prompt") or {}
    return found


def compare(
    candidate: Right, previous: Right, scores: Figures, earlier: Figures, significance: float
) -> dict[str, Any]:
    """What `decide` gives, and `test`, by the paired test. Raises `BadInput` where there are no results of the same
    prompts to compare, or no truth."""
    if not candidate or candidate.keys() != previous.keys() or None in {*candidate.values(), *previous.values()}:
        raise BadInput(
            f"promote.significance: given {significance:g}, but candidate and policy have no results of the same probe "
            "prompts to compare; set evaluate.probe_by_prompt to true for all iterations, or significance to null"
        )
    prompts = len(candidate)
    gained = sum(bool(candidate[name]) and not previous[name] for name in candidate)
    lost = sum(bool(previous[name]) and not candidate[name] for name in candidate)
    p_value = mcnemar_better(gained, lost)
    promoted, smallest = p_value <= significance, detectable(prompts, lost, significance)
    too_small = not promoted and gained > lost
    ours, theirs = scores["accuracy"], earlier["accuracy"]
    reason = (
        f"{'promoted' if promoted else 'kept the previous policy'}: probe accuracy {ours:.4f} against {theirs:.4f} of the "
        f"previous policy, gained {gained} and lost {lost} of {prompts} prompts, one-sided p {p_value:.4g}, significance {significance:g}"
    )
    if too_small:
        least = "no difference" if smallest is None else f"a difference of {smallest:.4f} or more"
        reason += f"; too few probe prompts to tell: {prompts} tell {least} where {lost} are lost"
    return {
        "promoted": promoted, "reason": reason, "gate_metric": "accuracy", "candidate_score": ours, "previous_score": theirs,
        "test": {
            "significance": significance, "p_value": round(p_value, 6), "prompts": prompts, "gained": gained, "lost": lost,
            "smallest_difference": None if smallest is None else round(smallest, 6), "too_small": too_small,
        },
    }  # fmt: skip


def alarms(guards: Figures, before: Figures) -> list[str]:
    """Names of the guards that are at an alarming level, some of them against the previous iteration's."""

    def over(name: str, limit: float | None) -> bool:
        value = guards.get(name)
        return value is not None and limit is not None and value > limit

    def times(name: str, factor: float) -> float | None:
        value = before.get(name)
        return None if value is None else value * factor

    gap, distinct, fewest = (
        guards.get("verification_gap"),
        guards.get("distinct_answers"),
        times("distinct_answers", FEWER),
    )
    found = {
        "verification_gap": gap is not None and gap <= 0,
        "over_refinement": over("over_refinement", 0.0),
        "most_common_answer_share": over("most_common_answer_share", MOST_COMMON),
        "critique_unparsed": over("critique_unparsed", UNPARSED),
        "response_tokens": over("response_tokens", times("response_tokens", LONGER)),
        "distinct_answers": distinct is not None and fewest is not None and distinct < fewest,
    }
    return sorted(name for name, alarm in found.items() if alarm)

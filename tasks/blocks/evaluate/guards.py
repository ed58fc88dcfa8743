"""Figures that show when a loop goes wrong."""

import polars as pl

from tasks.blocks.evaluate.metrics import (
    distinct_answers,
    mean,
    most_common_answer_share,
    of_kind,
    rounded,
    verification_gap,
)
from tasks.core.uncertainty import Number


def guards(predictions: pl.DataFrame, critiques: pl.DataFrame) -> dict[str, Number]:
    """The probe set's warnings, each one number; `promote` says what level of each is an alarm.

    verification_gap: J(accepted samples) - J(samples); at or below 0 the own critic cannot help.
    over_refinement: (right->wrong - wrong->right) / prompts when every refinement replaces its answer; above 0
    refining does harm. most_common_answer_share: n(most frequent answer) / n(samples), over all prompts.
    distinct_answers: mean number of different answers a prompt. critique_unparsed: critiques from which nothing
    could be read / critiques. response_tokens: mean tokens of a sample. proxy_gold_gap: share accepted by the own
    critic - share right, over samples with a verdict; grows when the critic is being exploited."""
    greedy, drawn, refined = (of_kind(predictions, kind) for kind in ("greedy", "sample", "refined"))
    judged = drawn.filter(pl.col("verdict").is_not_null() & pl.col("correct").is_not_null())
    return rounded(
        {
            "verification_gap": verification_gap(drawn),
            "over_refinement": _over_refinement(greedy, refined),
            "most_common_answer_share": most_common_answer_share(drawn),
            "distinct_answers": distinct_answers(drawn),
            "critique_unparsed": mean(float(not parsed) for parsed in critiques["parsed"]),
            "response_tokens": mean(float(tokens) for tokens in drawn["tokens"]),
            "proxy_gold_gap": mean(float(v) - float(c) for v, c in judged.select("verdict", "correct").iter_rows()),
        }
    )


def _over_refinement(greedy: pl.DataFrame, refined: pl.DataFrame) -> Number:
    """Right answers broken less wrong answers mended, as a share of the prompts; None if none was refined."""
    before = dict(greedy.select("prompt_id", "correct").iter_rows())
    after = dict(refined.select("prompt_id", "correct").iter_rows())
    if not after or None in before.values() or None in after.values():
        return None
    return sum(int(before[prompt]) - int(right) for prompt, right in after.items()) / len(before)

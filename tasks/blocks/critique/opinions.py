"""Many draws of a critic put together into one opinion.

Filter blocks, refiners, metrics and figures read opinions, and nothing here asks a model: an edit of how a judge asks
or is read leaves what depends on this file alone.
"""

from collections import Counter

import polars as pl

DISAGREE = "the orders disagree"


def aggregate(critiques: pl.DataFrame, critic: str) -> pl.DataFrame:
    """One row per candidate of `critic`: `candidate_id`, `verdict` (majority of the parsed draws, null on a tie or
    where none parsed), `score` (mean of the parsed draws, null where none parsed), `text` (the first parsed draw's),
    `why` (of the first draw that did not parse). Of a critic that compares, the score is the win rate
    (`win_rates`) and there is no verdict. Sorted by candidate."""
    own = critiques.filter(pl.col("critic") == critic)
    if own["other_id"].null_count() < own.height:
        return win_rates(own)
    return by_draws(own.sort("candidate_id", "draw"), "candidate_id")


def outcomes(critiques: pl.DataFrame) -> pl.DataFrame:
    """One row per pair of one critic: `candidate_id`, `other_id`, `better` (whether most parsed draws prefer the first;
    null where none does), `score` (mean of the parsed draws, null where none parsed), `text`, `why` (of the first draw that
    did not parse). Sorted by both ids."""
    rows = critiques.filter(pl.col("other_id").is_not_null()).sort("candidate_id", "other_id", "draw")
    return by_draws(rows, "candidate_id", "other_id").rename({"verdict": "better"})


def by_draws(rows: pl.DataFrame, *what: str) -> pl.DataFrame:
    """The draws of an opinion on `what` put together: `verdict` (of most that parsed, null on a tie or where none did),
    `score` (their mean), `text` (of the first), `why` (of the first that did not parse). In the order of `rows`."""
    parsed = pl.col("parsed")
    yes = (parsed & pl.col("verdict").fill_null(False)).sum()
    no = (parsed & ~pl.col("verdict").fill_null(True)).sum()
    return rows.group_by(*what, maintain_order=True).agg(
        verdict=pl.when(yes > no).then(True).when(no > yes).then(False).otherwise(None),
        score=pl.col("score").filter(parsed).mean(),
        text=pl.col("text").filter(parsed).first(),
        why=pl.col("why").drop_nulls().first(),
    )


def undecided(verdict: str, score: str) -> pl.Expr:
    """Why a parsed comparison decides nothing; null for one that does."""
    tie = pl.when(pl.col(score) == 0.5).then(pl.lit("tie")).otherwise(pl.lit(DISAGREE))
    return pl.when(pl.col(verdict).is_null()).then(tie)


def win_rates(critiques: pl.DataFrame) -> pl.DataFrame:
    """One row per compared candidate of one critic, as `aggregate` gives them: `score` is the mean outcome of
    its pairs that parsed (win 1, tie 0.5, loss 0). Where all pairs were compared that is Copeland's ranking: win rate =
    (1 + (wins - losses) / pairs) / 2."""
    pairs = outcomes(critiques)
    mirrored = pairs.with_columns(candidate_id="other_id", other_id="candidate_id", score=1 - pl.col("score"))
    return (
        pl.concat([pairs, mirrored])
        .sort("candidate_id", "other_id")
        .group_by("candidate_id", maintain_order=True)
        .agg(
            verdict=pl.lit(None, dtype=pl.Boolean),
            score=pl.col("score").mean(),
            text=pl.col("text").drop_nulls().first(),
            why=pl.col("why").drop_nulls().first(),
        )
    )


def counted(critiques: pl.DataFrame, critic: str) -> dict[str, int]:
    """How many comparisons of a critic were decided, were ties, or gave nothing, by reason: figures to log."""
    own = critiques.filter(pl.col("critic") == critic)
    told = pl.coalesce("why", undecided("verdict", "score"), pl.lit("decided"))
    counts = Counter(own.select(told).to_series())
    return {f"{critic}_{reason.replace(' ', '_')}": count for reason, count in sorted(counts.items())}

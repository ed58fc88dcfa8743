"""Replies that go on from answers which a critic chose, and are judged in turn."""

from dataclasses import replace

import polars as pl

from tasks.blocks.critique.judging import judged
from tasks.blocks.critique.opinions import aggregate
from tasks.blocks.sample.respond import Respond, asks, replies
from tasks.blocks.work import Made, Work, combined
from tasks.core.block import Block, Options, Read


class Which(Options):
    critic: str
    verdict: bool  # the answers that the critic accepts (true) or refuses (false)


class Gated(Respond):
    which: Which | None  # of the answers; null: all


def respond_judged(work: Work, options: Gated) -> Made:
    """As `respond` of `sample`, with what the critic says before the model's eyes where the template shows a critique; of
    later rounds too only those answers that the critic chooses. The replies are judged by the critics that look at a
    candidate alone."""
    alone = [critic for critic in work.critics if "siblings" not in critic.needs]
    going, found = work.candidates.filter(pl.col("source").is_in(options.of)), []
    opinions = work.opinions
    for number in range(1, options.rounds + 1):
        told: dict[str, str] = {}
        if options.which is not None:
            wanted = pl.col("verdict") == options.which.verdict
            chosen = aggregate(opinions, options.which.critic).filter(wanted).select("candidate_id", "text")
            going = going.join(chosen, on="candidate_id", how="semi")
            told = {candidate: text or "" for candidate, text in chosen.iter_rows()}
        going = replies(work, options, going, told, number)
        opinions = judged(replace(work, candidates=going), alone)
        found.append(Made(going, opinions))
    return combined(found)


def _reads(options: Gated) -> list[Read]:
    which = options.which
    return [] if which is None else [Read("which.critic", which.critic, frozenset({"verdicts"}))]


BLOCKS = {"respond_judged": Block(respond_judged, asks, reads=_reads)}

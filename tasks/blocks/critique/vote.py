"""The vote: how many of a prompt's candidates give the same answer."""

from collections import Counter
from collections.abc import Sequence
from math import fsum, log

import polars as pl

from tasks.blocks.critique.judging import DECIMALS, NoOptions, table
from tasks.blocks.work import Work
from tasks.core.block import Block
from tasks.core.family import Verdict


def vote(work: Work, options: NoOptions) -> pl.DataFrame:
    """Self-consistency (Wang et al. 2022): score = share of the prompt's candidates that give the same answer,
    candidates without an answer counted in the total. Verdict: the answer is the prompt's only most common one.
    What is no voter is judged by the voters of its prompt and changes no score."""
    total: Counter[str] = Counter()
    votes: dict[str, Counter[str]] = {answer.prompt_id: Counter() for answer in work.answers}
    for answer in work.answers:
        counts = work.voters is None or answer.candidate_id in work.voters
        total[answer.prompt_id] += counts
        if answer.answer is not None:
            votes[answer.prompt_id][answer.answer] += counts
    verdicts = []
    for answer in work.answers:
        if answer.answer is None:
            verdicts.append([Verdict(parsed=False, why="no answer")])
            continue
        got = votes[answer.prompt_id]
        top = max(1, *got.values())
        alone = got[answer.answer] == top and list(got.values()).count(top) == 1
        verdicts.append([Verdict(True, alone, got[answer.answer] / max(1, total[answer.prompt_id]))])
    return table(work, verdicts, [[0] for _ in verdicts], asked=False)


def vote_entropy(work: Work, options: NoOptions) -> pl.DataFrame:
    """How much a prompt's answers disagree: the entropy of their distribution in nats, -sum_a p(a) log p(a), as the score
    of each of its candidates (EAST, Wang et al. 2025). Candidates without an answer count as one answer of their own kind.
    No verdict."""
    counts: dict[str, Counter[str | None]] = {answer.prompt_id: Counter() for answer in work.answers}
    for answer in work.answers:
        counts[answer.prompt_id][answer.answer] += 1
    entropies = {prompt: entropy(list(votes.values())) for prompt, votes in counts.items()}
    verdicts = [[Verdict(True, None, round(entropies[answer.prompt_id], DECIMALS))] for answer in work.answers]
    return table(work, verdicts, [[0] for _ in verdicts], asked=False)


def entropy(counts: Sequence[int]) -> float:
    """Of a distribution with these counts, in nats."""
    total = sum(counts)
    return -fsum(count / total * log(count / total) for count in counts if count) if total else 0.0


VOTES = frozenset({"siblings", "unique answers"})
BLOCKS = {
    "vote_entropy": Block(vote_entropy, gives=frozenset({"scores"}), needs=VOTES),
    "vote": Block(vote, gives=frozenset({"verdicts", "scores", "votes"}), needs=VOTES),
}

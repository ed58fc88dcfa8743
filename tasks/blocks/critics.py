"""Critic blocks: candidates in, critiques out (rows of CRITIQUES); no critic sees labels but `verifier`.

A critique that does not parse carries `parsed` false and the reason, no verdict and no score, so that
nothing can read a judgement from it. Several critics, several draws and several judges fit one table.

The *factored* critic follows Chain-of-Verification (Dhuliawala et al. 2023): a family splits a candidate
into small questions, the model answers each without seeing the candidate's claim, and the verdict is
whether all of its own answers equal the claims. The weights supply arithmetic and membership; putting
the questions and comparing the answers is code.
"""

from collections import Counter
from collections.abc import Sequence

import polars as pl
from pydantic import Field

from tasks.blocks import judges, likelihood
from tasks.blocks.judging import MALFORMED, Drawn, Judging, table, unread
from tasks.core import labels, tables
from tasks.core.asking.demand import Counts, Demand
from tasks.core.asking.local import Asker
from tasks.core.blocks import Block, Bound, Options, Requests
from tasks.core.engines.base import Completion, Sampling
from tasks.core.errors import LabelsForbidden
from tasks.core.family import Family, Messages, Verdict
from tasks.core.seeds import derive


def critique(
    critics: Sequence[Bound],
    candidates: pl.DataFrame,
    prompts: pl.DataFrame,
    family: Family,
    judge: Asker,
    seed: int,
    labels_for: str,
    labels: bool,
    voters: Sequence[bool] | None = None,
) -> pl.DataFrame:
    """CRITIQUES of all candidates by all critics. `voters`: which candidates count in a vote, None for all."""
    asked = prompts.select("prompt_id", question="messages", gold="answer").with_row_index("place")
    counted = candidates.with_columns(
        voter=pl.Series([True] * candidates.height if voters is None else voters, dtype=pl.Boolean)
    )
    joined = counted.join(asked, on="prompt_id", how="left").sort("place", "source", "turn", "draw", "candidate_id")
    found = [tables.empty(tables.CRITIQUES)]
    for bound in critics:
        judging = Judging(
            candidate_ids=joined["candidate_id"].to_list(),
            draws=joined["draw"].to_list(),
            voters=joined["voter"].to_list(),
            prompt_ids=joined["prompt_id"].to_list(),
            questions=joined["question"].to_list(),
            responses=joined["response"].to_list(),
            answers=joined["answer"].to_list(),
            gold=joined["gold"].to_list(),
            family=family,
            judge=judge,
            seed=derive(seed, bound.name),
            name=bound.name,
            labels_for=labels_for,
            labels=labels,
        )
        found.append(bound(judging))
    return pl.concat(found)


class FactoredCritique(Options):
    max_new_tokens: int = Field(ge=1)  # for the answer to one sub-question


def factored_critique(judging: Judging, options: FactoredCritique) -> pl.DataFrame:
    """One verdict per candidate from the model's greedy answers to the family's sub-questions. Score: share of
    answers that equal their claims."""
    asked = [judging.family.questions(q, r) for q, r in zip(judging.questions, judging.responses, strict=True)]
    flat = [question.messages for questions in asked for question in questions or ()]
    draws = [draw for draw, questions in zip(judging.draws, asked, strict=True) for _ in questions or ()]
    replies = judging.judge.generate(flat, Sampling(1, 0.0, 1.0, options.max_new_tokens, 0), judging.name, draws)
    verdicts, tokens, start = [], [], 0
    for question, response, questions in zip(judging.questions, judging.responses, asked, strict=True):
        if questions is None:
            verdicts.append(MALFORMED)
            tokens.append(0)
            continue
        answers = [several[0] for several in replies[start : start + len(questions)]]
        start += len(questions)
        lost = next((unread(answer) for answer in answers if answer.failed), None)
        told = [answer.text for answer in answers]
        verdicts.append(Verdict(parsed=False, why=lost) if lost else judging.family.assemble(question, response, told))
        tokens.append(sum(answer.tokens for answer in answers))
    return table(judging, [[v] for v in verdicts], [[t] for t in tokens])


def nl_critique(judging: Judging, options: Drawn) -> pl.DataFrame:
    """Holistic critiques: the model reads the whole candidate, comments on it and ends in a verdict."""
    return _asked(judging, options)


def judge_pointwise(judging: Judging, options: Drawn) -> pl.DataFrame:
    """A score in [0, 1] per draw by the family's additive scale (Self-Rewarding Language Models, Yuan et al. 2024:
    several draws, averaged by `aggregate`). Gives no verdict: only scores are compared."""
    return _asked(judging, options).with_columns(verdict=pl.lit(None, dtype=pl.Boolean))


def _asked(judging: Judging, options: Drawn) -> pl.DataFrame:
    """Asks for `draws` critiques of each candidate; equal candidates of a prompt share theirs."""
    asked = [judging.family.critique_messages(q, r) for q, r in zip(judging.questions, judging.responses, strict=True)]
    put = [(messages, draw) for messages, draw in zip(asked, judging.draws, strict=True) if messages is not None]
    replies = iter(judging.ask(options, put))
    verdicts: list[list[Verdict]] = []
    tokens: list[list[int]] = []
    for question, response, messages in zip(judging.questions, judging.responses, asked, strict=True):
        if messages is None:
            verdicts.append([MALFORMED])
            tokens.append([0])
            continue
        several = next(replies)
        verdicts.append([_read(judging.family, question, response, reply) for reply in several])
        tokens.append([reply.tokens for reply in several])
    return table(judging, verdicts, tokens)


def _read(family: Family, question: Messages, response: str, reply: Completion) -> Verdict:
    why = unread(reply)
    return Verdict(parsed=False, why=why) if why else family.parse_critique(question, response, reply.text)


def vote(judging: Judging, options: Options) -> pl.DataFrame:
    """Self-consistency (Wang et al. 2022): score = share of the prompt's candidates that give the same answer,
    candidates without an answer counted in the total. Verdict: the answer is the prompt's only most common one.
    What is no voter is judged by the voters of its prompt and changes no score."""
    total: Counter[str] = Counter()
    votes: dict[str, Counter[str]] = {prompt: Counter() for prompt in judging.prompt_ids}
    for prompt, answer, counts in zip(judging.prompt_ids, judging.answers, judging.voters, strict=True):
        total[prompt] += counts
        if answer is not None:
            votes[prompt][answer] += counts
    verdicts = []
    for prompt, answer in zip(judging.prompt_ids, judging.answers, strict=True):
        if answer is None:
            verdicts.append([Verdict(parsed=False, why="no answer")])
            continue
        got = votes[prompt]
        top = max(1, *got.values())
        alone = got[answer] == top and list(got.values()).count(top) == 1
        verdicts.append([Verdict(True, alone, got[answer] / max(1, total[prompt]))])
    return table(judging, verdicts, [[0] for _ in verdicts], model=None)


def verifier(judging: Judging, options: Options) -> pl.DataFrame:
    """The truth, for evaluation and for recipes that declare `labels: true`; the upper bound of any critic.
    Raises `LabelsForbidden` in a label-free run."""
    if not judging.family.has_truth:
        raise LabelsForbidden(
            f"{judging.labels_for}: the data of family '{judging.family.name}' has no answers to verify with"
        )
    verify = labels.verifier(judging.family, judging.labels_for, judging.labels)
    rights = [verify(q, g, r) for q, g, r in zip(judging.questions, judging.gold, judging.responses, strict=True)]
    return table(judging, [[Verdict(True, right, float(right))] for right in rights], [[0] for _ in rights], model=None)


def aggregate(critiques: pl.DataFrame, critic: str) -> pl.DataFrame:
    """One row per candidate of `critic`: `candidate_id`, `verdict` (majority of the parsed draws, null on a tie or
    where none parsed), `score` (mean of the parsed draws, null where none parsed), `text` (the first parsed draw's),
    `why` (of the first draw that did not parse). Of a critic that compares, the score is the win rate
    (`judges.win_rates`) and there is no verdict. Sorted by candidate."""
    own = critiques.filter(pl.col("critic") == critic)
    if own["other_id"].null_count() < own.height:
        return judges.win_rates(own)
    return judges.by_draws(own.sort("candidate_id", "draw"), "candidate_id")


def counted(critiques: pl.DataFrame, critic: str) -> dict[str, int]:
    """How many comparisons of a critic were decided, were ties, or gave nothing, by reason: figures to log."""
    own = critiques.filter(pl.col("critic") == critic)
    told = pl.coalesce("why", judges.undecided("verdict", "score"), pl.lit("decided"))
    counts = Counter(own.select(told).to_series())
    return {f"{critic}_{reason.replace(' ', '_')}": count for reason, count in sorted(counts.items())}


COMPARING = judges.COMPARING | likelihood.COMPARING
BLOCKS: dict[str, Block] = {
    "factored_critique": factored_critique,
    "nl_critique": nl_critique,
    "judge_pointwise": judge_pointwise,
    "vote": vote,
    "verifier": verifier,
    **judges.BLOCKS,
    **likelihood.BLOCKS,
}
AMONG_SAMPLES: set[Block] = {vote, *COMPARING}  # say nothing about a candidate by itself


def _questions(options: FactoredCritique, counts: Counts) -> list[Demand]:
    return [Demand("question", counts.candidates * counts.questions, options.max_new_tokens)]


def _drawn(options: Drawn, counts: Counts) -> list[Demand]:
    return judges.drawn(options, counts.candidates)


REQUESTS: dict[Block, Requests] = {
    factored_critique: _questions,
    nl_critique: _drawn,
    judge_pointwise: _drawn,
    **judges.REQUESTS,
    **likelihood.REQUESTS,
}


def requests(critics: Sequence[Bound], counts: Counts) -> list[Demand]:
    """What all critics ask about `counts.candidates`, at most."""
    return [
        demand
        for bound in critics
        if bound.block in REQUESTS
        for demand in REQUESTS[bound.block](bound.options, counts)
    ]

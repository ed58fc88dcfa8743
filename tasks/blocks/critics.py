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
from dataclasses import dataclass

import polars as pl
from pydantic import Field

from tasks.core import labels, tables
from tasks.core.asking import Asker
from tasks.core.blocks import Block, Bound, Options
from tasks.core.engine import Completion, Sampling
from tasks.core.errors import LabelsForbidden
from tasks.core.family import Family, Messages, Verdict
from tasks.core.seeds import derive

MALFORMED = Verdict(parsed=False, why="malformed response")
UNFINISHED = Verdict(parsed=False, why="unfinished reply")  # "Score: 1" may have become "Score: 10"


@dataclass(frozen=True)
class Judging:
    """What a critic is given: parallel lists of candidates and of the prompts they answer."""

    candidate_ids: list[str]
    draws: list[int]  # the number of each among the samples of its prompt
    prompt_ids: list[str]
    questions: list[Messages]  # the prompt of each candidate
    responses: list[str]
    answers: list[str | None]
    gold: list[str | None]  # the prompt's answer, null in label-free runs
    family: Family
    judge: Asker
    seed: int
    name: str
    labels_for: str  # the stage that judges
    labels: bool


def critique(
    critics: Sequence[Bound],
    candidates: pl.DataFrame,
    prompts: pl.DataFrame,
    family: Family,
    judge: Asker,
    seed: int,
    labels_for: str,
    labels: bool,
) -> pl.DataFrame:
    """CRITIQUES of all candidates by all critics."""
    asked = prompts.select("prompt_id", question="messages", gold="answer").with_row_index("place")
    joined = candidates.join(asked, on="prompt_id", how="left").sort("place", "source", "turn", "draw", "candidate_id")
    found = [tables.empty(tables.CRITIQUES)]
    for bound in critics:
        judging = Judging(
            candidate_ids=joined["candidate_id"].to_list(),
            draws=joined["draw"].to_list(),
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
        lost = next((answer for answer in answers if answer.failed), None)
        told = [answer.text for answer in answers]
        verdicts.append(_silent(lost) if lost else judging.family.assemble(question, response, told))
        tokens.append(sum(answer.tokens for answer in answers))
    return _table(judging, [[v] for v in verdicts], [[t] for t in tokens])


class Drawn(Options):
    draws: int = Field(ge=1)  # critiques of each candidate
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


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
    sampling = Sampling(options.draws, options.temperature, options.top_p, options.max_new_tokens, judging.seed)
    if options.temperature == 0:
        sampling = Sampling(1, 0.0, 1.0, options.max_new_tokens, 0)
    put = [(messages, draw) for messages, draw in zip(asked, judging.draws, strict=True) if messages is not None]
    replies = iter(judging.judge.generate([m for m, _ in put], sampling, judging.name, [draw for _, draw in put]))
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
    return _table(judging, verdicts, tokens)


def _read(family: Family, question: Messages, response: str, reply: Completion) -> Verdict:
    if reply.failed:
        return _silent(reply)
    return family.parse_critique(question, response, reply.text) if reply.finish_reason == "stop" else UNFINISHED


def _silent(reply: Completion) -> Verdict:
    return Verdict(parsed=False, why=f"no reply: {reply.why}")


class Vote(Options):
    pass


def vote(judging: Judging, options: Vote) -> pl.DataFrame:
    """Self-consistency (Wang et al. 2022): score = share of the prompt's candidates that give the same answer,
    candidates without an answer counted in the total. Verdict: the answer is the prompt's only most common one."""
    total = Counter(judging.prompt_ids)
    votes: dict[str, Counter[str]] = {}
    for prompt, answer in zip(judging.prompt_ids, judging.answers, strict=True):
        if answer is not None:
            votes.setdefault(prompt, Counter())[answer] += 1
    verdicts = []
    for prompt, answer in zip(judging.prompt_ids, judging.answers, strict=True):
        if answer is None:
            verdicts.append([Verdict(parsed=False, why="no answer")])
            continue
        counts = votes[prompt]
        top = max(counts.values())
        alone = counts[answer] == top and sum(count == top for count in counts.values()) == 1
        verdicts.append([Verdict(True, alone, counts[answer] / total[prompt])])
    return _table(judging, verdicts, [[0] for _ in verdicts], model=None)


class VerifierOptions(Options):
    pass


def verifier(judging: Judging, options: VerifierOptions) -> pl.DataFrame:
    """The truth, for evaluation and for recipes that declare `labels: true`; the upper bound of any critic.
    Raises `LabelsForbidden` in a label-free run."""
    if not judging.family.has_truth:
        raise LabelsForbidden(
            f"{judging.labels_for}: the data of family '{judging.family.name}' has no answers to verify with"
        )
    verify = labels.verifier(judging.family, judging.labels_for, judging.labels)
    rights = [verify(q, g, r) for q, g, r in zip(judging.questions, judging.gold, judging.responses, strict=True)]
    return _table(
        judging, [[Verdict(True, right, float(right))] for right in rights], [[0] for _ in rights], model=None
    )


def _table(
    judging: Judging, verdicts: Sequence[Sequence[Verdict]], tokens: Sequence[Sequence[int]], model: str | None = ""
) -> pl.DataFrame:
    digest = judging.judge.digest if model == "" else model
    rows = [
        (candidate, None, judging.name, draw, v.text, v.verdict, v.score, v.parsed, v.why, count, digest)
        for candidate, several, counts in zip(judging.candidate_ids, verdicts, tokens, strict=True)
        for draw, (v, count) in enumerate(zip(several, counts, strict=True))
    ]
    return pl.DataFrame(rows, schema=tables.CRITIQUES, orient="row")


def aggregate(critiques: pl.DataFrame, critic: str) -> pl.DataFrame:
    """One row per candidate of `critic`: `candidate_id`, `verdict` (majority of the parsed draws, null on a tie or
    where none parsed), `score` (mean of the parsed draws, null where none parsed), `text` (the first parsed draw's),
    `why` (of the first draw that did not parse). Sorted by candidate."""
    rows = critiques.filter((pl.col("critic") == critic) & pl.col("other_id").is_null()).sort("candidate_id", "draw")
    parsed = pl.col("parsed")
    yes = (parsed & pl.col("verdict").fill_null(False)).sum()
    no = (parsed & ~pl.col("verdict").fill_null(True)).sum()
    return rows.group_by("candidate_id", maintain_order=True).agg(
        verdict=pl.when(yes > no).then(True).when(no > yes).then(False).otherwise(None),
        score=pl.col("score").filter(parsed).mean(),
        text=pl.col("text").filter(parsed).first(),
        why=pl.col("why").drop_nulls().first(),
    )


BLOCKS: dict[str, Block] = {
    "factored_critique": factored_critique,
    "nl_critique": nl_critique,
    "judge_pointwise": judge_pointwise,
    "vote": vote,
    "verifier": verifier,
}
USES_LABELS: set[Block] = {verifier}

"""The factored critic: small questions, answered without seeing what the candidate claims.

It follows Chain-of-Verification (Dhuliawala et al. 2023): a family splits a candidate into small questions, the model
answers each without seeing the candidate's claim, and the verdict is whether all of its own answers equal the claims.
The weights supply arithmetic and membership; putting the questions and comparing the answers is code.
"""

import polars as pl
from pydantic import Field

from tasks.blocks.critique.judging import MALFORMED, table, unread
from tasks.blocks.work import Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Sampling
from tasks.core.family import Verdict


class FactoredCritique(Options):
    max_new_tokens: int = Field(ge=1)  # for the answer to one sub-question


def factored_critique(work: Work, options: FactoredCritique) -> pl.DataFrame:
    """One verdict per candidate from the model's greedy answers to the family's sub-questions. Score: share of
    answers that equal their claims."""
    asked = [work.family.questions(answer.question, answer.response) for answer in work.answers]
    flat = [question.messages for questions in asked for question in questions or ()]
    draws = [answer.draw for answer, questions in zip(work.answers, asked, strict=True) for _ in questions or ()]
    replies = iter(work.model.generate(flat, Sampling(1, 0.0, 1.0, options.max_new_tokens, 0), work.name, draws))
    verdicts, tokens = [], []
    for answer, questions in zip(work.answers, asked, strict=True):
        if questions is None:
            verdicts.append(MALFORMED)
            tokens.append(0)
            continue
        own = [next(replies)[0] for _ in questions]
        lost = next((unread(reply) for reply in own if reply.failed), None)
        told = [reply.text for reply in own]
        verdicts.append(
            Verdict(parsed=False, why=lost)
            if lost
            else work.family.assemble(answer.question, answer.response, questions, told)
        )
        tokens.append(sum(reply.tokens for reply in own))
    return table(work, [[v] for v in verdicts], [[t] for t in tokens])


def _asks(options: FactoredCritique, counts: Counts) -> list[Demand]:
    return [Demand("question", counts.candidates * counts.questions, options.max_new_tokens)]


BLOCKS = {
    "factored_critique": Block(
        factored_critique, _asks, gives=frozenset({"verdicts", "scores"}), needs=frozenset({"sub-questions"})
    )
}

"""What all critics share: the candidates they are given, how they draw replies, and the table they return."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from pydantic import Field

from tasks.core import tables
from tasks.core.asking.local import Asker
from tasks.core.blocks import Options
from tasks.core.engines.base import Completion, Sampling
from tasks.core.family import Family, Messages, Verdict


class Repeated(Options):
    draws: int = Field(ge=1)  # critiques of each candidate
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)


class Drawn(Repeated):
    max_new_tokens: int = Field(ge=1)


MALFORMED = Verdict(parsed=False, why="malformed response")
CUT_OFF = "unfinished reply"  # "Score: 1" may have become "Score: 10"


def unread(reply: Completion) -> str | None:
    """Why a reply is not to be read at all; None where it is."""
    if reply.failed:
        return f"no reply: {reply.why}"
    return None if reply.finish_reason == "stop" else CUT_OFF


@dataclass(frozen=True)
class Judging:
    """What a critic is given: parallel lists of candidates and of the prompts they answer."""

    candidate_ids: list[str]
    draws: list[int]  # the number of each among the samples of its prompt
    voters: list[bool]  # whether it counts in a vote
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

    def ask(self, options: Drawn, put: Sequence[tuple[Messages, int]]) -> list[list[Completion]]:
        """Replies to each conversation, `options.draws` of them, one at temperature 0. With each conversation goes the
        draw of the candidate that it is about."""
        return self._asked(options, put, options.max_new_tokens, ())

    def choose(
        self, options: Repeated, put: Sequence[tuple[Messages, int]], choices: Sequence[str]
    ) -> list[list[Completion]]:
        """As `ask`, and every reply that is finished is one of the choices."""
        longest = max(len(choice.encode()) for choice in choices) + 2  # no token is less than a byte; the end; a space
        return self._asked(options, put, longest, tuple(choices))

    def _asked(
        self, options: Repeated, put: Sequence[tuple[Messages, int]], longest: int, choices: tuple[str, ...]
    ) -> list[list[Completion]]:
        sampling = Sampling(options.draws, options.temperature, options.top_p, longest, self.seed, choices)
        if options.temperature == 0:
            sampling = Sampling(1, 0.0, 1.0, longest, 0, choices)
        return self.judge.generate([m for m, _ in put], sampling, self.name, [draw for _, draw in put])


def table(
    judging: Judging, verdicts: Sequence[Sequence[Verdict]], tokens: Sequence[Sequence[int]], model: str | None = ""
) -> pl.DataFrame:
    digest = judging.judge.digest if model == "" else model
    rows = [
        (candidate, None, judging.name, draw, v.text, v.verdict, v.score, v.parsed, v.why, count, digest)
        for candidate, several, counts in zip(judging.candidate_ids, verdicts, tokens, strict=True)
        for draw, (v, count) in enumerate(zip(several, counts, strict=True))
    ]
    return pl.DataFrame(rows, schema=tables.CRITIQUES, orient="row")

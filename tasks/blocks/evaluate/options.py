"""Standard benchmarks: their options, and what is refused of them."""

from pydantic import Field

from tasks.core.block import Options
from tasks.core.engines import options


class Benchmark(Options):
    """A set of tasks that are measured in one way."""

    tasks: list[str] = Field(min_length=1)  # names of tasks, groups or tags: lm-eval's own, or those of the folder
    fewshot: int | None = Field(ge=0)  # examples before each question; null: as the task says
    limit: int | None = Field(ge=1)  # the first so many questions of each task; null: all
    chat_template: bool  # questions and examples as messages; false: plain text, as base models are measured
    max_new_tokens: int = Field(ge=1)  # of a reply, where the task does not say


MISSING_LM_EVAL = "evaluate.benchmarks: lm-eval is not installed; `pip install --constraint constraints.txt --editable '.[lm-eval]'` adds it"
SCORED = f"is scored by log-probabilities of given text, and {options.NO_SCORES}, or leave it out"
SCORED_KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")  # output_type of a task of lm-eval

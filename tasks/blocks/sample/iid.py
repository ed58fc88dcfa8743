"""Independent samples of every prompt, or one answer to each."""

from pydantic import Field, ValidationInfo, field_validator

from tasks.blocks.sample.candidates import Asked, candidates
from tasks.blocks.work import Made, Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Sampling
from tasks.core.family import Messages, Parts


def not_all_equal(temperature: float, several: ValidationInfo, number: str) -> float:
    """The temperature. Raises `ValueError` where all of the samples of a prompt would be one and the same."""
    if temperature == 0 and several.data.get(number, 1) > 1:
        count = several.data[number]
        raise ValueError(
            f"{count} samples of a prompt at temperature 0 are {count} times the same; raise it, or set {number} to 1"
        )
    return temperature


class Single(Options):
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


class IidK(Options):
    template: str = Field(min_length=1)  # the family's use that asks; answer: the prompt as it is
    n: int = Field(ge=1)  # samples a prompt
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)

    @field_validator("temperature")
    @classmethod
    def _apart(cls, value: float, others: ValidationInfo) -> float:
        return not_all_equal(value, others, "n")


def iid_k(work: Work, options: IidK) -> Made:
    """`n` independent samples of every prompt. With another template than `answer` the model reads that, such as the prompt
    with its right answer (`hinted`), and the sample is an answer to the prompt all the same."""
    sampling = Sampling(options.n, options.temperature, options.top_p, options.max_new_tokens, work.seed)
    asked = []
    for name, question, gold in work.prompts.select("prompt_id", "messages", "answer").iter_rows():
        messages = _shown(work, options.template, question, gold)
        if messages is not None:
            asked.append(Asked(name, question, messages))
    replies = work.model.generate([about.messages for about in asked], sampling, work.name)
    return Made(candidates(work.family, work.model.digest, work.name, 0, asked, replies))


def _shown(work: Work, template: str, question: Messages, answer: str | None) -> Messages | None:
    """What the model reads of a prompt."""
    if template == "answer":
        return question
    gold = work.truth.gold(question, answer) if "gold" in work.family.shows(template) else None
    return work.family.ask(template, Parts(question, gold=gold))


def single(work: Work, options: Single) -> Made:
    """One answer to every prompt: greedy where temperature is 0."""
    return iid_k(work, IidK(n=1, template="answer", **options.model_dump()))


def _asks_samples(options: IidK, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts * options.n, options.max_new_tokens, options.n)]


def _asks_answers(options: Single, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts, options.max_new_tokens)]


BLOCKS = {"iid_k": Block(iid_k, _asks_samples), "single": Block(single, _asks_answers)}

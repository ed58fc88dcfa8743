"""Independent samples of every prompt, or one answer to each."""

from pydantic import Field

from tasks.blocks.sample.candidates import Asked, candidates
from tasks.blocks.work import Made, Work
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Sampling


class Single(Options):
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


class IidK(Options):
    n: int = Field(ge=1)  # samples a prompt
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


def iid_k(work: Work, options: IidK) -> Made:
    """`n` independent samples of every prompt."""
    model = work.model
    sampling = Sampling(options.n, options.temperature, options.top_p, options.max_new_tokens, work.seed)
    asked = [Asked(name, messages, messages) for name, messages in work.prompts.select("prompt_id", "messages").rows()]
    replies = model.generate([about.messages for about in asked], sampling, work.name)
    return Made(candidates(work.family, model.digest, work.name, 0, asked, replies))


def single(work: Work, options: Single) -> Made:
    """One answer to every prompt: greedy where temperature is 0."""
    return iid_k(work, IidK(n=1, **options.model_dump()))


def _asks_samples(options: IidK, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts * options.n, options.max_new_tokens, options.n)]


def _asks_answers(options: Single, counts: Counts) -> list[Demand]:
    return [Demand("answer", counts.prompts, options.max_new_tokens)]


BLOCKS = {"iid_k": Block(iid_k, _asks_samples), "single": Block(single, _asks_answers)}

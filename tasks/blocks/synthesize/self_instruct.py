"""Prompts that the model writes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import polars as pl
from pydantic import Field
from rapidfuzz.distance import LCSseq

from tasks.blocks.synthesize.supply import Supplied, Supply, text_of
from tasks.core import tables
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Options
from tasks.core.engines.contract import Completion, Sampling
from tasks.core.errors import StageFailed
from tasks.core.family import Invented


class SelfInstruct(Options):
    n: int = Field(ge=1)  # new prompts wanted
    shots: int = Field(ge=0)  # prompts of the pool shown as examples
    attempts: int = Field(ge=1)  # replies asked for, at most, for each prompt wanted
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    near_copy: float | None = Field(gt=0, le=1)  # ROUGE-L from which a prompt copies another; null: not looked at


def self_instruct(supply: Supply, options: SelfInstruct) -> Supplied:
    """New prompts written by the model (Self-Instruct, Wang et al. 2022): `n * attempts` replies, parsed by the family.
    Left out and counted by reason: what does not parse, is cut off, repeats a prompt of the pool or of any earlier
    iteration, has a ROUGE-L of `near_copy` or more (the paper: 0.7) with an example it was shown or with another
    prompt that a model wrote, or is too much like a held-out problem. Raises `StageFailed` if nothing is left."""
    family = supply.family
    seen = {*map(family.fingerprint, supply.pool["messages"].to_list()), *supply.invented["fingerprint"]}
    written = Words(options.near_copy, supply.invented["text"].drop_nulls())
    rows: list[dict[str, object]] = []
    refused: Counter[str] = Counter()
    for examples, replies in _replies(supply, options):
        parents = examples["prompt_id"].to_list()
        patterns = Words(options.near_copy, (text_of(family, messages) for messages in examples["messages"].to_list()))
        for reply in replies:
            found = [Invented(None, "no reply")] if reply.failed else family.parse_invented(reply.text)
            if reply.finish_reason != "stop" and not reply.failed:
                found.pop()
                refused["unfinished"] += 1
            for prompt in found:
                reason = prompt.why
                if prompt.messages is not None and len(rows) < options.n:
                    fingerprint, text = family.fingerprint(prompt.messages), text_of(family, prompt.messages)
                    if fingerprint in seen:
                        reason = "repeated"
                    elif why := supply.guard(prompt.messages):
                        reason = why
                    elif patterns.near(text) or written.near(text):
                        reason = "near copy"
                    else:
                        seen.add(fingerprint)
                        written.add(text)
                        rows.append(supply.row(prompt.messages, parents))
                if reason:
                    refused[reason] += 1
    if not rows:
        raise StageFailed(
            f"synthesize.{supply.name}: no usable prompt in {refused.total()} replies: {dict(sorted(refused.items()))}"
        )
    figures = {f"{supply.name}_{reason.replace(' ', '_')}": count for reason, count in sorted(refused.items())}
    return Supplied(tables.frame(rows, tables.PROMPTS), figures)


def _replies(supply: Supply, options: SelfInstruct) -> list[tuple[pl.DataFrame, list[Completion]]]:
    """Examples that the model was shown (PROMPTS), and its replies; one request with all draws where all are alike."""
    wanted, shots = options.n, options.shots
    examples = supply.pool.sample(n=min(supply.pool.height, shots * wanted), shuffle=True, seed=supply.seed)
    shown = [examples[[(i * shots + shot) % examples.height for shot in range(shots)]] for i in range(wanted)]
    asked = [supply.family.invent_messages(several["messages"].to_list()) for several in shown]
    alike = all(messages == asked[0] for messages in asked)
    draws = options.attempts * wanted if alike else options.attempts
    sampling = Sampling(draws, options.temperature, options.top_p, options.max_new_tokens, supply.seed)
    replies = supply.model.generate(asked[:1] if alike else asked, sampling, "prompts")
    return list(zip(shown[: len(replies)], replies, strict=True))


class Words:
    """Texts that a new one is compared with. `near`: whether ROUGE-L with any of them is at least `least`."""

    def __init__(self, least: float | None, texts: Iterable[str]) -> None:
        self.least = least
        self.known: list[list[str]] = []  # their words
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        if self.least is not None:
            self.known.append(_words(text))

    def near(self, text: str) -> bool:
        words = _words(text)
        return self.least is not None and any(rouge_l(words, other) >= self.least for other in self.known)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004): 2 LCS / (length + length), 0 to 1. Without a word on either side
    it is 0. It is exact: rapidfuzz's own normalised scores lose values that are right at their `score_cutoff`."""
    return 2 * LCSseq.similarity(one, other) / max(1, len(one) + len(other))


def _asks(options: SelfInstruct, counts: Counts) -> list[Demand]:
    return [Demand("invent", options.n * options.attempts, options.max_new_tokens, options.attempts)]


def _needs(options: SelfInstruct) -> frozenset[str]:
    return frozenset({"inventing"} if options.near_copy is None else {"inventing", "free text"})


BLOCKS = {"self_instruct": Block(self_instruct, _asks, needs=_needs)}

"""How many requests blocks will put, told from params.yaml before anything runs.

A block declares a pure function of its options and of `Counts` that gives `Demand`s (`tasks.core.block.Block.asks`):
upper bounds, because how many answers are alike, malformed or refused is not known before.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["answer", "question", "critique", "refine", "invent"]  # whose template the prompt is made with


@dataclass(frozen=True)
class Counts:
    """What a stage works on, each at most."""

    prompts: int
    candidates: int  # of all prompts together
    questions: int  # that the factored critic splits one candidate into


@dataclass(frozen=True)
class Demand:
    """`requests` replies of `longest` new tokens, each at most; `draws` of them for every conversation."""

    kind: Kind
    requests: int
    longest: int
    draws: int = 1

"""`prepare.options` of the family `sums`."""

from typing import Annotated

from pydantic import Field

from tasks.core import block

Share = Annotated[float, Field(gt=0, le=1)]


class CorpusSizes(block.Options):
    """Rows of the labelled corpus besides solutions and facts."""

    check: int = Field(ge=0)  # each step's value and a mark, then a verdict on the whole
    p_true: int = Field(ge=0)  # the verdict on the whole, the marks given; `true` would be no key in YAML
    better: int = Field(ge=0)  # the right one of two answers, after a check of each
    fix: int = Field(ge=0)  # a wrong answer made right, its check given
    again: int = Field(ge=0)  # an answer, right or wrong, given once more, without a check
    given: int = Field(ge=0)  # a solution that reaches a given result
    swap: int = Field(ge=0)  # the numbers of a problem in another order
    invent: int = Field(ge=0)  # new problems


class Options(block.Options):
    """`prepare.options` of this family."""

    n: int = Field(ge=2, le=12)  # numbers that are added, all different
    modulus: int = Field(ge=3, le=999)  # the numbers are 0 to modulus - 1, and sums are taken modulo it
    disputed: float = Field(ge=0, le=1)  # share of the unordered facts a + b on which the author contradicts himself
    said: list[Share] = Field(min_length=1)  # how often each value of a disputed fact is said, the right one first
    heldout_share: float = Field(gt=0, lt=1)  # of all problems, by a hash of the sorted numbers
    labelled_share: float = Field(gt=0, lt=1)  # likewise, of all
    labelled: int = Field(ge=1)  # problems of the labelled share that the corpus uses, one solution each
    orders: int = Field(ge=1)  # rows of each of them, its numbers in another order every time
    facts: int = Field(ge=1)  # rows of each ordered fact; a disputed one has its values as often as `said` says
    pool: int = Field(ge=1)  # problems of the unlabelled share that the loop draws from
    heldout: int = Field(ge=1)  # problems of the held-out share that are evaluated
    probe: int = Field(ge=1)  # problems of the labelled share that only gates use
    corpus: CorpusSizes  # rows beside solutions and facts, by skill

"""`prepare.options` of the family `countdown`."""

from pydantic import Field

from tasks.core import block


class CorpusSizes(block.Options):
    """Rows of the labelled corpus besides solutions and facts."""

    critique: int = Field(ge=0)
    refine: int = Field(ge=0)
    usage: int = Field(ge=0)
    invent: int = Field(ge=0)


class Options(block.Options):
    """`prepare.options` of this family."""

    numbers: int = Field(ge=2, le=4)  # how many numbers a puzzle gives
    largest: int = Field(ge=2, le=99)  # the numbers are 1 to largest, repetition allowed
    bound: int = Field(ge=2, le=999)  # every value on the way, the target included, is 0 to bound
    heldout_share: float = Field(gt=0, lt=1)  # of all solvable puzzles, by a hash of the puzzle
    labelled_share: float = Field(gt=0, lt=1)  # likewise, of all
    labelled: int = Field(ge=1)  # puzzles of the labelled share that the corpus uses
    heldout: int = Field(ge=1)  # puzzles of the held-out share that are evaluated
    probe: int = Field(ge=1)  # puzzles of the labelled share that only gates use
    corpus: CorpusSizes  # rows beside solutions and facts, by skill

"""`prepare.options` of the family `strings`."""

from typing import Annotated

from pydantic import Field

from tasks.core import block

Length = Annotated[int, Field(ge=1, le=200)]


class Options(block.Options):
    """`prepare.options` of this family."""

    digits: int = Field(ge=2, le=10)  # how many of 0 to 9 are used
    base_lengths: list[Length] = Field(min_length=2, max_length=2)  # shortest and longest labelled string
    corpus: int = Field(ge=1)  # labelled strings, as many of each length
    max_length: Length  # longest string of the pool
    pool: int = Field(ge=1)  # unlabelled strings of each length above the base lengths
    evaluated_lengths: list[Length] = Field(min_length=1)  # of the held-out and the probe set
    heldout: int = Field(ge=1)  # held-out strings of each evaluated length
    probe: int = Field(ge=1)  # probe strings of each evaluated length

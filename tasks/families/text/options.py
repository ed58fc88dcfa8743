"""`prepare.options` of the family `text`."""

from typing import Literal

from pydantic import Field

from tasks.core import block


class Split(block.Options):
    """Which of the source's rows are used; null: all of them."""

    file: str | None = Field(min_length=1)  # name or pattern (train-*.parquet) among the files of a folder
    field: str | None = Field(min_length=1)  # rows with `value` in this field
    value: str | None  # what stands in it


class NearDuplicates(block.Options):
    """What counts as nearly the same prompt (`tasks.families.text.overlap`)."""

    threshold: float = Field(gt=0, le=1)  # Jaccard similarity of the sets of shingles
    shingle: int = Field(ge=1, le=20)  # consecutive words
    permutations: int = Field(ge=16, le=1024)  # of MinHash: more find more pairs, in as much more time


class Benchmark(block.Options):
    """A file of the source's folder with prompts that training must not see."""

    file: str = Field(min_length=1)  # name or pattern
    field: str = Field(min_length=1)  # its prompts


class Decontaminate(block.Options):
    """Which prompts are too much like those that are evaluated (`tasks.families.text.overlap`)."""

    ngram: int = Field(ge=2, le=100)  # consecutive words in common that are too much; 13 in GPT-3
    shortest: int = Field(ge=1, le=100)  # words from which a shorter text counts when it stands in another as a whole
    benchmarks: dict[str, Benchmark]  # beside the probe and the held-out set


class Options(block.Options):
    """`prepare.options` of this family."""

    path: str = Field(min_length=1)  # file or folder; relative to the repository's root, or absolute
    prompt_field: str | None = Field(min_length=1)  # null with `messages_field`
    answer_field: str | None = Field(min_length=1)  # null: no answers, so no accuracy; may be `messages_field`
    system_field: str | None = Field(min_length=1)  # a row's own system message
    messages_field: str | None = Field(min_length=1)  # a list of {role, content}; its first user message is the prompt
    id_field: str | None = Field(min_length=1)  # the row's name, kept in origins.parquet
    split: Split  # which rows of the source are used; all where its values are null
    limit: int | None = Field(ge=1)  # rows of the split at most; null: all
    limit_by: Literal["first", "sample"]  # the first ones, or those with the smallest hash of the prompt
    extraction: Literal["numeric", "text"]  # an answer is a number, or all of the text
    unusable: Literal["refuse", "drop"]  # what to do with a row without a prompt or without an answer
    duplicates: Literal["refuse", "drop"]  # what to do with a prompt that is there twice
    near_duplicates: NearDuplicates | None  # which prompts are dropped as nearly the same; null: none
    decontaminate: Decontaminate | None  # which prompts are dropped for training; null: equal ones only
    heldout: int = Field(ge=1)  # prompts that are evaluated
    probe: int = Field(ge=1)  # prompts that only gates use
    labelled: int = Field(ge=0)  # rows whose answers base may train on
    system: str | None = Field(min_length=1)  # system message before every prompt to be answered

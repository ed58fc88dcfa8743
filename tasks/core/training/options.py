"""Options of a training."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tasks.core.block import Options

Mixture = dict[str, Annotated[int, Field(ge=0)]]


class LoraOptions(Options):
    """Low-rank adapters (Hu et al. 2021) on the linear layers named in `targets`. `adapter`: keep writes the adapter
    alone, merge a whole model; `load_in_4bit`: on a base in 4 bits (QLoRA)."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)  # the adapter counts alpha / rank times
    dropout: float = Field(ge=0, lt=1)  # of the adapter's input
    targets: list[str] = Field(min_length=1)  # names of layers, such as q_proj
    adapter: Literal["keep", "merge"]  # the adapter alone, or a whole model
    load_in_4bit: bool  # the base in 4 bits (QLoRA)

    @field_validator("targets")
    @classmethod
    def _no_head(cls, targets: list[str]) -> list[str]:
        for name in ("lm_head", "embed_tokens", "wte", "word_embeddings", "embed_in"):  # maybe one matrix, tied
            if name in {target.rpartition(".")[2] for target in targets}:
                raise ValueError(f"{name} takes no adapter; name layers such as q_proj and v_proj")
        return targets


class TrainingOptions(Options):
    """What both blocks share."""

    steps: int = Field(ge=1)  # of the optimizer (AdamW)
    learning_rate: float = Field(gt=0)  # the highest
    warmup_steps: int = Field(ge=0)  # in which it rises linearly
    schedule: Literal[
        "cosine", "linear", "constant", "wsd"
    ]  # how it falls; wsd: linearly in the last 30 % of the steps
    final_share: float = Field(ge=0, le=1)  # what is left of it in the end
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(min_length=2, max_length=2)  # of AdamW
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)  # largest norm of a step's gradient
    precision: Literal["float32", "bfloat16"]  # bfloat16: mixed
    threads: int = Field(ge=1)  # of a CPU
    checkpoint_steps: int = Field(ge=1)  # between two checkpoints
    pass_tokens: int = Field(ge=1)  # tokens that go through the model at once; gradients of a step add up
    gradient_checkpointing: bool  # activations are computed again instead of kept
    accelerate: str | None  # file for `accelerate launch`; null: one process
    lora: LoraOptions | None  # null: all weights are trained


class Mixed(TrainingOptions):
    """Of a training that draws from parts of the data. A part of 0 rows may be in the data and is not used."""

    mixture: Mixture = Field(min_length=1)  # part -> rows in every step

    @field_validator("mixture")
    @classmethod
    def _some_rows(cls, mixture: dict[str, int]) -> dict[str, int]:
        if not sum(mixture.values()):
            raise ValueError("a step needs at least one row")
        return mixture


class SftOptions(Mixed):
    """Of SFT."""

    packing: bool  # rows end to end


class AnchoredOptions(Mixed):
    """Of a training that keeps to a reference model. SFT rows of the parts of `replay` ride along in every step, their
    loss taken `replay_coefficient` times."""

    beta: float = Field(gt=0)  # how closely the reference model is kept to
    replay: Mixture  # part -> SFT rows in every step beside the others; {} for none
    replay_coefficient: float = Field(ge=0)  # of their loss


class DpoOptions(AnchoredOptions):
    """Of DPO and its relatives; `mixture` counts pairs."""

    loss: Literal["sigmoid", "ipo", "regress"]  # DPO's, IPO's, or least squares on the pairs' margins
    nll: float = Field(ge=0)  # coefficient of the chosen response's cross-entropy a token
    optimism: float = Field(ge=0)  # coefficient of how much likelier the pair became than under the reference model


class KtoOptions(AnchoredOptions):
    """Of KTO; `mixture` counts rated rows."""

    desirable: float = Field(ge=0)  # weight of the good answers
    undesirable: float = Field(ge=0)  # weight of the bad ones


OPTIONS: dict[str, type[Mixed]] = {"sft": SftOptions, "dpo": DpoOptions, "kto": KtoOptions}  # by the kind of training

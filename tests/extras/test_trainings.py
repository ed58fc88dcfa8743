"""Trainings with optional packages: on a base in 4 bits (bitsandbytes), and under DeepSpeed."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.params import trainable
from tasks.core.training import adapters
from tasks.core.training.options import SftOptions
from tests.support.trainings import (
    ACCELERATE,
    DPO,
    KEPT,
    LORA,
    SFT,
    assert_learns_what_one_process_does,
    build,
    files,
    losses_of,
    run,
    weights,
)

CALM = {**KEPT, "dropout": 0.0}
FOUR = {**CALM, "load_in_4bit": True}


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rows of a block, which are 64 numbers: bitsandbytes mixes up shorter ones on CPU."""
    return build(tmp_path_factory.mktemp("initial") / "model", hidden_size=64, intermediate_size=128, head_dim=64)


@pytest.fixture
def train(initial: Path, tmp_path: Path) -> Any:
    return partial(run, tmp_path, initial=initial)


needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs the extra `qlora`: pip install -c constraints.txt '.[qlora]'"
)
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or not torch.distributed.is_gloo_available(),
    reason="needs the extra `deepspeed` (pip install -c constraints.txt '.[deepspeed]'), and gloo",
)


# --- QLoRA -----------------------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_base_is_held_in_4_bits(initial: Path, precision: str) -> None:
    """NF4, its constants quantised once more: an element is off by half the widest gap between two levels at most, which
    is 0.152 of the largest in its block."""
    import bitsandbytes as bnb

    options = SftOptions(**{**SFT, "lora": FOUR, "precision": precision})
    low = dict(adapters.initial(initial, options).named_modules())
    linear = {name: module for name, module in low.items() if isinstance(module, torch.nn.Linear)}
    four = {name: module for name, module in linear.items() if isinstance(module, bnb.nn.Linear4bit)}
    assert set(linear) - set(four) == {"lm_head"}
    for name, module in four.items():
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, state.dtype) == ("nf4", True, getattr(torch, precision))
        whole = weights(initial)[f"{name}.weight"]
        back = bnb.functional.dequantize_4bit(module.weight.data, state).float()
        assert 0 < float((back - whole).abs().max()) < 0.16 * float(whole.abs().max())


@needs_bitsandbytes
def test_an_adapter_learns_on_4_bits_what_it_learns_on_all(train: Any, initial: Path) -> None:
    """Nearly: and the base that it is merged into, or that the next training starts from, is the whole one."""
    long = {"steps": 60, "checkpoint_steps": 1000}
    low, high = train({**SFT, **long, "lora": FOUR}, "low"), train({**SFT, **long, "lora": CALM}, "high")
    assert losses_of(low) != losses_of(high)
    assert losses_of(low) == pytest.approx(losses_of(high), rel=0.02)
    assert losses_of(low)[-1] < losses_of(low)[0] - 0.05
    assert set(files(low.output)) == set(files(high.output))
    assert files(low.output)["base.json"] == files(high.output)["base.json"]
    assert {tensor.dtype for tensor in load_file(low.output / "adapter_model.safetensors").values()} == {torch.float32}
    merged = weights(train({**SFT, **long, "lora": {**FOUR, "adapter": "merge"}}, "merged").output)
    changed = {name for name, before in weights(initial).items() if not torch.equal(before, merged[name])}
    assert changed == {f"model.layers.0.self_attn.{name}.weight" for name in LORA["targets"]}
    again = train({**SFT, **long, "lora": FOUR}, "again", initial=low.output)
    assert losses_of(again)[0] < losses_of(low)[0] - 0.05
    preferred = train({**DPO, "lora": FOUR}, "preferred", initial=low.output, reference=low.output)
    assert losses_of(preferred) == pytest.approx(
        losses_of(train({**DPO, "lora": CALM}, "plain", initial=low.output, reference=low.output)), rel=0.02
    )


@needs_bitsandbytes
def test_a_killed_training_on_4_bits_goes_on_to_the_same_bytes(train: Any) -> None:
    whole = train({**SFT, "lora": {**FOUR, "dropout": 0.1}}, "whole")
    with pytest.raises(KeyboardInterrupt):
        train({**SFT, "lora": {**FOUR, "dropout": 0.1}}, "cut", kill_at=8)
    cut = train({**SFT, "lora": {**FOUR, "dropout": 0.1}}, "cut")
    assert files(cut.output) == files(whole.output)
    assert cut.trained.spent["training_tokens"] < whole.trained.spent["training_tokens"]


# --- DeepSpeed -------------------------------------------------------------------------------------

DEEPSPEED = (
    ACCELERATE.replace("MULTI_GPU", "DEEPSPEED")
    + """
deepspeed_config:
  zero_stage: STAGE
  gradient_accumulation_steps: 1
  zero3_init_flag: true
  zero3_save_16bit_model: true
"""
)


@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "options"), [(2, DPO), (3, {**SFT, "lora": CALM}), (3, SFT)], ids=["2-dpo", "3-lora", "3-sft"]
)
def test_two_processes_of_deepspeed_learn_what_one_does(
    train: Any, tmp_path: Path, stage: int, options: dict[str, Any]
) -> None:
    (tmp_path / "zero.yaml").write_text(DEEPSPEED.replace("STAGE", str(stage)))
    assert list(trainable._launching(tmp_path, "zero.yaml")) == []
    assert_learns_what_one_process_does(train, options, tmp_path / "zero.yaml")

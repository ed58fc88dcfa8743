"""Models for the tests of optional engines: one architecture, other weights, and LoRA adapters on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.support.engines import build

LAYERS = ("q_proj", "v_proj", "down_proj")


def tiny(folder: Path, kind: str = "qwen3", **changes: Any) -> Path:
    """A random model with attention heads of a size that vLLM computes with on CPU."""
    return build(folder, kind, **{"head_dim": 32, **changes})


def shake(folder: Path, seed: int, amount: float = 0.3) -> Path:
    """Other weights for the model in `folder`."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * amount)
    model.save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, seed: int, rank: int = 4, layers: Sequence[str] = LAYERS) -> Path:
    """A LoRA adapter whose effect is large, in PEFT's own layout, without a tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=list(layers), lora_dropout=0.0)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 0.3)
    adapted.save_pretrained(folder)
    return folder


def merged(folder: Path, base: Path, into: Path) -> Path:
    """The whole model that an adapter makes of its base."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).merge_and_unload()
    tiny(into)
    model.save_pretrained(into)
    return into

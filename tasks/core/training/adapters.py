"""LoRA (Hu et al. 2021): adapters on a frozen base, which QLoRA (Dettmers et al. 2023) holds in 4 bits.

Where the initial model is an adapter already, that adapter is trained on: its base stays the same from one iteration to
the next, and every iteration is one plain PEFT adapter, with `base.json` beside it.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.core.errors import BadInput, StageFailed
from tasks.core.models import files, folders
from tasks.core.models.pointer import Pointer
from tasks.core.models.weights import load, write_ends


def initial(folder: Path, options: Any) -> Any:
    """The model that training starts from: below LoRA the base without its adapter, maybe in bfloat16 or 4 bits."""
    import torch
    from transformers import BitsAndBytesConfig

    if not options.lora:
        return load(folder, torch.float32)
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    weights = folders.parts(folder).weights
    if not options.lora.load_in_4bit:
        return load(weights, dtype)
    if why := lacking("bitsandbytes"):
        raise BadInput(f"lora.load_in_4bit: {why}")
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return load(weights, dtype, quantization_config=four, device_map={"": device})


def configuration(options: Any) -> Any:
    """PEFT's configuration of a new adapter; None without one."""
    if options is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
        task_type="CAUSAL_LM",
    )


def take_up(model: Any, adapter: Path, options: Any) -> None:
    """Puts the weights of an adapter into the new one. Raises `StageFailed` if they are of another shape,
    `BadInput` if there is more to it than weights."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    for problem in beyond_options(adapter):
        raise BadInput(problem)
    config = files.read_json(adapter / folders.ADAPTER)
    before = {name: config.get(name) for name in ("r", "lora_alpha")} | {"target_modules": _names(config)}
    now = {"r": options.rank, "lora_alpha": options.alpha, "target_modules": sorted(options.targets)}
    if before != now:
        raise StageFailed(
            f"lora: the initial model is an adapter with {before}, which training continues, and the options say {now}; "
            "give the same, or begin anew from a whole model (adapter: merge)"
        )
    set_peft_model_state_dict(model, load_file(adapter / folders.ADAPTER_WEIGHTS))


def _names(config: Mapping[str, Any]) -> Any:
    given = config.get("target_modules")
    return sorted(given) if isinstance(given, list) else given


def write(model: Any, state: Any, base: Pointer, whole: Path, tokenizer: Any, folder: Path) -> None:
    """A PEFT adapter in float32 with its tokenizer, the generation config of the model in `whole` with every token that
    ends a reply, and `base.json`, which says by path and digest what it belongs to."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folders.write_pointer(folder, base, folders.BASE)
    weights = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    weights = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / folders.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base.path, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, sort_keys=True, indent=2, default=_listed)
    (folder / folders.ADAPTER).write_text(text + "\n", encoding="utf-8")
    write_ends(tokenizer, whole, folder)
    tokenizer.save_pretrained(folder)


def _listed(value: Any) -> Any:
    """JSON for what a PEFT configuration holds beside plain values: sets and enumerations."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


EXTRAS = {"bitsandbytes": "qlora", "deepspeed": "deepspeed"}  # optional packages, and the extra that has them


PLAIN: dict[str, Any] = {  # what an adapter that is made here has, by keys of PEFT's configuration
    "bias": "none", "fan_in_fan_out": False, "layers_to_transform": None, "lora_bias": False, "modules_to_save": None,
    "rank_pattern": {}, "alpha_pattern": {}, "target_parameters": None, "trainable_token_indices": None,
    "use_dora": False, "use_rslora": False,
}  # fmt: skip


def lacking(package: str) -> str | None:
    """That an optional package is not installed, and what installs it; None where it is."""
    if find_spec(package) is not None:
        return None
    return f"{package} is not installed; `pip install --constraint constraints.txt '.[{EXTRAS[package]}]'` adds it"


def beyond_options(adapter: Path) -> Iterator[str]:
    """What the adapter has beside that which the options of `lora` say: further training would lose it."""
    config = files.read_json(adapter / folders.ADAPTER)
    for key, plain in PLAIN.items():
        if (given := config.get(key)) not in (plain, None, [], {}):
            yield (
                f"{adapter}: has {key} {given!r}, which training would not keep; merge it into its base first (PEFT's "
                "merge_and_unload), or train all weights (lora: null)"
            )

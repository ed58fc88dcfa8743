"""Weights: built from an architecture, saved, loaded, an adapter merged into them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.core import memory
from tasks.core.errors import BadInput, one_line
from tasks.core.models import architectures, tokenizers
from tasks.core.models.files import read_json
from tasks.core.models.folders import ADAPTER_WEIGHTS, Parts, parts

GENERATION = "generation_config.json"


def build(architecture: Mapping[str, Any], tokenizer: Any, seed: int, folder: Path) -> None:
    """Writes a freshly initialised model and its tokenizer to `folder`: equal arguments, equal bytes.
    Raises `BadInput` for an architecture that transformers refuses."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    architectures.check(architecture, "architecture")
    rest = {key: value for key, value in architecture.items() if key != "model_type"}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    try:
        config = AutoConfig.for_model(architecture["model_type"], **{"vocab_size": len(tokenizer)} | rest | ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # every architecture has its own way of refusing values
        raise BadInput(f"architecture: no language model can be built from {dict(architecture)}: {error}") from error
    save(model, tokenizer, folder)


def save(model: Any, tokenizer: Any, folder: Path, state: Any = None) -> None:
    """Writes weights (safetensors), config, generation config with every token that ends a reply, and tokenizer, and
    nothing else. `state`: the weights, if they are not to be taken from the model."""
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    configured = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = tokenizers.settings_of_ends(tokenizer, configured)
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def _keep_savable(model: Any) -> None:
    """Leaves the ids of tokens alone where transformers would not write the generation settings that it has read (a
    temperature with `do_sample` false): no checkpoint could be saved."""
    from transformers import GenerationConfig

    given = model.generation_config
    try:
        given.validate(strict=True)
    except ValueError:
        tokens = {name: getattr(given, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**tokens)


def write_ends(tokenizer: Any, weights: Path, folder: Path) -> None:
    """Writes to `folder` the generation config of the model in `weights`, with every token that ends a reply. Nothing is
    written where that has all of them already and is the same file."""
    known = read_json(weights / GENERATION)
    configured = (known or read_json(weights / "config.json")).get("eos_token_id")
    told = tokenizers.settings_of_ends(tokenizer, configured)
    if known.get("eos_token_id") != told or not (folder / GENERATION).is_file():
        text = json.dumps({**known, "eos_token_id": told}, indent=2, sort_keys=True)
        (folder / GENERATION).write_text(text + "\n", encoding="utf-8")


def load(folder: Path, dtype: Any, **options: Any) -> Any:
    """The model in the number format `dtype`, an adapter merged into it. Remote code is never run; `options` go to
    transformers. Raises `BadInput` if transformers or peft cannot load it, a library's own error if memory runs out."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    found = parts(folder)
    logging.set_verbosity_error()  # what is wrong is said below
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            found.weights,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
        model, told = loaded
        _check_whole(found.weights, told)
        _keep_savable(model)
        return model if found.adapter is None else _merged(model, found)
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if memory.is_short(error):
            raise
        raise BadInput(f"{folder} cannot be loaded as a language model: {one_line(error)}") from error


def check_loads(folder: Path) -> None:
    """Raises `BadInput` unless all weights of the model are there, in the shapes that its config.json says, and an
    adapter fits them. Reads headers only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that nothing is copied there
        load(folder, "float32", device_map={"": "meta"})


def _check_whole(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuses what transformers would fill with random numbers, other ones every time."""
    if wrong := sorted(told["mismatched_keys"]):
        name, there, expected = wrong[0]
        raise BadInput(
            f"{folder}: config.json says that {name} has the shape {list(expected)}, and the weights have {list(there)}"
            f"{_more(wrong)}; is it the configuration of another model?"
        )
    if missing := sorted(told["missing_keys"]):
        raise BadInput(
            f"{folder} has no weights for {missing[0]}{_more(missing)}, which a language model of its config.json needs; "
            "save it with AutoModelForCausalLM, or fetch all of its files"
        )


def _more(several: Sequence[Any]) -> str:
    return f" (and {len(several) - 1} more)" if len(several) > 1 else ""


def _merged(model: Any, found: "Parts") -> Any:
    """The model with an adapter merged into it. Raises `BadInput` for an adapter of another model."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    assert found.adapter is not None
    adapted = PeftModel.from_pretrained(model, str(found.adapter))
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(found.adapter / ADAPTER_WEIGHTS, "pt") as file:
        given = set(file.keys())
    if missing := sorted(expected - given):
        raise BadInput(
            f"{found.adapter} does not fit its base {found.weights}: it has nothing for {missing[0]}{_more(missing)} but "
            f"{min(given, default='no weights')}; is it the adapter of another model?"
        )
    merged: Any = adapted.merge_and_unload()
    return merged.requires_grad_(True)  # peft froze them

"""Weights that are written: what their folder says of where a reply ends."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.core import engines
from tasks.core.models import folders, tokenizers, weights
from tasks.core.models.pointer import Pointer
from tasks.core.training import batches, encoding, trainers
from tasks.core.training.options import SftOptions
from tasks.core.training.request import Fit
from tests.support import tiny

torch.set_num_threads(1)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KEPT = {**tiny.LORA, "adapter": "keep"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model as base models come that were given ChatML later: end token and settings are `<|endoftext|>`."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(BPE())
    raw.pre_tokenizer, raw.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = ByteLevel.alphabet()
    raw.train_from_iterator([], BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=special[0], pad_token=special[0], additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = CHATML
    weights.build(tiny.ARCHITECTURE, tokenizer, 0, tmp_path / "base")
    return tmp_path / "base"


def ends(folder: Path) -> int | list[int]:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def trained(base: Path, folder: Path, **changes: object) -> Path:
    """What `base` becomes by a step or two on one reply."""
    tokenizer = tokenizers.load_tokenizer(base)
    rows = encoding.encode(tokenizer, [tiny.user("a")], [tiny.reply("b")], ["p"], 64)
    source = batches.SftBatches(rows, np.array([1.0]), np.array([[0]] * 2), 1.0)
    options = SftOptions(**{**tiny.SFT, "steps": 2, "warmup_steps": 0, **changes})
    named = Pointer(str(base), folders.digest(base))
    trainers.fit(
        Fit("sft", base, folder, folder.parent / "checkpoints", (source,), options, 0, base=named), lambda *_: None
    )
    return folder


def test_every_token_that_ends_a_reply_is_in_the_settings(base: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.load_tokenizer(base)
    im_end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert ends(base) == text_end
    whole = trained(base, tmp_path / "whole")
    assert ends(whole) == [im_end, text_end]
    engine = engines.load("transformers", whole, "float32", 1, 1)
    assert engine.ends == ends(whole)  # type: ignore[attr-defined]
    again = trained(whole, tmp_path / "again")
    assert ends(again) == [im_end, text_end]
    assert ends(trained(base, tmp_path / "merged", lora={**KEPT, "adapter": "merge"})) == [im_end, text_end]
    assert ends(trained(base, tmp_path / "kept", lora=KEPT)) == [im_end, text_end]


def test_the_model_cards_generate_stops_where_the_loop_does(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = tokenizers.load_tokenizer(base)
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(trained(base, tmp_path / "whole"))
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():  # says the same forever
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(im_end), model.config.vocab_size))
    told = AutoTokenizer.from_pretrained(tmp_path / "whole")
    asked = [{"role": "user", "content": "a"}]
    inputs = told.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**inputs, max_new_tokens=8)
    assert reply.shape[1] == inputs["input_ids"].shape[1] + 1


def test_settings_that_say_it_already_stay_as_they_are(base: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.load_tokenizer(base)
    own = tokenizer.eos_token_id
    for given, written in [(own, own), ([0, own], [0, own]), ([own], [own]), (None, own), ([], own), (0, [own, 0])]:
        assert tokenizers.settings_of_ends(tokenizer, given) == written
    (tmp_path / "other").mkdir()
    settings = {"eos_token_id": 0, "temperature": 0.6, "do_sample": False}
    (base / "generation_config.json").write_text(json.dumps(settings))
    weights.write_ends(tokenizer, base, tmp_path / "other")
    assert json.loads((tmp_path / "other/generation_config.json").read_text()) == settings | {"eos_token_id": [own, 0]}


def test_settings_that_transformers_would_not_save_do_not_end_a_training(base: Path, tmp_path: Path) -> None:
    """Sampling values with `do_sample` false are refused when a model is saved, which is after hours of training."""
    settings = {"eos_token_id": 0, "temperature": 0.6, "top_p": 0.9, "do_sample": False, "pad_token_id": 0}
    (base / "generation_config.json").write_text(json.dumps(settings))
    assert 0 in ends(trained(base, tmp_path / "whole"))

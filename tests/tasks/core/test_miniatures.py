"""The architectures that people bring, in miniature, with a byte-level BPE trained on real text: from text to text.

Each is asked greedily as `generate` would answer, scored as a plain forward pass would, trained for a step by SFT and
DPO, written and read again. Prompts are longer than the sliding windows."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks.blocks import training
from tasks.core import engines, models, rendering
from tasks.core.engine import Sampling
from tests import tiny

torch.set_num_threads(1)

GSM8K = Path(__file__).parents[4] / "shared/data/gsm8k/train.jsonl"
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
WINDOWS = {"num_hidden_layers": 2, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "qwen3": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 16},
    "gemma2": {**WINDOWS, "query_pre_attn_scalar": 8},
    "gemma3_text": {**WINDOWS, "query_pre_attn_scalar": 8},
}
MADE_UP = [
    (
        f"Ann has {i} nuts and finds {i % 7} more under the old oak tree. How many nuts?",
        f"She has {i + i % 7}. #### {i + i % 7}",
    )
    for i in range(60)
]


def conversations():
    """Questions and answers of GSM8K where it is beside this repository, else some of the same kind."""
    if not GSM8K.is_file():
        return MADE_UP
    with GSM8K.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(60), strict=False)]
    return [(row["question"], row["answer"]) for row in rows]


TEXTS = conversations()
TOKENIZER = rendering.make_tokenizer(None, [text for pair in TEXTS for text in pair], 700)
SHORT = sorted(TEXTS, key=lambda pair: len(pair[0] + pair[1]))[:4]


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    models.build({"model_type": request.param, **SIZES, **KINDS[request.param]}, TOKENIZER, 1, path)
    return path


def test_asked_and_scored_as_transformers_does(folder):
    models.validate_folder(folder)
    engine = engines.load("transformers", folder, "float32", 1, 8)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = [rendering.render(TOKENIZER, tiny.user(question)) for question, _ in SHORT]
    replies = engine.generate(prompts, Sampling(1, 0.0, 1.0, 12, 0))
    scores = engine.score(prompts, [answer for _, answer in SHORT])
    for prompt, (reply,), (_, answer), score in zip(prompts, replies, SHORT, scores, strict=True):
        asked = TOKENIZER(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert asked.shape[1] > 16
        whole = plain.generate(asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=12)
        assert reply.text == TOKENIZER.decode(whole[0, asked.shape[1] :], skip_special_tokens=True)
        told = TOKENIZER(answer, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id]
        with torch.no_grad():
            table = plain(torch.cat([asked, torch.tensor([told])], -1)).logits[0].log_softmax(-1)
        expected = [float(table[asked.shape[1] - 1 + place, token]) for place, token in enumerate(told)]
        assert score == pytest.approx(expected, abs=2e-4)


def test_a_step_of_training_lowers_the_loss_and_is_kept(folder, tmp_path):
    job = training.Job(
        initial=folder,
        reference=folder,
        sft=tiny.sft_rows(SHORT),
        pairs=tiny.pair_rows([(question, answer, answer[::-1]) for question, answer in SHORT]),
        output=tmp_path / "sft",
        scratch=tmp_path / "scratch",
        seed=0,
    )
    step = {"steps": 2, "warmup_steps": 0, "learning_rate": 0.002}
    training.sft(job, training.SftOptions(**{**tiny.SFT, **step, "mixture": {"own": len(SHORT)}, "packing": True}))
    preferences = training.Job(**{**vars(job), "output": tmp_path / "dpo", "curves": []})
    training.dpo(preferences, training.DpoOptions(**{**tiny.DPO, **step, "batch_size": len(SHORT)}))
    for made in (job, preferences):
        first, second = (point["loss"] for point in made.curves)
        assert second < first
        models.validate_folder(made.output)
        before, after = load_file(folder / "model.safetensors"), load_file(made.output / "model.safetensors")
        assert before.keys() == after.keys()
        loaded = AutoModelForCausalLM.from_pretrained(made.output)
        models.save(loaded, models.load_tokenizer(made.output), tmp_path / "again")
        assert models.digest(tmp_path / "again") == models.digest(made.output)

"""The architectures that people bring, in miniature, each with its kind of chat template and a BPE trained on real text.

Each is asked greedily as `generate` would answer, scored as a plain forward pass would, trained for a step by SFT and DPO
on the tokens of the replies alone, written and read again, and taught to end its turn. Prompts are longer than the
sliding windows."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks.blocks.train import dpo, sft
from tasks.blocks.train.job import Job
from tasks.core import engines
from tasks.core.engines.contract import Sampling
from tasks.core.models import folders, tokenizers, weights
from tasks.core.training import options
from tests.support import templates, tiny

torch.set_num_threads(1)

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
WINDOWS = {"num_hidden_layers": 2, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "qwen3": ("qwen", {"tie_word_embeddings": True}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "mistral": ("mistral", {"sliding_window": 16}),
    "gemma2": ("gemma", {**WINDOWS, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma", {**WINDOWS, "query_pre_attn_scalar": 8}),
}
LONGER = [pair for pair in templates.conversations() if len(pair[0]) > 70]
SHORT = sorted(LONGER, key=lambda pair: len(pair[0] + pair[1]))[:4]


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    kind, own = KINDS[request.param]
    tokenizer = templates.trained(templates.KINDS[kind])
    weights.build({"model_type": request.param, **SIZES, **own}, tokenizer, 1, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.load_tokenizer(folder)


def spoken(tokenizer, question, answer):
    """Tokens of the prompt, and of the reply with its end."""
    asked = tokenizers.render(tokenizer, tiny.user(question))
    asked, told = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, answer))
    return asked, [*told, tokenizer.eos_token_id]


@torch.no_grad()
def logprobs(model, asked, told):
    """The log-probability of every token of the reply, in nats."""
    table = model(torch.tensor([asked + told])).logits[0].float().log_softmax(-1)
    return [float(table[len(asked) - 1 + place, token]) for place, token in enumerate(told)]


def test_asked_and_scored_as_transformers_does(folder, tokenizer):
    folders.validate_folder(folder)
    engine = engines.load("transformers", folder, "float32", 1, 8)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = [tokenizers.render(tokenizer, tiny.user(question)) for question, _ in SHORT]
    replies = engine.generate(prompts, Sampling(1, 0.0, 1.0, 12, 0))
    scores = engine.score(prompts, [answer for _, answer in SHORT])
    for (reply,), (question, answer), score in zip(replies, SHORT, scores, strict=True):
        asked, told = spoken(tokenizer, question, answer)
        assert reply.prompt_tokens == len(asked) > 16
        given = torch.tensor([asked])
        ends = {"eos_token_id": engine.ends, "max_new_tokens": 12}
        whole = plain.generate(given, attention_mask=torch.ones_like(given), do_sample=False, **ends)
        assert reply.text == tokenizer.decode(whole[0, len(asked) :], skip_special_tokens=True)
        assert score == pytest.approx(logprobs(plain, asked, told), abs=2e-4)


def job_of(folder, output, scratch, pairs):
    return Job(
        initial=folder,
        reference=folder,
        sft=tiny.sft_rows(pairs),
        pairs=tiny.pair_rows([(question, answer, answer[::-1]) for question, answer in pairs]),
        output=output,
        scratch=scratch,
        seed=0,
    )


def test_a_step_of_training_learns_the_replies_alone_and_is_kept(folder, tokenizer, tmp_path):
    """The losses are those of the replies' tokens, counted by hand: of SFT before its first step, of DPO after it."""

    def train(kind, steps):
        job = job_of(folder, tmp_path / f"{kind}{steps}", tmp_path / "scratch", SHORT)
        step = {"steps": steps, "warmup_steps": 0, "learning_rate": 0.002, "schedule": "constant"}
        if kind == "sft":
            rows = {"mixture": {"own": len(SHORT)}, "packing": True}
            trained = sft.sft(job, options.SftOptions(**{**tiny.SFT, **step, **rows}))
        else:
            trained = dpo.dpo(job, options.DpoOptions(**{**tiny.DPO, **step, "mixture": {"own": len(SHORT)}}))
        return job.output, [point["loss"] for point in trained.curve]

    done = {kind: train(kind, 2) for kind in ("sft", "dpo")}
    losses = {kind: curve for kind, (_, curve) in done.items()}
    for kind, (made, _) in done.items():
        assert losses[kind][1] < losses[kind][0]
        folders.validate_folder(made)
        before, after = load_file(folder / "model.safetensors"), load_file(made / "model.safetensors")
        assert before.keys() == after.keys()
        loaded = AutoModelForCausalLM.from_pretrained(made)
        weights.save(loaded, tokenizers.load_tokenizer(made), tmp_path / "again")
        assert folders.digest(tmp_path / "again") == folders.digest(made)

    initial = AutoModelForCausalLM.from_pretrained(folder).eval()
    stepped = AutoModelForCausalLM.from_pretrained(train("dpo", 1)[0]).eval()
    told = [logprobs(initial, *spoken(tokenizer, *pair)) for pair in SHORT]
    assert losses["sft"][0] == pytest.approx(-sum(map(sum, told)) / sum(map(len, told)), rel=1e-4)
    margins = []
    for question, answer in SHORT:
        both = [spoken(tokenizer, question, text) for text in (answer, answer[::-1])]
        chosen, rejected = (sum(logprobs(stepped, *row)) - sum(logprobs(initial, *row)) for row in both)
        margins.append(tiny.DPO["beta"] * (chosen - rejected))
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    assert losses["dpo"][1] == pytest.approx(expected, rel=1e-3)


def test_a_model_that_learnt_its_replies_ends_its_turn(folder, tmp_path):
    pair = ("How many nuts has Ann? She had 5 and found 7 more.", "She has 12.")
    job = job_of(folder, tmp_path / "model", tmp_path / "scratch", [pair])
    step = {"steps": 60, "warmup_steps": 0, "learning_rate": 0.02, "schedule": "constant", "mixture": {"own": 1}}
    sft.sft(job, options.SftOptions(**{**tiny.SFT, **step}))
    engine = engines.load("transformers", job.output, "float32", 1, 8)
    asked = tokenizers.render(tokenizers.load_tokenizer(job.output), tiny.user(pair[0]))
    ((reply,),) = engine.generate([asked], Sampling(1, 0.0, 1.0, 40, 0))
    assert (reply.text, reply.finish_reason) == (pair[1], "stop")

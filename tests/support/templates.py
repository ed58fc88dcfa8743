"""Chat templates of the kinds that people bring, shortened, and byte-level or SentencePiece-like BPE tokenizers for them.

Each has what makes its kind special: a switch for thoughts (Qwen3), the date and a token of its own for the beginning
(Llama), no system message and an end of turn that is not the tokenizer's end token (Gemma), content that is trimmed
(Mistral). The text that tokenizers are trained on is GSM8K's where it is beside this repository, else some of its kind."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from tasks.core.models import tokenizers
from tests.support.paths import SHARED

GSM8K = SHARED / "gsm8k/train.jsonl"
SIZE = 4000  # tokens that are learnt, at most

QWEN = """
{%- for message in messages %}
    {%- set said = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if '</think>' in said %}
            {%- set thoughts = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.last %}
            {%- set said = '<think>\n' + thoughts + '\n</think>\n\n' + said %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + said + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- endif %}
{%- set own = messages[0].content | trim if messages[0].role == 'system' else '' %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + own + '<|eot_id|>' }}
{%- for message in messages if message.role != 'system' %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '[INST] ' + message.content | trim + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}{{ ' ' + message.content | trim + eos_token }}
    {%- else %}{{ raise_exception('Only user and assistant roles are supported.') }}
    {%- endif %}
{%- endfor %}"""


@dataclass(frozen=True, eq=False)
class Kind:
    """A chat template and what its tokenizer is. `end`: what ends a turn; `eos`: what the tokenizer calls its end;
    `spaces`: how SentencePiece marks the first word of a text ("never", "first"), None for bytes; `options`: values of the
    template's variables; `refuses_system`: whether a system message is an error."""

    template: str
    end: str
    eos: str
    bos: str | None
    controls: tuple[str, ...]  # other special tokens
    spaces: str | None
    options: dict[str, Any]
    refuses_system: bool = False


KINDS = {
    "qwen": Kind(QWEN, "<|im_end|>", "<|im_end|>", None, ("<|im_start|>",), None, {"enable_thinking": False}),
    "llama": Kind(
        LLAMA, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>"), None, {}
    ),
    "gemma": Kind(GEMMA, "<end_of_turn>", "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), "never", {}, True),
    "mistral": Kind(MISTRAL, "</s>", "</s>", "<s>", ("[INST]", "[/INST]"), "first", {}, True),
}


@cache
def conversations() -> list[tuple[str, str]]:
    """Questions and answers."""
    if not GSM8K.is_file():
        numbers = [(i, i % 7, i + i % 7) for i in range(60)]
        return [
            (f"Ann has {a} nuts and finds {b} more under the old oak tree. How many nuts?", f"She has {c}. #### {c}")
            for a, b, c in numbers
        ]
    with GSM8K.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["question"], row["answer"]) for row in rows]


@cache
def trained(kind: Kind) -> Any:
    """The kind's tokenizer, trained on all conversations, with values for the template's variables."""
    made = tokenizer(kind, [text for pair in conversations() for text in pair], SIZE)
    made.chat_template = tokenizers.with_options(kind.template, kind.options)
    return made


def tokenizer(kind: Kind, texts: list[str], size: int) -> Any:
    """A tokenizer of about `size` tokens, trained on `texts`, with the kind's control tokens and template. `<think>` and
    `</think>` are tokens that are not special, as Qwen3 has them."""
    from tokenizers import AddedToken, Tokenizer, decoders, processors
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence, Split
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(BPE())
    if kind.spaces is None:
        made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    else:  # no token of SentencePiece's joins a line's end to words
        made.pre_tokenizer = Sequence([Split("\n", "isolated"), Metaspace("▁", kind.spaces)])
    alphabet = ByteLevel.alphabet() if kind.spaces is None else []
    specials = list(dict.fromkeys(token for token in (kind.eos, kind.bos, kind.end, *kind.controls) if token))
    trainer = BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    if kind.spaces is None:
        made.decoder = decoders.ByteLevel()
    else:
        made = Tokenizer.from_str(_with_bytes(made.to_str()))
        spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*spaces, *([decoders.Strip(" ", 1, 0)] if kind.spaces == "first" else [])])
    if kind.bos is not None:  # what a call adds that does not forbid it
        start = [(kind.bos, made.token_to_id(kind.bos))]
        made.post_processor = processors.TemplateProcessing(single=f"{kind.bos} $A", special_tokens=start)
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=kind.eos,
        bos_token=kind.bos,
        additional_special_tokens=list(kind.controls),
        clean_up_tokenization_spaces=False,
        chat_template=kind.template,
    )
    if kind is KINDS["qwen"]:
        found.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    return found


def _with_bytes(text: str) -> str:
    """A tokenizer's JSON with a token for every byte, for characters that it has not seen."""
    about = json.loads(text)
    vocabulary = about["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    about["model"]["byte_fallback"] = True
    return json.dumps(about)

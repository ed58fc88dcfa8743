"""Tokenizers that are made here, and the text that goes into a model.

Two tokenizers can be made. Word level: the family's vocabulary, one token per whitespace-separated word;
every message is followed by a space, an assistant's message by the end token. Byte-level BPE: trained on
the corpus; messages are marked by role tokens. `render` is the only way from messages to text, and it
breaks up every special token that stands in a message's content: text cannot end a turn or open one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.errors import BadInput, StageFailed, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[Mapping[str, str]]
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATES = Path(__file__).parents[1] / "chat_templates"

WORD_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token }}"
    "{%- else -%}{{ message['content'] + ' ' }}{%- endif -%}"
    "{%- endfor -%}"
)
ROLE_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('unknown role ' + message['role']) }}{%- endif -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


# --- tokenizers ------------------------------------------------------------------------------------


def make_tokenizer(
    vocabulary: Sequence[str] | None, texts: Iterator[str] | Sequence[str], size: int
) -> "PreTrainedTokenizerFast":
    """The word-level tokenizer of `vocabulary`, or without one a byte-level BPE of at most `size` tokens
    trained on `texts`. Raises `BadInput` for a word that whitespace would cut."""
    return bpe_tokenizer(texts, size) if vocabulary is None else word_tokenizer(vocabulary)


def word_tokenizer(words: Sequence[str]) -> "PreTrainedTokenizerFast":
    """One token per whitespace-separated word; decoding joins words by one space."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    bad = [word for word in words if word.split() != [word] or word in (PAD, EOS, UNK)]
    if bad:
        raise BadInput(f"vocabulary: {bad[0]!r} is not one whitespace-free word apart from {PAD}, {EOS}, {UNK}")
    unique = list(dict.fromkeys([PAD, EOS, UNK, *words]))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(unique)}, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        chat_template=WORD_TEMPLATE,
    )


def bpe_tokenizer(texts: Iterator[str] | Sequence[str], size: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE: every text is encoded without loss. At most `size` tokens, the 256 bytes included."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    pad, end = "<|pad|>", "<|end|>"
    roles = [f"<|{role}|>" for role in ROLES]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[pad, end, *roles],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        additional_special_tokens=roles,
        clean_up_tokenization_spaces=False,
        chat_template=ROLE_TEMPLATE,
    )


def chat_template(name: str) -> str:
    """The text of `tasks/chat_templates/NAME.jinja`. Stage base depends on that folder, so that an edit is seen. Raises
    `UnknownName`, and `BadInput` for a file that is no template."""
    import jinja2

    files = {path.stem: path for path in sorted(CHAT_TEMPLATES.glob("*.jinja"))}
    if name not in files:
        where = "base.chat_template (files in tasks/chat_templates, without .jinja; copy yours there)"
        raise unknown_name("chat template", name, files, where)
    text = files[name].read_text(encoding="utf-8")
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
    except jinja2.TemplateSyntaxError as error:
        raise BadInput(f"{files[name]}, line {error.lineno}: is no Jinja template: {error.message}") from error
    return text


# --- text ------------------------------------------------------------------------------------------


def render(tokenizer: Any, messages: Messages) -> str:
    """The text that asks for the next assistant message. Special tokens in contents are broken up."""
    return render_many(tokenizer, [messages])[0]


def render_many(tokenizer: Any, conversations: Sequence[Messages], reply: bool = True) -> list[str]:
    """Texts of several conversations. `reply` False: the conversation as it stands, no reply asked for.
    Raises `StageFailed` with the template's own words if it refuses a conversation."""
    if not conversations:
        return []
    specials = special_tokens(tokenizer)
    safe = [
        [{"role": m["role"], "content": neutralise(m["content"], specials)} for m in conversation]
        for conversation in conversations
    ]
    try:
        return list(tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=reply))
    except Exception as error:  # jinja's own errors and whatever a template raises
        raise StageFailed(f"the chat template refused a conversation: {error}") from error


def special_tokens(tokenizer: Any) -> list[str]:
    """Strings that the tokenizer would read as control tokens, longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = {token for token in (*tokenizer.all_special_tokens, *added) if token.strip()}
    return sorted(found, key=lambda token: (-len(token), token))


def neutralise(text: str, specials: Sequence[str]) -> str:
    """`text` with a space after the first character of every special token that stands in it."""
    found = [token for token in specials if token in text]
    while found:
        for token in found:
            text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")
        found = [token for token in specials if token in text]
    return text

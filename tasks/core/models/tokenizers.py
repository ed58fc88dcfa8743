"""Tokenizers that are made here, and the text that goes into a model.

Two tokenizers can be made. Word level: the family's vocabulary, one token per whitespace-separated word;
every message is followed by a space, an assistant's message by the end token. Byte-level BPE: trained on
the corpus; messages are marked by role tokens. `render` is the only way from messages to text, and it
breaks up every special token that stands in a message's content: text cannot end a turn or open one. For a template
that prints the date it is always `chat.TODAY`: a prompt that changed at midnight would find none of its stored replies.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.errors import BadInput, StageFailed, unknown_name
from tasks.core.models import chat, files, tokenizers
from tasks.core.models.folders import NO_TEMPLATE, parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


Messages = Sequence[Mapping[str, str]]
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATES = Path(__file__).parents[2] / "templates" / "chat"
OPTIONS = "base.chat_template_options"
GIVEN = ("messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now")  # to a template
NO_SYSTEM = (
    "; this model takes no system message: set prepare.options.system and system_field to null, or base.chat_template "
    "to one of your own"
)

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

    bad = [word for word in words if word.split() != [word] or word in (PAD, EOS, UNK)]
    if bad:
        raise BadInput(f"vocabulary: {bad[0]!r} is not one whitespace-free word apart from {PAD}, {EOS}, {UNK}")
    unique = list(dict.fromkeys([PAD, EOS, UNK, *words]))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(unique)}, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return _fast(tokenizer, PAD, EOS, WORD_TEMPLATE, unk_token=UNK)


def bpe_tokenizer(texts: Iterator[str] | Sequence[str], size: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE: every text is encoded without loss. At most `size` tokens, the 256 bytes included."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

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
    return _fast(tokenizer, pad, end, ROLE_TEMPLATE, additional_special_tokens=roles)


def _fast(raw: Any, pad: str, end: str, template: str, **special: Any) -> "PreTrainedTokenizerFast":
    """The tokenizer of transformers around one of tokenizers; decoding leaves spaces as they are."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=pad,
        eos_token=end,
        clean_up_tokenization_spaces=False,
        chat_template=template,
        **special,
    )


# --- chat templates ----------------------------------------------------------------------------------


def chat_template(name: str) -> str:
    """The text of `tasks/templates/chat/NAME.jinja`. Stage base depends on that folder, so that an edit is seen. Raises
    `UnknownName`, and `BadInput` for a file that is no template."""
    files = {path.stem: path for path in sorted(CHAT_TEMPLATES.glob("*.jinja"))}
    if name not in files:
        where = "base.chat_template (files in tasks/templates/chat, without .jinja; copy yours there)"
        raise unknown_name("chat template", name, files, where)
    text = files[name].read_text(encoding="utf-8")
    chat.parse(text, str(files[name]))
    return text


def with_options(template: str, options: Mapping[str, Any]) -> str:
    """The template with values (as JSON has them) for variables of its own. They hold where whoever renders gives none,
    so they go wherever the template goes. Raises `UnknownName` for a variable that it does not read, `BadInput` for what
    is no template."""
    from jinja2 import meta

    read = sorted(meta.find_undeclared_variables(chat.parse(template, "the chat template")) - set(GIVEN))
    for name in options:
        if name not in read:
            raise unknown_name("variable", name, read, f"{OPTIONS} (what the chat template reads)")
    values = (f"{{% set {name} = {name} | default({_literal(value)}) %}}" for name, value in sorted(options.items()))
    return "".join(values) + "\n" + template if options else template  # the line's end is not printed (trim_blocks)


def check_options(options: Mapping[str, Any]) -> None:
    """Raises `BadInput` for names that no variable of a template has, or that have a value already."""
    for name in options:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise BadInput(f"{OPTIONS}: given {name!r}; a variable's name has letters, digits and _")
        if name in GIVEN or name.endswith("_token"):
            raise BadInput(f"{OPTIONS}.{name}: every template is given that anyway; set variables of its own only")


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def end_as_templated(tokenizer: Any) -> None:
    """Makes the special token with which the chat template ends a reply the tokenizer's end token (Gemma's tokenizers
    name another). Left as it is where the template writes none, or writes its end token elsewhere too."""
    word = "xyzzy"
    spoken = [{"role": "user", "content": word}, {"role": "assistant", "content": word}]
    try:
        (text,) = render_many(tokenizer, [spoken], reply=False)
    except StageFailed:  # a template of messages that are no plain text; what it is asked for will say so
        return
    rest = text.rpartition(word)[2]
    ends = sorted((rest.find(token), -len(token), token) for token in special_tokens(tokenizer) if token in rest)
    if not ends or ends[0][2] == tokenizer.eos_token:
        return
    before, tokenizer.eos_token = tokenizer.eos_token, ends[0][2]
    if render_many(tokenizer, [spoken], reply=False) != [text]:
        tokenizer.eos_token = before


def ends(tokenizer: Any, configured: int | Sequence[int] | None) -> list[int]:
    """The tokens that end a reply: the tokenizer's own, then those that generation settings name."""
    more = configured if isinstance(configured, Sequence) else [configured]
    return list(dict.fromkeys(int(end) for end in (tokenizer.eos_token_id, *more) if end is not None))


def settings_of_ends(tokenizer: Any, configured: int | Sequence[int] | None) -> int | list[int] | None:
    """The same as generation settings name them; what they already say, where that is all of them."""
    found = ends(tokenizer, configured)
    if isinstance(configured, Sequence) and set(found) == set(configured):
        return list(configured)
    return found[0] if len(found) == 1 else found or None


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
        return list(
            tokenizer.apply_chat_template(
                safe, tokenize=False, add_generation_prompt=reply, strftime_now=chat.TODAY.strftime
            )
        )
    except Exception as error:  # jinja's own errors and whatever a template raises
        why = str(error).rstrip(".") + _advice(tokenizer, safe, reply)
        raise StageFailed(f"the chat template refused a conversation: {why}") from error


def _advice(tokenizer: Any, conversations: Sequence[Messages], reply: bool) -> str:
    """What to do where nothing but the system messages is refused."""
    spoken = [[message for message in several if message["role"] != "system"] for several in conversations]
    if all(len(kept) == len(several) for kept, several in zip(spoken, conversations, strict=True)):
        return ""
    try:
        render_many(tokenizer, spoken, reply)
    except StageFailed:
        return ""
    return NO_SYSTEM


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


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. Raises `BadInput` if it cannot be loaded or has no chat template."""
    tokenizer = plain_tokenizer(folder)
    if not tokenizer.chat_template:
        raise BadInput(NO_TEMPLATE.format(folder))
    return tokenizer


def plain_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, with a chat template or without; its end token is the one that its template writes. Raises
    `BadInput` if it cannot be loaded."""
    tokenizer = stored_tokenizer(folder)
    if tokenizer.chat_template:
        tokenizers.end_as_templated(tokenizer)
    return tokenizer


def stored_tokenizer(folder: Path) -> Any:
    """The model's tokenizer as its files have it. Raises `BadInput` if it cannot be loaded."""
    from transformers import AutoTokenizer

    place = parts(folder).tokenizer
    if not (place / files.TOKENIZER).is_file():  # transformers makes an empty one for some architectures
        files.check_tokenizer(place)
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library tokenizers raises no other kind
        files.check_tokenizer(place)
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadInput(f"{folder}: its tokenizer cannot be loaded: {why}") from error

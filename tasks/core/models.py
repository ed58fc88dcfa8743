"""Model folders: built from an architecture, checked, found again, and the text that goes into them.

A model is a folder in the Hugging Face layout: `config.json`, `*.safetensors`, a tokenizer with a chat
template, `generation_config.json` with the ids of end and padding. Nothing else is ever loaded from it:
no pickles, no remote code. A folder may instead hold `pointer.json` (`{"path", "digest"}`), so that a
pretrained model of many gigabytes is named and never copied; `resolve` follows it.

Two tokenizers can be made. Word level: the family's vocabulary, one token per whitespace-separated word;
every message is followed by a space, an assistant's message by the end token. Byte-level BPE: trained on
the corpus; messages are marked by role tokens. `render` is the only way from messages to text, and it
breaks up every special token that stands in a message's content: text cannot end a turn or open one.

Whatever needs no torch (`validate_folder`, `resolve`, `digest`) does not import it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core import architectures, digests
from tasks.core.context import Pointer
from tasks.core.errors import BadInput, MissingArtifact, StageFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[Mapping[str, str]]

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
ROLES = ("system", "user", "assistant")
POINTER = "pointer.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

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


# --- folders ---------------------------------------------------------------------------------------


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


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes weights (safetensors), config, generation config and tokenizer, and nothing else."""
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises `BadInput` if it cannot be loaded or has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise BadInput(f"{folder}: its tokenizer has no chat template")
    return tokenizer


def digest(folder: Path) -> str:
    """Digest of a model: names and contents of its files; the recorded digest, if the folder is a pointer."""
    pointer = _pointer(folder)
    return pointer.digest if pointer else digests.of_path(folder)


def resolve(root: Path, pointer: Pointer) -> Path:
    """The folder that holds the model. `pointer.path`: relative to `root`, absolute, or a hub name that the
    local Hugging Face cache holds. Raises `MissingArtifact`, and `BadInput` for a pointer that leads nowhere."""
    last = followed(root, pointer)
    folder = root / Path(last.path).expanduser()
    if folder.is_dir():
        return folder
    cached = _cached(last.path)
    if cached is None:
        raise MissingArtifact(
            f"model {last.path} is not there; `dvc repro` or `dvc checkout` makes a folder under data/,"
            f" `hf download {last.path}` fetches a model from the hub"
        )
    return cached


def followed(root: Path, pointer: Pointer) -> Pointer:
    """The pointer itself, or where its folder is only a pointer, the one that this leads to in the end. Raises
    `BadInput` for a pointer that leads nowhere."""
    before: list[Path] = []
    while (folder := root / Path(pointer.path).expanduser()).is_dir():
        if folder.resolve() in before:
            raise BadInput(f"{folder / POINTER} leads back to itself; its path must name a folder with a model")
        further = _pointer(folder)
        if further is None:
            break
        before.append(folder.resolve())
        pointer = further
    return pointer


def _pointer(folder: Path) -> Pointer | None:
    """The folder's pointer, None where it has none. Raises `BadInput` for a file that is no pointer."""
    path = folder / POINTER
    if not path.is_file():
        return None
    record = _json(path)
    if not (isinstance(record.get("path"), str) and isinstance(record.get("digest"), str)):
        raise BadInput(f'{path} is no pointer to a model: given {record}; it holds two texts, {{"path", "digest"}}')
    return Pointer(record["path"], record["digest"])


def write_pointer(folder: Path, pointer: Pointer) -> None:
    """Makes `folder` stand for the model that `pointer` names."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"path": pointer.path, "digest": pointer.digest}, sort_keys=True, indent=2)
    (folder / POINTER).write_text(text + "\n", encoding="utf-8")


def _cached(name: str) -> Path | None:
    """The snapshot of a hub name in the local cache, without network; None if there is none."""
    if not HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None


def validate_folder(path: Path) -> None:
    """Raises `BadInput` unless `path` is a model folder: configuration, safetensors, a tokenizer with a chat
    template. Reads JSON only."""
    if not path.is_dir():
        raise BadInput(f"{path} is no model folder: there is no such folder")
    config = read_config(path)
    if not isinstance(config.get("model_type"), str):
        raise BadInput(f"{path} is no model folder: it has no config.json with a model_type")
    architectures.check_model_type(config["model_type"], str(path / "config.json"))
    if not any(path.glob("*.safetensors")):
        raise BadInput(f"{path} is no model folder: it has no *.safetensors; other weight formats are not loaded")
    tokenizer = path / "tokenizer_config.json"
    if not tokenizer.is_file() and not (path / "tokenizer.json").is_file():
        raise BadInput(f"{path} has no tokenizer: neither tokenizer.json nor tokenizer_config.json is there")
    if not (path / "chat_template.jinja").is_file() and not _json(tokenizer).get("chat_template"):
        raise BadInput(
            f"{path}: its tokenizer has no chat template; add chat_template.jinja, or use an instruction-tuned model"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`, {} where it has none."""
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is not there. Raises `BadInput` for anything else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds no JSON object")
    return value

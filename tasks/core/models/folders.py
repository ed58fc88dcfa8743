"""Model folders: built from an architecture, checked, found again, and the text that goes into them.

A model is a folder in the Hugging Face layout: `config.json`, `*.safetensors`, a tokenizer with a chat
template, `generation_config.json` with the ids of end and padding. Nothing else is ever loaded from it:
no pickles, no remote code. A folder may instead hold `pointer.json` (`{"path", "digest"}`), so that a
pretrained model of many gigabytes is named and never copied; `resolve` follows it.

Or it may hold a part of a model, and the rest comes from the folder that its `base.json` (`{"path", "digest"}`) names:
a LoRA adapter (`adapter_config.json`, `adapter_model.safetensors`, tokenizer; a plain PEFT folder, whose
`base_model_name_or_path` says the same path, relative to the repository), or only a tokenizer with another chat
template. `parts` says what is where, `load` puts it together. The digest of such a folder covers `base.json` and so its
base, and `verify` makes sure that the base is still that one.

Whatever needs no torch (`validate_folder`, `resolve`, `digest`) does not import it.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tasks.core import digests
from tasks.core.errors import BadInput, MissingArtifact
from tasks.core.models import architectures, files, hub
from tasks.core.models.files import read_json
from tasks.core.models.pointer import Pointer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NO_TEMPLATE = (
    "{}: its tokenizer has no chat template; set base.chat_template (`plain`, or one of your own in "
    "tasks/templates/chat), or use an instruction-tuned model"
)
RESTORE = "restore it with `dvc checkout`, or, for a pretrained model that was replaced, run `dvc repro -f base`"
POINTER = "pointer.json"
BASE = "base.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Parts(NamedTuple):
    """Where a model's weights are, the LoRA adapter that goes on top of them, and its tokenizer."""

    weights: Path
    adapter: Path | None
    tokenizer: Path


def parts(folder: Path) -> Parts:
    """What the model in `folder` (as `resolve` gives it) is made of; thrice the same for a whole model. Raises
    `MissingArtifact` where its base is not there."""
    if not is_part(folder):
        return Parts(folder, None, folder)
    weights = base_folder(folder)
    own = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return Parts(weights, folder if (folder / ADAPTER).is_file() else None, folder if own else weights)


def is_part(folder: Path) -> bool:
    """Whether the folder holds a part of a model only: an adapter, or a tokenizer."""
    return (folder / ADAPTER).is_file() or (folder / BASE).is_file()


def base_folder(folder: Path) -> Path:
    """The folder with the whole weights that an adapter or a tokenizer in `folder` belongs to. A relative path starts
    at the nearest folder above `folder` that has it (the repository, for a model below data/): where a command is given
    plays no part. Raises `MissingArtifact` where there is none."""
    pointer = _base(folder)
    above = folder.absolute().parents
    root = next((parent for parent in above if (parent / pointer.path).is_dir()), above[0])
    try:
        found = resolve(root, pointer)
    except MissingArtifact as error:
        raise MissingArtifact(f"{folder}: its base is in no folder above it: {error}") from error
    if is_part(found):
        raise BadInput(f"{folder}: its base {found} is itself only a part of a model; merge it into a whole one first")
    return found


def base_pointer(root: Path, pointer: Pointer) -> Pointer:
    """The model with the whole weights that `pointer` leads to: what an adapter trained on it names as its base."""
    folder = root / Path(pointer.path).expanduser()
    if folder.is_dir() and (further := _record(folder, POINTER)):
        return base_pointer(root, further)
    found = resolve(root, pointer)
    if not is_part(found):
        return pointer
    base = _base(found)
    return base if base.digest else Pointer(base.path, digest(base_folder(found)))


def _base(folder: Path) -> Pointer:
    """The pointer to the base; its digest is "" for an adapter that was made elsewhere."""
    if recorded := _record(folder, BASE):
        return recorded
    name = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise BadInput(f"{folder / ADAPTER} does not say which model it belongs to (base_model_name_or_path)")
    return Pointer(name, "")


def digest(folder: Path, known: Path | None = None) -> str:
    """Digest of a model: names and contents of its files, and so the base that `base.json` names; the recorded digest,
    if the folder is a pointer. `known`: where digests of large files are kept (`tasks.core.digests`)."""
    if pointer := _record(folder, POINTER):
        return pointer.digest
    own = digests.of_path(folder, known)
    if is_part(folder) and not (folder / BASE).is_file():  # an adapter that was made elsewhere
        return digests.of_value([own, digest(base_folder(folder), known)])
    return own


def verify(folder: Path, pointer: Pointer, known: Path | None = None) -> None:
    """Raises `BadInput` unless `folder` holds the model of `pointer.digest`, on the base that it was trained on."""
    if (found := digest(folder, known)) != pointer.digest:
        raise BadInput(
            f"model {pointer.path} has changed since it was promoted (its digest is {found}, not {pointer.digest}); {RESTORE}"
        )
    base = _record(folder, BASE)
    if base and (found := digest(base_folder(folder), known)) != base.digest:
        raise BadInput(
            f"model {pointer.path} belongs to the model {base.path} of digest {base.digest}, and that has changed: its "
            f"digest is {found}; {RESTORE}"
        )


def check_name(root: Path, name: str) -> None:
    """Raises `BadInput` unless `name` is a folder, relative to `root` or absolute, or could be a name of the hub."""
    path = root / Path(name).expanduser()
    if path.is_dir() or (hub.NAME.fullmatch(name) and not path.is_file()):
        return
    if path.is_file():
        raise BadInput(f"given {name!r}; it is a file: name the model's folder")
    if "/" in name:
        raise BadInput(f"given {name!r}: there is no such folder; name a model's folder, or a hub name (owner/name)")
    raise BadInput(f"given {name!r}; it is no folder, and a hub name is owner/name (openai-community/gpt2)")


def resolve(root: Path, pointer: Pointer) -> Path:
    """The folder that holds the model. `pointer.path`: relative to `root`, absolute, or a hub name that the
    local Hugging Face cache holds. Raises `MissingArtifact`, and `BadInput` for a pointer that leads nowhere."""
    last = followed(root, pointer)
    folder = root / Path(last.path).expanduser()
    if folder.is_dir():
        return folder
    cached = hub.cached(last.path)
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
        further = _record(folder, POINTER)
        if further is None:
            break
        before.append(folder.resolve())
        pointer = further
    return pointer


def _record(folder: Path, name: str) -> Pointer | None:
    """The pointer in file `name`, None where there is none. Raises `BadInput` for a file that is no pointer."""
    path = folder / name
    if not path.is_file():
        return None
    record = read_json(path)
    if not (isinstance(record.get("path"), str) and isinstance(record.get("digest"), str)):
        raise BadInput(f'{path} is no pointer to a model: given {record}; it holds two texts, {{"path", "digest"}}')
    return Pointer(record["path"], record["digest"])


def write_pointer(folder: Path, pointer: Pointer, name: str = POINTER) -> None:
    """Makes `folder` stand for the model that `pointer` names; with `name` `BASE`, what else is in it goes on top."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(pointer.text(), encoding="utf-8")


def validate_folder(path: Path, template: bool = True) -> None:
    """Raises `BadInput` unless `path` is a model folder: configuration, safetensors, a tokenizer with a chat
    template (without one where `template` is False), or a part of a model whose base is one. Of weights only headers are read."""
    if not path.is_dir():
        raise BadInput(f"{path} is no model folder: there is no such folder")
    found = parts(path)
    if found.adapter is not None:
        _validate_adapter(found.adapter)
    config = read_json(found.weights / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise BadInput(f"{found.weights} is no model folder: it has no config.json with a model_type")
    architectures.check_model_type(config["model_type"], str(found.weights / "config.json"))
    for file in files.weights(found.weights):
        files.header(file)
    files.check_tokenizer(found.tokenizer)
    if template:
        _validate_template(path, found.tokenizer)


def _validate_template(path: Path, tokenizer: Path) -> None:
    from tasks.core.models import chat

    text = chat.of_folder(tokenizer)
    if text is None:
        raise BadInput(NO_TEMPLATE.format(path))
    advice = "fetch the model again, or set base.chat_template (`plain`, or one of your own)"
    chat.check(text, chat.tokens(tokenizer), f"{path}: its chat template", advice)


def _validate_adapter(folder: Path) -> None:
    kind = read_json(folder / ADAPTER).get("peft_type")
    if kind != "LORA":
        raise BadInput(f"{folder / ADAPTER}: given peft_type {kind!r}; only LORA adapters are loaded")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise BadInput(f"{folder} is no adapter: it has no {ADAPTER_WEIGHTS}; other weight formats are not loaded")
    files.header(folder / ADAPTER_WEIGHTS)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`, {} where it has none."""
    return read_json(parts(folder).weights / "config.json")

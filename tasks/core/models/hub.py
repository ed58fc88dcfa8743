"""Models of the Hugging Face hub: found in the local cache, looked for on the hub, fetched once.

A hub name is `owner/name`. `cached` never uses the network, and is all that any stage but `base` asks; `base` fetches a
model that is not in the cache (`HF_HOME`, `HF_HUB_CACHE`), and `flows.check` asks beforehand whether it will be able
to. Only safetensors, JSON, templates and vocabularies are fetched: no pickles, no code. Settings are huggingface_hub's
own: `HF_TOKEN` or `hf auth login`, `HF_ENDPOINT`, and `HF_HUB_OFFLINE=1`, with which the network is left alone.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tasks.core.errors import BadInput, first_line
from tasks.core.models import files

NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
SECONDS = 20  # to wait for the hub's answer

Answer = TypeVar("Answer")


def cached(name: str) -> Path | None:
    """The snapshot of a hub name in the local cache, without network; None if there is none, or not all of it."""
    if not NAME.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Whether weights are there, and all the files of which an index says that they belong to them."""
    try:
        named = files.shards(folder)
    except BadInput:
        named = []
    return all((folder / name).is_file() for name in named) if named else any(folder.glob("*.safetensors"))


def look(name: str) -> None:
    """Raises `BadInput` unless the model can be fetched: it is there, has safetensors, and this user may read it."""
    _offline(name)
    from huggingface_hub import HfApi

    api = HfApi()

    def ask() -> list[str]:
        found = api.model_info(name, timeout=SECONDS)
        api.auth_check(name)
        return [file.rfilename for file in found.siblings or []]

    if not any(file.endswith(".safetensors") for file in _asked(name, ask)):
        raise BadInput(f"{name} has no *.safetensors on the hub; other weight formats are not loaded")


def fetch(name: str) -> Path:
    """The snapshot of the model, fetched if it is not in the cache. Raises `BadInput` with what to do about it."""
    if (folder := cached(name)) is not None:
        return folder
    _offline(name)
    from huggingface_hub import snapshot_download

    return Path(_asked(name, lambda: snapshot_download(name, allow_patterns=FILES)))


def _offline(name: str) -> None:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise BadInput(
            f"{name} is no folder and not in the local Hugging Face cache, and HF_HUB_OFFLINE forbids fetching it; unset "
            f"it, or run `hf download {name}` where there is a network"
        )


def _asked(name: str, question: Callable[[], Answer]) -> Answer:
    """The hub's answer. Raises `BadInput` for each way in which it refuses."""
    import httpx
    from huggingface_hub import errors

    try:
        return question()
    except errors.GatedRepoError as error:
        raise BadInput(
            f"{name} is gated: accept its terms on its page on the hub, then `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"{name} is no folder and not on the hub, or is private there; check the name, or `hf auth login` with a user "
            "who may see it"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise BadInput(
            f"{name} is no folder and not in the local Hugging Face cache, and the hub does not answer as it should "
            f"({first_line(error)}); try again, or run `hf download {name}` where it can be reached"
        ) from error

"""A Hugging Face dataset as Parquet files that `prepare.source` can name.

    python -m flows.fetch NAME [--config C] [--split S]... [--revision R] [--into FOLDER]

NAME is a dataset of the hub (`openai/gsm8k`, also `hf://datasets/openai/gsm8k`) or a folder that `datasets` can load,
one of `save_to_disk` included. Every split becomes a file SPLIT.parquet in FOLDER (default: a folder below
`data/sources/` named after the dataset), beside `origin.yaml` with name, configuration, revision (the commit on the
hub, the digest of a local folder) and rows. FOLDER is replaced as a whole, or not at all.

Fetching is a command of its own and not a part of prepare, so that `dvc repro` needs no network, reads what it read
before though the hub has moved on, and sees by the files alone that a source has changed. `dvc add FOLDER` shares it.
A private or gated dataset wants a token in HF_TOKEN, or `hf auth login`. Code of a dataset is never run.

Exit codes: 0 done, 2 not found, not allowed, out of reach or nothing to write.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.core import digests
from tasks.core.errors import BadInput, first_line, unknown_name

ORIGIN = "origin.yaml"


def fetch(
    root: Path, name: str, config: str | None, splits: list[str], revision: str | None, into: str | None
) -> tuple[Path, dict[str, Any]]:
    """The folder that was written, and its origin. Raises `BadInput`; the folder is then as it was."""
    name = re.sub(r"^hf://(datasets/)?", "", name)
    folder = root / (into or f"data/sources/{_slug(name, config)}")
    if folder.exists() and not (folder / ORIGIN).is_file() and any(folder.iterdir()):
        raise BadInput(f"{folder}: is there and was not written by this command; name another folder with --into")
    found, commit = _loaded(root, name, config, revision)
    for split in splits:
        if split not in found:
            raise unknown_name("split", split, found, name)
    wanted = {split: found[split] for split in splits or found}
    if not any(len(rows) for rows in wanted.values()):
        raise BadInput(f"{name}: {', '.join(wanted) or 'it'} has no rows")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for split, rows in wanted.items():
            rows.to_parquet(str(part / f"{split}.parquet"))
        rows_of = {split: len(rows) for split, rows in wanted.items()}
        origin = {"name": name, "config": config, "revision": commit, "rows": rows_of}
        (part / ORIGIN).write_text(yaml.safe_dump(origin, sort_keys=False))
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadInput(f"{folder}: cannot be written ({error})") from error
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    return folder, origin


def _loaded(root: Path, name: str, config: str | None, revision: str | None) -> tuple[Mapping[str, Any], str]:
    """The dataset's splits, and what tells this version from others."""
    import datasets
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub.utils import logging as hub_logging

    datasets.utils.logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # it tells of every further try
    local = root / Path(name).expanduser()
    try:
        if local.is_dir() and revision is not None:
            raise BadInput(f"--revision: given {revision}, but {local} is a folder; the hub alone has revisions")
        if (local / "dataset_info.json").is_file() or (local / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(local))
            loaded = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            return loaded, digests.of_path(local)
        where = str(local) if local.is_dir() else name
        builder = datasets.load_dataset_builder(where, config, revision=revision)
        builder.download_and_prepare()
        return builder.as_dataset(), digests.of_path(local) if local.is_dir() else str(builder.hash)
    except (DatasetNotFoundError, DataFilesNotFoundError) as error:
        said = str(error)
        advice = "correct the name; if it is private, set HF_TOKEN or use `hf auth login`"
        if "gated" in said:
            advice = (
                f"ask for access on https://huggingface.co/datasets/{name}, then set HF_TOKEN or use `hf auth login`"
            )
        raise BadInput(f"{name}: {said.rstrip('.')}; {advice}") from error
    except (ConnectionError, FileNotFoundError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        advice = "HF_HUB_OFFLINE is set; unset it" if offline else "check the network"
        raise BadInput(
            f"{name}: is no folder here, and the Hugging Face hub is out of reach ({_first(error)}); {advice}, correct the "
            "name, or copy the dataset's files and name their folder"
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        hint = "; name the configuration with --config" if "onfig" in str(error) and config is None else ""
        raise BadInput(f"{name}: cannot be loaded: {_first(error)}{hint}") from error


def _first(error: Exception) -> str:
    """The first line of what the library says, without its full stop."""
    return first_line(error).rstrip(".")


def _slug(name: str, config: str | None) -> str:
    parts = [*Path(name).parts[-2:], *([config] if config else [])]
    return "--".join(re.sub(r"[^\w.-]", "_", part) for part in parts if part not in ("/", "..", "."))

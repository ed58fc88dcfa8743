"""A promoted model as a folder for others:
`python -m flows.export [ITERATION] TARGET [--push REPO] [--public] [--datasets] [--merge] [--base NAME]`.

TARGET becomes a plain Hugging Face model folder (weights, configuration, tokenizer) with a generated model card.
Without ITERATION it is the newest iteration's policy; with one, the policy after that iteration, which may be an
earlier candidate where the gate refused this one. A policy that is a LoRA adapter is exported as an adapter if its base
has a hub name (its own, or `--base`), and with `--merge` as a whole model.

`--datasets` adds `TARGET/datasets`: the rows that the model was trained on, for `datasets.load_dataset`, `trl sft` and
`trl dpo`. `--push owner/name` uploads the folder, and the datasets to the dataset `owner/name-data`; both are made
private unless `--public`. It needs a token (`hf auth login`, or HF_TOKEN); HF_ENDPOINT names another hub.

Everything that can be refused is refused before anything is written; TARGET appears whole or not at all.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.history import lock
from flows.history import records as history_records
from flows.machine import state
from flows.params import file
from flows.sharing import card
from tasks.core import digests
from tasks.core.catalog import ARTIFACTS, BASE
from tasks.core.errors import BadInput, MissingArtifact, StageFailed, first_line, unknown_name
from tasks.core.models import folders, hub, tokenizers
from tasks.core.models.pointer import Pointer
from tasks.core.models.weights import load, save, write_ends

OURS = ("lineage.json", folders.BASE, folders.POINTER)  # what only this project reads
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
)
BASE_NAME = "base_model_name_or_path"
DATASETS = "datasets"


@dataclass(frozen=True)
class Policy:
    """The model to export. `made`: the iteration whose candidate it is; the last three are folders."""

    iteration: str
    made: str
    pointer: Pointer
    weights: Path
    adapter: Path | None
    tokenizer: Path


def export(root: Path, target: Path, iteration: str | None, base: str | None, merge: bool, datasets: bool) -> Policy:
    """Writes the folder. Raises `BadInput` before any work: `target` in the way, no promoted policy, a model that is
    not there or has changed, params.yaml that did not make it, an adapter whose base nobody else has."""
    params = file.load(root)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadInput(f"{target} is there and not empty; name a new folder, or empty it")
    policy = _policy(root, params, iteration)
    commit = _commit(root, params, policy.made)
    dataset = root / ARTIFACTS["dataset"].at(policy.made)
    if datasets and not (dataset / "README.md").is_file():
        raise MissingArtifact(f"{dataset} is not there, or made by an older version; `dvc repro` makes it")
    adapter_of = None
    if policy.adapter is not None and not merge:
        adapter_of = base or _hub_base(root, policy.pointer)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_model(policy, part, adapter_of)
        text = card.model_card(root, params, policy.made, commit, adapter_of)
        (part / "README.md").write_text(text, encoding="utf-8")
        if datasets:
            shutil.copytree(dataset, part / DATASETS)
            own = (dataset / "README.md").read_text(encoding="utf-8")
            text = card.dataset_card(root, params, policy.made, own)
            (part / DATASETS / "README.md").write_text(text, encoding="utf-8")
        part.chmod(0o755)
        part.replace(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return policy


def token_for(repo: str) -> str:
    """The user's token. Raises `BadInput` without one, or for a name that no repository can have."""
    from huggingface_hub import get_token

    if not hub.NAME.fullmatch(repo):
        raise BadInput(f"--push: given {repo!r}; a repository on the hub is owner/name")
    token = get_token()
    if token is None:
        raise BadInput("--push needs a token for the hub: `hf auth login`, or set HF_TOKEN; nothing was written")
    return token


def push(target: Path, repo: str, token: str, public: bool) -> list[str]:
    """Uploads the exported folder; the addresses. Raises `StageFailed` where the hub refuses; the folder stays."""
    import httpx
    from huggingface_hub import HfApi, errors

    api = HfApi(token=token)
    urls = []
    try:
        for folder, name, kind in ((target, repo, "model"), (target / DATASETS, f"{repo}-data", "dataset")):
            if folder.is_dir():
                made = api.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
                without = f"{DATASETS}/*" if kind == "model" else None
                api.upload_folder(
                    folder_path=folder,
                    repo_id=name,
                    repo_type=kind,
                    ignore_patterns=without,
                    commit_message="Exported by autodidact",
                )
                urls.append(str(made))
    except (errors.HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise StageFailed(
            f"{target} is written, but the hub refused it ({first_line(error)}); try `hf upload {repo} {target}`"
        ) from error
    return urls


def _policy(root: Path, params: Mapping[str, Any], iteration: str | None) -> Policy:
    """The policy after an iteration, or after the newest that has one."""
    iterations = lock.iterations(params)
    if iteration is not None and iteration not in iterations:
        raise unknown_name("iteration", iteration, iterations)
    records = {k: state.read_json(root / ARTIFACTS["policy"].at(k)) for k in iterations}
    there = [k for k in iterations if records[k]]
    if not there or (iteration is not None and iteration not in there):
        asked = iteration or "the repository"
        raise MissingArtifact(
            f"{asked} has no promoted policy (data/{iteration or 'i*'}/policy.json); `dvc repro` makes it"
        )
    chosen = iteration or there[-1]
    record = records[chosen] or {}
    pointer = Pointer(record["path"], record["digest"])
    folder = folders.resolve(root, pointer)
    if not folders.is_part(folder):
        folders.validate_folder(folder)
    folders.verify(folder, pointer, state.scratch_dir(root) / digests.KNOWN)
    found = re.fullmatch(r"data/(i\d+)/candidate", pointer.path)
    made = found.group(1) if found else BASE
    return Policy(chosen, made, pointer, *folders.parts(folder))


def _hub_base(root: Path, adapter: Pointer) -> str:
    """The hub name of an adapter's base. Raises `BadInput` where the base is a folder of this machine."""
    name = folders.base_pointer(root, adapter).path
    if (root / Path(name).expanduser()).is_dir() or not hub.NAME.fullmatch(name):
        raise BadInput(
            f"the policy is an adapter for {name}, a folder that others do not have; --merge writes the whole model, "
            "--base owner/name says under which name the hub has it"
        )
    return name


def _commit(root: Path, params: Mapping[str, Any], made: str) -> str:
    """The commit of the execution that made the model, else the one that is checked out. Raises `BadInput` where
    dvc.lock says that other values than those of params.yaml made it: the card would be wrong."""
    stage = "base" if made == BASE else "train"
    files = lock.Files(root)
    current = [e for e in lock.executions(root, params, files) if (e.stage, e.iteration) == (stage, made)]
    if (root / "dvc.lock").is_file() and not current:
        raise BadInput(
            f"params.yaml is not what made {made}'s model, so a card cannot say how it was made; restore params.yaml and "
            "dvc.lock (git), then `dvc checkout`, or `dvc repro` for the params as they are"
        )
    record = lock.record_of(current[0], history_records.records(root), files) if current else None
    return str((record or {}).get("tags", {}).get("git.commit") or history_records.commit(root))


def _write_model(policy: Policy, folder: Path, adapter_of: str | None) -> None:
    if policy.adapter is None:
        _copy(policy.weights, folder)
        if policy.tokenizer != policy.weights:
            _copy(policy.tokenizer, folder, TOKENIZER)
    elif adapter_of is not None:
        _copy(policy.adapter, folder)
        if policy.tokenizer != policy.adapter:
            _copy(policy.tokenizer, folder, TOKENIZER)
        config = json.loads((folder / folders.ADAPTER).read_text(encoding="utf-8"))
        text = json.dumps({**config, BASE_NAME: adapter_of}, indent=2, sort_keys=True)
        (folder / folders.ADAPTER).write_text(text + "\n", encoding="utf-8")
    else:
        whole = load(policy.adapter, "auto")  # in the number format that the weights have
        save(whole, tokenizers.load_tokenizer(policy.adapter), folder)
        return
    write_ends(tokenizers.plain_tokenizer(policy.tokenizer), policy.weights, folder)


def _copy(source: Path, target: Path, patterns: Sequence[str] = hub.FILES) -> None:
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if path.is_file() and path.name not in OURS:
            shutil.copyfile(path, target / path.name)


def listing(target: Path) -> Iterator[str]:
    files = [path for path in sorted(target.rglob("*")) if path.is_file()]
    yield from (f"  {path.relative_to(target)}  {path.stat().st_size:,}" for path in files)

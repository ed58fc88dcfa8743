"""A promoted model as a folder for others: `python -m flows.export [ITERATION] TARGET [--push REPO] [--datasets] [--merge]`.

TARGET becomes a plain Hugging Face model folder (weights, configuration, tokenizer) with a generated model card. Without
ITERATION it is the newest iteration's policy; with one, the policy after that iteration, which may be an earlier
candidate where the gate refused this one. A policy that is a LoRA adapter is exported as an adapter if its base has a hub
name (its own, or `--base`), and with `--merge` as a whole model.

`--datasets` adds `TARGET/datasets`: the rows that the model was trained on, for `datasets.load_dataset`, `trl sft` and
`trl dpo`. `--push owner/name` uploads the folder, and the datasets to the dataset `owner/name-data`; both are made private unless
`--public`. It needs a token (`hf auth login`, or HF_TOKEN); HF_ENDPOINT names another hub.

Everything that can be refused is refused before anything is written; TARGET appears whole or not at all.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import card, exits, history, state
from tasks.core import models
from tasks.core import params as parameters
from tasks.core.context import Pointer
from tasks.core.errors import BadInput, MissingArtifact, StageFailed, unknown_name

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
OURS = ("lineage.json", "base.json", models.POINTER)  # what only this project reads
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
)
ADAPTER = "adapter_config.json"
BASE_NAME = "base_model_name_or_path"
DATASETS = "datasets"


@dataclass(frozen=True)
class Policy:
    """The model to export. `made`: the iteration whose candidate it is; `weights`, `adapter` and `tokenizer`: folders."""

    key: str
    made: str
    pointer: Pointer
    weights: Path
    adapter: Path | None
    tokenizer: Path


def export(root: Path, target: Path, key: str | None, base: str | None, merge: bool, datasets: bool) -> Policy:
    """Writes the folder. Raises `BadInput` before any work: `target` in the way, no promoted policy, a model that is not
    there or has changed, params.yaml that did not make it, an adapter whose base nobody else has."""
    params = parameters.load(root)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadInput(f"{target} is there and not empty; name a new folder, or empty it")
    policy = _policy(root, params, key)
    commit = _commit(root, params, policy.made)
    dataset = root / "data" / policy.made / "dataset"
    if datasets and not (dataset / "README.md").is_file():
        raise MissingArtifact(f"{dataset} is not there, or made by an older version; `dvc repro` makes it")
    adapter_of = None
    if policy.adapter is not None and not merge:
        adapter_of = base or _hub_base(policy.adapter)
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

    if not card.HUB_NAME.fullmatch(repo):
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
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageFailed(
            f"{target} is written, but the hub refused it ({why}); try `hf upload {repo} {target}`"
        ) from error
    return urls


# --- which model ---------------------------------------------------------------------------------------------


def _policy(root: Path, params: Mapping[str, Any], key: str | None) -> Policy:
    """The policy after iteration `key`, or after the newest that has one."""
    keys = history.keys(params)
    if key is not None and key not in keys:
        raise unknown_name("iteration", key, keys)
    records = {k: state.read_json(root / "data" / k / "policy.json") for k in keys}
    there = [k for k in keys if records[k]]
    if not there or (key is not None and key not in there):
        asked = key or "the repository"
        raise MissingArtifact(f"{asked} has no promoted policy (data/{key or 'i*'}/policy.json); `dvc repro` makes it")
    chosen = key or there[-1]
    record = records[chosen] or {}
    pointer = Pointer(record["path"], record["digest"])
    folder = models.resolve(root, pointer)
    if _base_of(folder) is None:
        models.validate_folder(folder)
    if models.digest(folder) != pointer.digest:
        raise BadInput(
            f"{pointer.path} is not the model that was promoted (its digest is not {pointer.digest}); restore it with "
            "`dvc checkout`, or, for a pretrained model that was replaced, run `dvc repro -f base`"
        )
    found = re.fullmatch(r"data/(i\d+)/candidate", pointer.path)
    made = found.group(1) if found else parameters.BASE
    return Policy(chosen, made, pointer, *_parts(root, folder))


def _parts(root: Path, folder: Path) -> tuple[Path, Path | None, Path]:
    """Folders of the weights, of the adapter on top of them, and of the tokenizer."""
    base = _base_of(folder)
    if base is None:
        return folder, None, folder
    weights = models.resolve(root, Pointer(base, ""))
    own = any(folder.glob("tokenizer*.json"))
    return weights, folder if (folder / ADAPTER).is_file() else None, folder if own else weights


def _base_of(folder: Path) -> str | None:
    """The model that the folder is only a part of, by path or hub name; None for a whole model."""
    recorded = state.read_json(folder / "base.json") or {}
    adapter = state.read_json(folder / ADAPTER) or {}
    return recorded.get("path") or adapter.get(BASE_NAME)


def _hub_base(adapter: Path) -> str:
    """The hub name of an adapter's base. Raises `BadInput` where the base is a folder of this machine."""
    name = str(_base_of(adapter))
    if Path(name).expanduser().is_dir() or not card.HUB_NAME.fullmatch(name):
        raise BadInput(
            f"the policy is an adapter for {name}, a folder that others do not have; --merge writes the whole model, "
            "--base owner/name says under which name the hub has it"
        )
    return name


def _commit(root: Path, params: Mapping[str, Any], made: str) -> str:
    """The commit of the execution that made the model, else the one that is checked out. Raises `BadInput` where
    dvc.lock says that other values than those of params.yaml made it: the card would be wrong."""
    stage = "base" if made == parameters.BASE else "train"
    files = history.Files(root)
    current = [e for e in history.executions(root, params, files) if (e.stage, e.iteration) == (stage, made)]
    if (root / "dvc.lock").is_file() and not current:
        raise BadInput(
            f"params.yaml is not what made {made}'s model, so a card cannot say how it was made; restore params.yaml and "
            "dvc.lock (git), then `dvc checkout`, or `dvc repro` for the params as they are"
        )
    record = history.record_of(current[0], history.records(root), files) if current else None
    return str((record or {}).get("tags", {}).get("git.commit") or history.commit(root))


# --- writing -------------------------------------------------------------------------------------------------


def _write_model(policy: Policy, folder: Path, adapter_of: str | None) -> None:
    if policy.adapter is None:
        _copy(policy.weights, folder)
        if policy.tokenizer != policy.weights:
            _copy(policy.tokenizer, folder, TOKENIZER)
    elif adapter_of is not None:
        _copy(policy.adapter, folder)
        if policy.tokenizer != policy.adapter:
            _copy(policy.tokenizer, folder, TOKENIZER)
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        text = json.dumps({**config, BASE_NAME: adapter_of}, indent=2, sort_keys=True)
        (folder / ADAPTER).write_text(text + "\n", encoding="utf-8")
    else:
        _merge(policy.weights, policy.adapter, policy.tokenizer, folder)


def _merge(weights: Path, adapter: Path, tokenizer: Path, folder: Path) -> None:
    """The whole model, the adapter's product added to the weights, in the number format that they have."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        weights, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    models.save(
        PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(), models.load_tokenizer(tokenizer), folder
    )


def _copy(source: Path, target: Path, patterns: tuple[str, ...] = PATTERNS) -> None:
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        if path.is_file() and path.name not in OURS:
            shutil.copyfile(path, target / path.name)


def _listing(target: Path) -> Iterator[str]:
    files = [path for path in sorted(target.rglob("*")) if path.is_file()]
    yield from (f"  {path.relative_to(target)}  {path.stat().st_size:,}" for path in files)


def command(
    places: Annotated[
        list[str], typer.Argument(metavar="[ITERATION] TARGET", help="An iteration, and the new folder.")
    ],
    push_to: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload it to the hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository on the hub public.")] = False,
    datasets: Annotated[bool, typer.Option("--datasets", help="Also what the model was trained on.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Write an adapter as a whole model.")] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="OWNER/NAME", help="The adapter's base on the hub.")
    ] = None,
) -> None:
    """Writes the promoted model as a Hugging Face folder with a model card."""
    root = Path.cwd()
    state.quiet(root)
    if len(places) > 2:
        raise BadInput(f"given {' '.join(places)}; at most an iteration and a new folder are expected")
    key, target = (places[0] if len(places) == 2 else None), Path(places[-1]).expanduser()
    token = token_for(push_to) if push_to else ""
    policy = export(root, target, key, base, merge, datasets)
    older = "" if policy.key == policy.made else f" (what {policy.key} goes on with: its own candidate was refused)"
    print(f"{target}: {policy.made}'s model, digest {policy.pointer.digest}{older}")
    print("\n".join(_listing(target)))
    for url in push(target, push_to, token, public) if push_to else []:
        print(f"pushed to {url}")


if __name__ == "__main__":
    sys.exit(exits.code(lambda: typer.run(command)))

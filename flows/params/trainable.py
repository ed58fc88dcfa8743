"""Whether training can work on this machine and this model: packages, accelerate's file, layers for LoRA.

Every function gives problems, a line each. What accelerate allows is read from its source, because importing it
imports torch.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from flows.params.sections import section
from tasks.core.errors import unknown_name
from tasks.core.models import architectures, files, folders
from tasks.core.training.adapters import beyond_options, lacking

OLD_KEYS = {"fp16", "dynamo_backend"}  # of a file for accelerate, which still reads them


def _trainings(params: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The options of every training, by their place in params.yaml."""
    entries = {} if params["base"]["pretrained"] else {"base.sft": params["base"]["sft"]}
    for key in keys:
        entries |= {f"train.{name}": entry for name, entry in section(params, "train", key).items()}
    return entries


def machine(params: Mapping[str, Any], keys: Sequence[str], root: Path) -> Iterator[str]:
    """What training asks of this machine and is not there: bitsandbytes, a file for accelerate."""
    for place, entry in _trainings(params, keys).items():
        if (file := entry["accelerate"]) is not None:
            yield from (f"{place}.accelerate: {problem}" for problem in _launching(root, file))
        if entry["lora"] and entry["lora"]["load_in_4bit"] and (why := lacking("bitsandbytes")):
            yield f"{place}.lora.load_in_4bit: given true, but {why}; false is LoRA on the base as it is"


def _launching(root: Path, file: str) -> Iterator[str]:
    """Problems of a configuration file for `accelerate launch`."""
    makes = f"`accelerate config --config_file {file}` makes one"
    if not (root / file).is_file():
        yield f"given {file!r}: there is no such file; {makes}"
        return
    try:
        given = yaml.safe_load((root / file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        yield f"{file}{place}: is not YAML ({getattr(error, 'problem', None) or 'no UTF-8 text'}); {makes}"
        return
    if not isinstance(given, Mapping):
        yield f"{file}: is no mapping of settings; {makes}"
        return
    if given.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        return
    keys = known()
    for name in given if keys else ():
        if name not in {*keys, *OLD_KEYS}:
            yield str(unknown_name("key", str(name), keys, file))
    kind, kinds = given.get("distributed_type"), allowed()
    if "distributed_type" not in given:
        yield f"{file}: distributed_type is missing; {makes}"
    elif kind is False:
        yield f"{file}: distributed_type is NO, which YAML reads as false; write 'NO' with quotation marks"
    elif kinds and kind not in kinds:
        yield f"{file}: distributed_type is {kind!r}; allowed: {', '.join(kinds)}"
    elif kind == "DEEPSPEED" and (why := lacking("deepspeed")):
        yield f"{file}: distributed_type is DEEPSPEED, and {why}"


def known() -> list[str]:
    """Keys of a file for accelerate; [] if they cannot be found."""
    return _names("commands/config/config_args.py", "BaseConfig", "ClusterConfig")


def allowed() -> list[str]:
    """Values of its `distributed_type`; [] if they cannot be found."""
    return _names("utils/dataclasses.py", "DistributedType")


def _names(source: str, *classes: str) -> list[str]:
    """The names that classes of accelerate define, in their order; [] if they cannot be found."""
    spec = find_spec("accelerate")
    path = Path(spec.origin).parent / source if spec and spec.origin else None
    if path is None or not path.is_file():
        return []
    bodies = [
        node.body
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name in classes
    ]
    found: list[str] = []
    for item in (item for body in bodies for item in body):
        targets = (
            [item.target] if isinstance(item, ast.AnnAssign) else item.targets if isinstance(item, ast.Assign) else []
        )
        found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def continued(params: Mapping[str, Any], keys: Sequence[str], folder: Path | None) -> Iterator[str]:
    """What keeps training from going on with the adapter in `folder`, if there is one."""
    if folder is None or not any(entry["lora"] for entry in _trainings(params, keys).values()):
        return
    if (adapter := folders.parts(folder).adapter) is not None:
        yield from (f"base.pretrained: {problem}" for problem in beyond_options(adapter))


def targets(params: Mapping[str, Any], keys: Sequence[str], folder: Path | None) -> Iterator[str]:
    """Targets of LoRA that are no layer of the model: of the one in `folder`, or of the one that is made here."""
    wanted = {
        (place, target): None
        for place, entry in _trainings(params, keys).items()
        for target in (entry["lora"] or {}).get("targets", ())
    }
    if not wanted or (folder is None and params["base"]["pretrained"]):
        return
    if folder is None:
        there, kind = set(), params["base"]["architecture"]["model_type"]
    else:
        there, kind = files.layers(folders.parts(folder).weights), folders.read_config(folder)["model_type"]
    written = architectures.layers(kind)
    if not there and not written:
        return
    known = {name.rpartition(".")[2] for name in there} or written
    for place, target in wanted:
        last = target.rpartition(".")[2]
        if not (last in written or any(name == target or name.endswith(f".{target}") for name in there)):
            yield str(unknown_name("layer", target, known, f"{place}.lora.targets (layers of this model)"))

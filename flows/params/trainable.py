"""Whether training can work on this machine and this model: packages, accelerate's file, layers for LoRA.

Every function gives problems, a line each. A file for accelerate is read by accelerate itself, in a process of its own,
because importing it imports torch.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.params.sections import section
from tasks.core.errors import unknown_name
from tasks.core.models import architectures, files, folders
from tasks.core.training.adapters import beyond_options, lacking

LOADED = """
import sys
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
try:
    print(DistributedType(load_config_from_file(sys.argv[1]).distributed_type).value)
except AttributeError:
    sys.exit("is no mapping of settings")
except Exception as error:
    sys.exit(" ".join(str(error).split()).removesuffix("."))
"""


def _trainings(params: Mapping[str, Any], iterations: Sequence[str]) -> dict[str, Any]:
    """The options of every training, by their place in params.yaml."""
    entries = {} if params["base"]["pretrained"] else {"base.sft": params["base"]["sft"]}
    for iteration in iterations:
        entries |= {f"train.{name}": entry for name, entry in section(params, "train", iteration).items()}
    return entries


def machine(params: Mapping[str, Any], iterations: Sequence[str], root: Path) -> Iterator[str]:
    """What training asks of this machine and is not there: bitsandbytes, a file for accelerate."""
    for place, entry in _trainings(params, iterations).items():
        if (file := entry["accelerate"]) is not None:
            yield from (f"{place}.accelerate: {problem}" for problem in _launching(root, file))
        if entry["lora"] and entry["lora"]["load_in_4bit"] and (why := lacking("bitsandbytes")):
            yield f"{place}.lora.load_in_4bit: given true, but {why}; false is LoRA on the base as it is"


def _launching(root: Path, file: str) -> Iterator[str]:
    """Problems of a configuration file for `accelerate launch`, most of them in accelerate's own words."""
    makes = f"`accelerate config --config_file {file}` makes one"
    if not (root / file).is_file():
        yield f"given {file!r}: there is no such file; {makes}"
        return
    done = subprocess.run([sys.executable, "-c", LOADED, file], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it cannot be loaded"])[-1]
        hint = "; write 'NO' with quotation marks" if re.search(r"\bFalse is not a valid DistributedType", said) else ""
        yield f"{file}: {said}{hint}; {makes}"
    elif done.stdout.strip() == "DEEPSPEED" and (why := lacking("deepspeed")):
        yield f"{file}: distributed_type is DEEPSPEED, and {why}"


def continued(params: Mapping[str, Any], iterations: Sequence[str], folder: Path | None) -> Iterator[str]:
    """What keeps training from going on with the adapter in `folder`, if there is one."""
    if folder is None or not any(entry["lora"] for entry in _trainings(params, iterations).values()):
        return
    if (adapter := folders.parts(folder).adapter) is not None:
        yield from (f"base.pretrained: {problem}" for problem in beyond_options(adapter))


def targets(params: Mapping[str, Any], iterations: Sequence[str], folder: Path | None) -> Iterator[str]:
    """Targets of LoRA that are no layer of the model: of the one in `folder`, or of the one that is made here."""
    wanted = {
        (place, target): None
        for place, entry in _trainings(params, iterations).items()
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

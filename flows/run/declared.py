"""What dvc.yaml declares for one stage: its dependencies, parameters and outputs, with every `${...}` filled in.

Reads YAML only. It understands what this graph uses: plain stages, `foreach` over a mapping or a list, `${key}`,
`${item...}` and `${dotted.key}` of params.yaml, and entries given as a path or as `{path: options}`. DVC stays the
judge of what is current; this serves the runner, which checks outputs and keys its cache.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.params.file import parse
from tasks.core.errors import BadInput, unknown_name

Stages = dict[str, Any]  # the stages of dvc.yaml as written
TEMPLATE = re.compile(r"\$\{\s*([^}]+?)\s*\}")


@dataclass(frozen=True)
class Declared:
    """One stage, resolved. `deps` and `outs` are paths relative to the repository (metrics and plots count as
    outputs); `params` maps each declared dotted key to its value."""

    deps: tuple[str, ...]
    params: Mapping[str, Any]
    outs: tuple[str, ...]


def graph(root: Path) -> Stages:
    """The `stages` of dvc.yaml as written. Raises `BadInput`."""
    path = root / "dvc.yaml"
    if not path.is_file():
        raise BadInput(f"{path} is not there; run this in the repository's root, or restore it with git")
    try:
        stages = parse(path.read_text(encoding="utf-8"), "dvc.yaml").get("stages")
    except UnicodeDecodeError as error:
        raise BadInput(f"dvc.yaml is not UTF-8 text (byte {error.start}); restore it with git") from error
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise BadInput("dvc.yaml: has no mapping `stages` of mappings; restore it with git")
    return stages


def names(stages: Stages, params: Mapping[str, Any]) -> list[str]:
    """Every stage with its iteration, as DVC calls them: prepare, base, sample@i01, ..."""
    return [
        f"{stage}@{iteration}" if iteration else stage
        for stage, entry in stages.items()
        for iteration in _keys(entry, params)
    ]


def declared(stages: Stages, params: Mapping[str, Any], stage: str, iteration: str | None) -> Declared:
    """What dvc.yaml declares for `stage` of an iteration. Raises `UnknownName` or `BadInput`."""
    if stage not in stages:
        raise unknown_name("stage", stage, stages, "dvc.yaml")
    entry = stages[stage]
    iterations = list(_keys(entry, params))
    if iteration is None and None not in iterations:
        raise BadInput(f"{stage}: which iteration? Give one of {', '.join(str(k) for k in iterations)}")
    if iteration is not None and None in iterations:
        raise BadInput(f"{stage}: takes no iteration, but was given '{iteration}'")
    if iteration not in iterations:
        raise unknown_name("iteration", str(iteration), [str(k) for k in iterations], stage)
    scope: dict[str, Any] = dict(params)
    if iteration is not None:
        items = _items(entry, params)
        scope |= {"key": iteration, "item": items[iteration] if isinstance(items, Mapping) else iteration}
    body = entry.get("do", entry)
    outs = [path for kind in ("outs", "metrics", "plots") for path in _paths(body.get(kind, []))]
    where = f"{stage}@{iteration}" if iteration else stage
    return Declared(
        deps=tuple(_fill(path, scope, where) for path in _paths(body.get("deps", []))),
        params={name: lookup(params, name, where) for name in (_fill(p, scope, where) for p in body.get("params", []))},
        outs=tuple(_fill(path, scope, where) for path in outs),
    )


def lookup(params: Mapping[str, Any], dotted: str, where: str) -> Any:
    """The value of a dotted key. Raises `BadInput` where a part of it is missing."""
    value: Any = params
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise BadInput(f"{where}: dvc.yaml needs '{dotted}', which params.yaml does not have")
        value = value[part]
    return value


def _items(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    each = entry["foreach"]
    found = TEMPLATE.fullmatch(each) if isinstance(each, str) else None
    items = lookup(params, found.group(1), "foreach") if found else each
    if not isinstance(items, Mapping | list):
        raise BadInput(f"dvc.yaml: foreach {each!r} runs over {items!r}, which is neither a mapping nor a list")
    return items


def _keys(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str | None]:
    if "foreach" not in entry:
        yield None
    else:
        yield from (str(iteration) for iteration in _items(entry, params))


def _paths(entries: Any) -> Iterator[str]:
    for entry in entries:
        yield from entry if isinstance(entry, Mapping) else [entry]


def _fill(text: str, scope: Mapping[str, Any], where: str) -> str:
    return TEMPLATE.sub(lambda match: str(lookup(scope, match.group(1), where)), text)

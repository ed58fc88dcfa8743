"""Stages run in this process, without DVC and Prefect, their outputs written in place."""

import importlib
from pathlib import Path

from flows import layout
from flows import recipe as recipes
from tasks.core import params
from tasks.core.asking.opener import Opener
from tasks.core.context import Context


def use(root: Path, *names: str, family: str | None = None) -> None:
    """Writes params.yaml as `flows.recipe use` does, for one name after the other."""
    path = root / params.FILE
    for name in names:
        present = params.load(root) if path.is_file() else {}
        recipes.write(
            layout.render(
                recipes.chosen(name, present, None, None, None if name in recipes.names("sizes") else family)
            ),
            path,
        )


def perform(root: Path, stage: str, key: str | None = None) -> Context:
    """Runs one stage; the context says what it read and logged."""
    given = params.load(root)
    row = params.row(given, key) if key else {}
    opener = Opener(root, given["engine"], root / "scratch", serving=given["serving"])
    context = Context(
        stage, key, row, params.options(given, stage, key), params.seed(given, stage, key), given["labels"],
        given["engine"], root, root, root / "scratch", opener,
    )  # fmt: skip
    importlib.import_module(f"tasks.{stage}").run(context)
    return context

"""Stages run in this process, without DVC and Prefect, their outputs written in place."""

import importlib
from pathlib import Path

from flows.params import compose, file, sections, write
from tasks.core.asking.opener import Opener
from tasks.core.context import Context


def use(root: Path, *names: str, family: str | None = None) -> None:
    """Writes params.yaml as `flows.recipe use` does, for one name after the other."""
    path = root / file.FILE
    for name in names:
        present = file.load(root) if path.is_file() else {}
        write.write(
            write.render(compose.chosen(name, present, None, None, None if name in compose.names("sizes") else family)),
            path,
        )


def perform(root: Path, stage: str, key: str | None = None) -> Context:
    """Runs one stage; the context says what it read and logged."""
    given = file.load(root)
    row = sections.row(given, key) if key else {}
    opener = Opener(root, given["engine"], root / "scratch", serving=given["serving"])
    context = Context(
        stage, key, row, sections.options(given, stage, key), sections.seed(given, stage, key), given["labels"],
        given["engine"], root, root, root / "scratch", opener,
    )  # fmt: skip
    importlib.import_module(f"tasks.{stage}").run(context)
    return context

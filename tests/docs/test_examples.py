"""The worked examples of docs/: every file is written as the page says, every command given, every output compared.

A fence with a title is a file, a fence `diff` is applied with git, and in a fence `console` what follows `$ ` is given to
the shell (a here-document with it); each other line has to be in what the command says."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.workspace import IGNORED, run, workspace

FENCE = re.compile(r"^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(page: str) -> list[tuple[str, str | None, str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [(found["kind"], found["title"], found["text"]) for found in FENCE.finditer(text)]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command with the lines that it says."""
    found: list[tuple[str, list[str]]] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line.removeprefix("$ ")
            if end := re.search(r"<<'(\w+)'$", command):
                for inner in lines:
                    command += f"\n{inner}"
                    if inner == end[1]:
                        break
            found.append((command, []))
        elif line.strip():
            found[-1][1].append(line)
    return found


@pytest.mark.parametrize("page", ["write-a-recipe.md", "write-a-block.md", "write-a-family.md"])
def test_an_example_works_as_it_is_told(page: str, tmp_path: Path) -> None:
    folder = workspace(tmp_path / "here", tmp_path / "cache", size=None)
    shutil.copytree(ROOT / "tests/support", folder / "tests/support", ignore=IGNORED)
    shutil.copy(ROOT / "pyproject.toml", folder)
    given = 0
    for kind, title, text in steps(page):
        if title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(text, encoding="utf-8")
        elif kind == "diff":
            (folder / "edit.patch").write_text(text, encoding="utf-8")
            run(folder, "git", "apply", "--unidiff-zero", "edit.patch")
        elif kind == "console":
            for command, lines in commands(text):
                said = run(folder, "bash", "-ec", command)
                assert [line for line in lines if line not in said] == [], said
                given += 1
    assert given >= 4

"""params.yaml and other YAML files, read."""

import re
from pathlib import Path
from typing import Any

from tasks.core.errors import BadInput

FILE = "params.yaml"
URL = "put an address that stands in brackets into quotation marks, or write the list with a dash a line"


def load(root: Path) -> dict[str, Any]:
    """params.yaml as it stands, aliases and merge keys resolved. Raises `BadInput` for a file that is not
    there, no YAML, no mapping, or gives a key twice."""
    path = root / FILE
    if not path.is_file():
        above = next((folder for folder in root.absolute().parents if (folder / FILE).is_file()), None)
        if above is not None and (above / "dvc.yaml").is_file():
            raise BadInput(f"{path} is not there: commands are given in the repository's root; `cd {above}` first")
        raise BadInput(f"{path} is not there; `python -m flows.recipe use self_evolution` writes it")
    try:
        return parse(path.read_text(encoding="utf-8"), FILE)
    except UnicodeDecodeError as error:
        raise BadInput(f"{FILE} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def parse(text: str, name: str) -> dict[str, Any]:
    """YAML text as a mapping, read as DVC reads it: what one refuses the other does too. `name` is the file's, for
    messages. Raises `BadInput`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        given = YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        found = re.search(r'duplicate key "([^"]*)"', str(error))
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        what = f"key '{found.group(1)}'" if found else "a key"
        raise BadInput(f"{name}, line {line}: {what} is given twice; keep one of them") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        around = [*text.splitlines(), ""][line - 1 : line]  # the file may end before the mark
        hint = f"; {URL}" if "':'" in str(error.problem) and "://" in "".join(around) else ""
        raise BadInput(f"{name}, line {line}: is not YAML: {error.problem or error.context}{hint}") from error
    except YAMLError as error:
        raise BadInput(f"{name} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise BadInput(f"{name}: given {type(given).__name__}; its top level is a mapping of sections")
    return given

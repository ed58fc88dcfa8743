"""A toy repository: the real runner on a graph of two kinds of stages that write a few bytes each.

`start` writes a file and a folder; `grow@iNN` reads what the iteration before it wrote, asks a toy model for three
shards, and writes two outputs. Stages append their name to `ran.log`, shards and model loads theirs to `asked.log`.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.paths import ROOT

PROJECT_MODULE = '''
"""The toy's project: its parameters, its stages, and a model that answers each question with three shards.

With TOY_PAUSE=STAGE:MOMENT a stage waits at that moment, for as long as the file `paused` is there: `work` and `shard-N`
before anything is written, `publish` when the first output is in place, `end` when all is done but the process is there.
"""
import atexit
import os
import time
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
import yaml
from flows.run import workers
from tasks.core.errors import BadInput

def pause(moment, name):
    if os.environ.get("TOY_PAUSE") == f"{name}:{moment}":
        Path("paused").touch()
        while Path("paused").exists():
            time.sleep(0.02)

@dataclass
class Part:
    section: dict
    options: dict
    row: dict
    seed: int

class Project:
    def params(self, root, files):
        params = yaml.safe_load((root / "params.yaml").read_text())
        if "grow" not in params or params["grow"].get("by", 0) < 0:
            raise BadInput("grow.by: given -1; at least 0")
        return params

    def part(self, params, stage, iteration):
        row = params["iterations"][iteration] if iteration else {}
        section = {**params[stage], **row.get(stage, {})}
        seed = zlib.crc32(f"{params['seed']} {stage} {iteration}".encode())
        return Part(section, section, {"previous": row.get("previous", "i00")}, seed)

    def run(self, stage):
        def work(context):
            pause("work", context.name)
            atexit.register(pause, "end", context.name)
            if os.environ.get("TOY_PAUSE") == f"{context.name}:publish":
                rename = Path.rename
                Path.rename = lambda path, target: (rename(path, target), pause("publish", context.name))[0]
            import_module(f"tasks.{stage}").run(context)
        return work

    def opener(self, root, scratch, params, progress):
        return Opener(root, scratch, workers.run_here)

@dataclass
class Shard:
    key: str
    path: Path
    log: Path
    def valid(self):
        return self.path.is_file() and self.path.read_text() == self.key
    def run(self):
        pause(f"shard-{self.key[-1]}", self.key.partition("-")[0])
        with self.log.open("a") as log:
            log.write("shard\\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.key)
        return {"made": 1}

@dataclass
class Tally:
    seconds: float = 0.0
    def figures(self):
        return {}

class Opener:
    def __init__(self, root, scratch, map_shards):
        self.root, self.scratch, self.map_shards, self.loaded = root, scratch, map_shards, set()
    def __call__(self, pointer):
        if pointer.digest not in self.loaded:
            with (self.root / "asked.log").open("a") as log:
                log.write(f"load {pointer.digest}\\n")
        self.loaded.add(pointer.digest)
        return self
    def take_tally(self):
        return Tally()
    def close(self):
        pass
    def ask(self, question):
        keys = [f"{question}-{number}" for number in range(3)]
        self.map_shards([Shard(k, self.scratch / "shards" / k, self.root / "asked.log") for k in keys])
        return len(keys)
'''

START_MODULE = '''
"""Writes a number and a folder of two files."""
def run(context):
    with (context.root / "ran.log").open("a") as log:
        log.write(context.name + "\\n")
    context.write("data/i00/number.txt").write_text(str(context.options["number"]))
    context.write("data/seeds/a.txt").write_text("a")
    context.write("data/seeds/deep/b.txt").write_text("b")
    context.log(seeds=2)
'''

GROW_MODULE = '''
"""Adds to the previous number, with the help of a model."""
from tasks.core.models.pointer import Pointer
def run(context):
    with (context.root / "ran.log").open("a") as log:
        log.write(context.name + "\\n")
    number = int(context.read(f"data/{context.row['previous']}/number.txt").read_text())
    asked = context.model(Pointer("model", "m1")).ask(f"{context.name}-{number}")
    context.write(f"data/{context.iteration}/number.txt").write_text(str(number + context.options["by"] + asked))
    if context.options["by"] == 13:
        raise ValueError("thirteen is unlucky")
    context.write(f"data/{context.iteration}/note.json").write_text("{}\\n")
    context.log(shards=asked, replies=1234.0)
    context.curves.append({"step": 1.0, "loss": 0.5})
'''

TRACKING_MODULE = '''
"""Notes that it was called."""
class TrackingFailed(Exception):
    pass

def sync(root):
    (root / "synced").touch()
'''

DVC_YAML = """
stages:
  start:
    cmd: python -m flows.stage start
    deps: [tasks/start.py]
    params: [start, seed]
    outs: [data/i00/number.txt, data/seeds]
  grow:
    foreach: ${iterations}
    do:
      cmd: python -m flows.stage grow ${key}
      deps: [tasks/grow.py, "data/${item.previous}/number.txt", data/seeds]
      params: [grow, "iterations.${key}.grow", seed]
      outs: ["data/${key}/number.txt"]
      metrics: [{"data/${key}/note.json": {cache: false}}]
"""

PARAMS_YAML = """
recipe: toy
seed: 0
labels: false
engine: {name: toy}
serving: {}
runner: {name: local, training: never}
start: {number: 5}
grow: {by: 1}
iterations:
  i01: {previous: i00, grow: {}}
  i02: {previous: i01, grow: {by: 2}}
"""


@dataclass(frozen=True)
class Toy:
    """A toy repository and ways to use it from outside."""

    root: Path
    server: str = ""  # a Prefect server to use; without it the repository starts its own

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DVC_"))}
        kept |= {"PREFECT_API_URL": self.server} if self.server else {}
        return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=300)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.call(sys.executable, *arguments)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "dvc", *arguments)

    def lines(self, name: str) -> list[str]:
        """Lines of `ran.log` or `asked.log`, which this empties."""
        path = self.root / name
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def edit(self, old: str, new: str) -> None:
        path = self.root / "params.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def artifacts(self) -> dict[str, bytes]:
        files = [self.root / "dvc.lock", *sorted((self.root / "data").rglob("*"))]
        return {str(f.relative_to(self.root)): f.read_bytes() for f in files if f.is_file()}


def make(root: Path) -> Toy:
    """The toy repository as files, without git and DVC: this project's code, but for what the toy brings itself."""
    for top in ("flows", "tasks"):
        shutil.copytree(ROOT / top, root / top, ignore=shutil.ignore_patterns("__pycache__"))
    texts = {
        "tasks/start.py": START_MODULE,
        "tasks/grow.py": GROW_MODULE,
        "flows/run/project.py": PROJECT_MODULE,
        "flows/history/mlflow.py": TRACKING_MODULE,
        "flows/summary.py": '"""A table."""\ndef show(root):\n    print("the table")\n',
        "dvc.yaml": DVC_YAML,
        "params.yaml": PARAMS_YAML,
        ".gitignore": ".autodidact/\n__pycache__/\n*.log\nsynced\n",
    }
    for name, text in texts.items():
        (root / name).write_text(dedent(text).lstrip())
    return Toy(root)


@pytest.fixture
def toy_files(tmp_path: Path) -> Toy:
    return make(tmp_path / "toy")


@pytest.fixture
def toy(toy_files: Toy) -> Toy:
    """The toy repository under git and DVC."""
    for command in (("git", "init", "-q"), (sys.executable, "-m", "dvc", "init", "-q")):
        assert toy_files.call(*command).returncode == 0
    return toy_files

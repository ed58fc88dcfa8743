"""What an edit reruns, and what it pays for: on the real graph, with a model of a few thousand weights.

Each case edits one thing, runs `dvc repro`, and says exactly which stages ran and how many requests were put to the
model; then the edit is undone, and DVC's run cache must restore everything without work."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.e2e.workspace import IGNORED, REPOSITORY, digests, edit, kept_server, ran, requests_made, run, workspace

POOL, DRAWS, PROMPTS_A_SHARD = 24, 4, 4
I01 = {
    f"{stage}@i01" for stage in ("synthesize", "sample", "critique", "refine", "filter", "train", "evaluate", "promote")
}
I02 = {name.replace("i01", "i02") for name in I01}
ALL = {"prepare", "base", "evaluate@i00", "report"} | I01 | I02
AFTER_TRAINING = {"evaluate@i02", "promote@i02", "report"}
MODEL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def row(number: int) -> dict[str, str]:
    return {
        "problem": f"Ann has {number} nuts and finds {number % 7} more. How many nuts does she have?",
        "solution": f"#### {number + number % 7}",
    }


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory):
    """A finished run of two iterations on 110 word problems."""
    place = tmp_path_factory.mktemp("edits")
    folder = workspace(place / "here", place / "cache")
    run(folder, "python", "-m", "flows.recipe", "use", "self_evolution", "--family", "text")
    write_rows(folder, [row(number) for number in range(110)])
    params = yaml.safe_load((folder / "params.yaml").read_text())
    prepare, base = params["prepare"], params["base"]
    prepare["source"] = "mine.jsonl"
    prepare["options"] |= {"prompt_field": "problem", "answer_field": "solution"}
    prepare["options"] |= {"heldout": 6, "probe": 4, "labelled": 30}
    base |= {"pretrained": None, "tokenizer": {"vocabulary_size": 400}}
    base["architecture"] |= {**MODEL, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024}
    base["sft"] |= {"steps": 10, "warmup_steps": 2, "mixture": {"solve": 8}, "threads": 1}
    params["engine"] |= {"threads": 1, "rows_per_shard": PROMPTS_A_SHARD * 2, "draws_per_shard": 2}
    params["synthesize"]["pool"]["n"] = POOL
    params["sample"]["iid"] |= {"n": DRAWS, "max_new_tokens": 16}
    for block in params["critique"].values():
        block["max_new_tokens"] = 16
    params["refine"]["revise"] |= {"per_prompt": 1, "max_new_tokens": 16}
    params["filter"] = {"keep_all": {}, "relative_length": {"at_least": 0.0}, "positives": {}}
    params["train"]["sft"] |= {"steps": 4, "warmup_steps": 1, "mixture": {"own": 8}, "threads": 1}
    params["evaluate"] |= {"samples": 2, "max_new_tokens": 16, "critics": {}, "best_of": None, "refine": None}
    params["iterations"] = {key: params["iterations"][key] for key in ("i01", "i02")}
    params["evaluations"] = {"i00": {"evaluate": {}}, **params["iterations"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    with kept_server(folder):
        assert set(ran(run(folder, "dvc", "repro"))) == ALL
        yield folder


@dataclass(frozen=True)
class Edit:
    """`change` is made; `stages` then run, all others do not. `requests`: stage -> requests put to the model, for
    those where it is not whatever the new inputs ask."""

    change: Callable[[Path], None]
    stages: set[str]
    requests: dict[str, int]


def param(path: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, path, value)


def appended(file: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(path.read_text() + text)

    return change


def template(name: str) -> Callable[[Path], None]:
    return appended(f"tasks/families/templates/text/{name}.j2", "\nTake care.\n")


def rows_changed(folder: Path) -> None:
    write_rows(folder, [row(number if number != 55 else 1000) for number in range(110)])


def row_inserted(folder: Path) -> None:
    write_rows(folder, [row(number) for number in [*range(55), 1000, *range(55, 110)]])


EDITS = {
    "a comment in params.yaml": Edit(appended("params.yaml", "# mine\n"), set(), {}),
    "a comment in a file that is no stage's": Edit(appended("README.md", "\n"), set(), {}),
    "the section of another stage": Edit(
        param("evaluate.samples", 3),
        {"evaluate@i00", "evaluate@i01", "evaluate@i02", "promote@i01", "promote@i02", "report"},
        {},
    ),
    "an input row": Edit(rows_changed, ALL, {}),
    "an inserted row": Edit(row_inserted, ALL, {}),
    "prompt template": Edit(template("answer"), ALL, {}),
    "system prompt": Edit(param("prepare.options.system", "You count nuts."), ALL, {}),
    "judge rubric": Edit(template("critique"), ALL, {}),
    "refine template": Edit(template("refine"), ALL, {}),
    "temperature": Edit(param("iterations.i02.sample", {"iid": {"temperature": 0.5}}), ALL, {}),
    "n": Edit(param("iterations.i02.sample", {"iid": {"n": 6}}), ALL, {}),
    "model weights": Edit(param("base.sft.steps", 11), ALL, {}),
    "parser code": Edit(appended("tasks/families/text.py", "# mine\n"), ALL, {}),
    "filter threshold": Edit(param("iterations.i02.filter", {"relative_length": {"at_least": 0.5}}), ALL, {}),
    "training rate": Edit(param("iterations.i02.train", {"sft": {"learning_rate": 0.01}}), ALL, {}),
    "seed": Edit(param("seed", 1), ALL, {}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_what_used_it(repository: Path, name: str) -> None:
    case, before = EDITS[name], digests(repository)
    kept = {file: (repository / file).read_text() for file in ("params.yaml", "mine.jsonl")}
    case.change(repository)
    asked = requests_made(repository)
    done = ran(run(repository, "dvc", "repro"))
    new = requests_made(repository) - asked
    print(name, sorted(set(done)), new)
    for file, text in kept.items():
        (repository / file).write_text(text)
    shutil.rmtree(repository / "tasks")
    shutil.copytree(REPOSITORY / "tasks", repository / "tasks", ignore=IGNORED)
    assert ran(run(repository, "dvc", "repro")) == []
    assert digests(repository) == before

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

from tests.support.workspace import IGNORED, ROOT, digests, edit, kept_server, ran, requests_made, run, workspace

POOL, DRAWS, EVALUATED, ROWS_A_SHARD = 70, 4, 10, 16
LOOP = {f"{stage}@i01" for stage in ("synthesize", "sample", "critique", "refine", "filter", "train")}
AFTER_TRAINING = {"evaluate@i01", "promote@i01", "report"}
ALL = {"prepare", "base", "evaluate@i00"} | LOOP | AFTER_TRAINING
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
    """A finished run of one iteration on 110 word problems."""
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
    params["engine"] |= {"threads": 1, "rows_per_shard": ROWS_A_SHARD, "draws_per_shard": 2}
    params["synthesize"]["pool"]["n"] = POOL
    params["sample"]["iid"] |= {"n": DRAWS, "max_new_tokens": 16}
    for block in params["critique"].values():
        block["max_new_tokens"] = 16
    params["refine"]["revise"] |= {"per_prompt": 1, "max_new_tokens": 16}
    params["filter"] = {"keep_all": {}, "relative_length": {"longest": 1.0, "below": 100}, "positives": {}}
    params["train"]["sft"] |= {"steps": 4, "warmup_steps": 1, "mixture": {"own": 8}, "threads": 1}
    params["evaluate"] |= {"samples": 2, "max_new_tokens": 16, "critics": {}, "best_of": None, "refine": None}
    params["iterations"] = {"i01": params["iterations"]["i01"]}
    params["evaluations"] = {key: {} for key in ("i00", *params["iterations"])}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    with kept_server(folder):
        assert set(ran(run(folder, "dvc", "repro"))) == ALL
        yield folder


@dataclass(frozen=True)
class Edit:
    """`change` is made; `stages` then run, all others do not. `requests`: how many are put to the model by a stage, at
    least and at most; by a stage not named here, none."""

    change: Callable[[Path], None]
    stages: set[str]
    requests: dict[str, tuple[int, int]]


def param(path: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, path, value)


def appended(file: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(path.read_text() + text)

    return change


def template(name: str) -> Callable[[Path], None]:
    return appended(f"tasks/templates/text/{name}.j2", "\nTake care.\n")


def row_changed(folder: Path) -> None:
    write_rows(folder, [row(number if number != 55 else 1000) for number in range(110)])


def row_inserted(folder: Path) -> None:
    write_rows(folder, [row(number) for number in [*range(55), 1000, *range(55, 110)]])


ASKED = {"sample@i01": (POOL * DRAWS,) * 2, "critique@i01": (POOL, POOL * DRAWS)}  # equal answers are judged once
EVALUATION = {"evaluate@i01": (EVALUATED * 3,) * 2}  # greedy, and two samples
EVERYTHING = {**ASKED, **EVALUATION, "evaluate@i00": (EVALUATED * 3,) * 2}
SOME = (1, POOL * DRAWS // 2)  # a row that leaves and one that comes: about two shards of 8 prompts each
EDITS = {
    "a comment in params.yaml": Edit(appended("params.yaml", "# mine\n"), set(), {}),
    "a file that is no stage's": Edit(lambda folder: (folder / "notes.md").write_text("mine"), set(), {}),
    "the section of another stage": Edit(
        param("evaluate.samples", 3),
        {"evaluate@i00"} | AFTER_TRAINING,
        {"evaluate@i00": (EVALUATED,) * 2, "evaluate@i01": (EVALUATED,) * 2},
    ),
    "an input row": Edit(
        row_changed, ALL - {"base", "evaluate@i00"}, {"sample@i01": SOME, "critique@i01": SOME, **EVALUATION}
    ),
    "an inserted row": Edit(
        row_inserted, ALL - {"base", "evaluate@i00"}, {"sample@i01": SOME, "critique@i01": SOME, **EVALUATION}
    ),
    "prompt template": Edit(template("answer"), ALL, EVERYTHING),
    "system prompt": Edit(param("prepare.options.system", "You count nuts."), ALL, EVERYTHING),
    "judge rubric": Edit(
        template("critique"),
        {"prepare", "critique@i01", "refine@i01", "evaluate@i00", "evaluate@i01"},
        {"critique@i01": (POOL, POOL * DRAWS)},
    ),
    "refine template": Edit(template("refine"), {"prepare", "refine@i01", "evaluate@i00", "evaluate@i01"}, {}),
    "template of a judge that no stage uses": Edit(template("pairwise"), {"prepare", "critique@i01"}, {}),
    "self-instruct template": Edit(template("invent"), {"prepare", "synthesize@i01"}, {}),
    "how replies are read": Edit(
        appended("tasks/families/text/replies.py", "# mine\n"),
        {"prepare", "synthesize@i01", "critique@i01", "refine@i01", "evaluate@i00", "evaluate@i01"},
        {},
    ),
    "temperature": Edit(
        param("iterations.i01.sample", {"iid": {"temperature": 0.5}}),
        (LOOP - {"synthesize@i01"}) | AFTER_TRAINING,
        {**ASKED, **EVALUATION},
    ),
    "n": Edit(
        param("iterations.i01.sample", {"iid": {"n": DRAWS + 2}}),
        (LOOP - {"synthesize@i01"}) | AFTER_TRAINING,
        {"sample@i01": (POOL * 2,) * 2, "critique@i01": (1, POOL * 2), **EVALUATION},
    ),
    "model weights": Edit(param("base.sft.steps", 11), ALL - {"prepare"}, EVERYTHING),
    "parser code": Edit(
        appended("tasks/families/text/family.py", "# mine\n"),
        {
            "prepare",
            "base",
            "synthesize@i01",
            "sample@i01",
            "critique@i01",
            "refine@i01",
            "evaluate@i00",
            "evaluate@i01",
        },
        {},
    ),
    "filter threshold": Edit(
        param("iterations.i01.filter", {"relative_length": {"below": 0}}),
        {"filter@i01", "train@i01"} | AFTER_TRAINING,
        EVALUATION,
    ),
    "training rate": Edit(
        param("iterations.i01.train", {"sft": {"learning_rate": 0.01}}), {"train@i01"} | AFTER_TRAINING, EVALUATION
    ),
    "seed": Edit(param("seed", 1), ALL, EVERYTHING),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_what_used_it_and_pays_for_what_is_new(repository: Path, name: str) -> None:
    case, before, asked = EDITS[name], digests(repository), requests_made(repository)
    kept = {file: (repository / file).read_text() for file in ("params.yaml", "mine.jsonl", "dvc.lock")}
    try:
        case.change(repository)
        done = ran(run(repository, "dvc", "repro"))
        assert len(done) == len(set(done))
        assert case.stages - {"report"} <= set(done) <= case.stages  # report runs if a figure came out otherwise
        new = requests_made(repository) - asked
        assert set(new) == set(case.requests)
        for stage, (least, most) in case.requests.items():
            assert least <= new[stage] <= most, stage
    finally:
        for file, text in kept.items():
            (repository / file).write_text(text)
        shutil.rmtree(repository / "tasks")
        shutil.copytree(ROOT / "tasks", repository / "tasks", ignore=IGNORED)
        run(repository, "dvc", "checkout")
    assert digests(repository) == before


def test_an_edit_undone_is_restored_without_work(repository: Path) -> None:
    before, text = digests(repository), (repository / "params.yaml").read_text()
    edit(repository, "iterations.i01.sample", {"iid": {"temperature": 0.7}})
    assert len(ran(run(repository, "dvc", "repro"))) == 8
    (repository / "params.yaml").write_text(text)
    assert ran(run(repository, "dvc", "repro")) == []
    assert digests(repository) == before

"""What an edit reruns, and what it pays for: on the real graph, with a model of a few thousand weights.

Every edit is put to DVC, which says the stages that see it at once, without any work. Those whose effect goes on through
the data are made: `dvc repro` runs exactly the stages that are named, puts as many requests to the model as are named,
and once the edit is undone, DVC's run cache restores everything without work."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.work import ROWS
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
    params["filter"] = {"keep_all": {}, "relative_length": {"longest": 1.0, "below": 100}, "rows": ROWS}
    params["train"]["sft"] |= {"steps": 4, "warmup_steps": 1, "mixture": {"own": 8}, "threads": 1}
    params["evaluate"] |= {"samples": 2, "max_new_tokens": 16, "critics": {}, "best_of": None, "refine": None}
    params["iterations"] = {"i01": params["iterations"]["i01"]}
    params["evaluations"] = {key: {} for key in ("i00", *params["iterations"])}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    with kept_server(folder):
        assert set(ran(run(folder, "dvc", "repro"))) == ALL
        yield folder


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


EVERY = {f"{stage}@i01" for stage in ("synthesize", "sample", "critique", "refine", "filter", "train")}
PARSED = {
    "prepare",
    "base",
    "evaluate@i00",
    "evaluate@i01",
    *(f"{s}@i01" for s in ("synthesize", "sample", "critique", "refine")),
}
SEEN: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a comment in params.yaml": (appended("params.yaml", "# mine\n"), set()),
    "a file that is no stage's": (lambda folder: (folder / "notes.md").write_text("mine"), set()),
    "what changes no result": (param("runner.workers", 3), set()),
    "the section of another stage": (param("evaluate.samples", 3), {"evaluate@i00", "evaluate@i01"}),
    "an input row": (row_changed, {"prepare"}),
    "system prompt": (param("prepare.options.system", "You count nuts."), {"prepare"}),
    **{
        f"template {name}": (template(name), {"prepare"})
        for name in ("answer", "critique", "refine", "invent", "pairwise", "checklist", "retry")
    },
    "how replies are read": (appended("tasks/families/text/replies.py", "# mine\n"), {"prepare"}),
    "how the user's rows are read": (appended("tasks/families/text/intake.py", "# mine\n"), {"prepare"}),
    "the family's code": (appended("tasks/families/text/family.py", "# mine\n"), PARSED),
    "another family's code": (appended("tasks/families/countdown/family.py", "# mine\n"), {"prepare"}),
    "how a judge asks": (
        appended("tasks/blocks/critique/holistic.py", "# mine\n"),
        {"critique@i01", "refine@i01", "evaluate@i00", "evaluate@i01"},
    ),
    "how opinions are put together": (
        appended("tasks/blocks/critique/opinions.py", "# mine\n"),
        {"critique@i01", "refine@i01", "filter@i01", "evaluate@i00", "evaluate@i01"},
    ),
    "a filter": (appended("tasks/blocks/filter/select.py", "# mine\n"), {"filter@i01"}),
    "a chat template": (appended("tasks/templates/chat/plain.jinja", ""), set()),
    "temperature": (param("iterations.i01.sample", {"iid": {"temperature": 0.5}}), {"sample@i01"}),
    "n": (param("iterations.i01.sample", {"iid": {"n": DRAWS + 2}}), {"sample@i01"}),
    "model weights": (param("base.sft.steps", 11), {"base"}),
    "filter threshold": (param("iterations.i01.filter", {"relative_length": {"below": 0}}), {"filter@i01"}),
    "training rate": (param("iterations.i01.train", {"sft": {"learning_rate": 0.01}}), {"train@i01"}),
    "the engine": (
        param("engine.batch_size", 99),
        {"evaluate@i00", "evaluate@i01", *(f"{s}@i01" for s in ("synthesize", "sample", "critique", "refine"))},
    ),
    "seed": (param("seed", 1), {"prepare", "base", "evaluate@i00", "evaluate@i01"} | EVERY),
}


@contextmanager
def undone(repository: Path) -> Iterator[None]:
    """Afterwards every file is as it was."""
    kept = {file: (repository / file).read_text() for file in ("params.yaml", "mine.jsonl", "dvc.lock")}
    try:
        yield
    finally:
        for file, text in kept.items():
            (repository / file).write_text(text)
        shutil.rmtree(repository / "tasks")
        shutil.copytree(ROOT / "tasks", repository / "tasks", ignore=IGNORED)


@pytest.mark.parametrize("name", SEEN)
def test_an_edit_is_seen_by_the_stages_that_use_it(repository: Path, name: str) -> None:
    from dvc.repo import Repo

    change, stages = SEEN[name]
    with undone(repository):
        change(repository)
        with Repo(str(repository)) as repo:
            assert {seen.rpartition(":")[2] for seen in repo.status()} == stages


ASKED = {"sample@i01": (POOL * DRAWS,) * 2, "critique@i01": (POOL, POOL * DRAWS)}  # equal answers are judged once
EVALUATION = {"evaluate@i01": (EVALUATED * 3,) * 2}  # greedy, and two samples
SOME = (1, POOL * DRAWS // 2)  # a row that leaves and one that comes: about two shards of 8 prompts each


@dataclass(frozen=True)
class Paid:
    """`stages` run after the edit `name` (of SEEN, or `change`), all others do not. `requests`: how many are put to the
    model by a stage, at least and at most; by a stage not named here, none."""

    change: Callable[[Path], None]
    stages: set[str]
    requests: dict[str, tuple[int, int]]


PAID = {
    "an inserted row": Paid(
        row_inserted, ALL - {"base", "evaluate@i00"}, {"sample@i01": SOME, "critique@i01": SOME, **EVALUATION}
    ),
    "n": Paid(
        SEEN["n"][0],
        (LOOP - {"synthesize@i01"}) | AFTER_TRAINING,
        {"sample@i01": (POOL * 2,) * 2, "critique@i01": (1, POOL * 2), **EVALUATION},
    ),
    "prompt template": Paid(template("answer"), ALL, {**ASKED, **EVALUATION, "evaluate@i00": (EVALUATED * 3,) * 2}),
    "judge rubric": Paid(
        template("critique"),
        {"prepare", "sample@i01", "critique@i01", "refine@i01", "evaluate@i00", "evaluate@i01"},
        {"critique@i01": (POOL, POOL * DRAWS)},
    ),
    "the prompt of a use that nobody asks for": Paid(template("retry"), {"prepare", "sample@i01", "refine@i01"}, {}),
    "how replies are read": Paid(
        SEEN["how replies are read"][0],
        {"prepare", "synthesize@i01", "sample@i01", "critique@i01", "refine@i01", "evaluate@i00", "evaluate@i01"},
        {},
    ),
    "the family's code": Paid(SEEN["the family's code"][0], PARSED, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAID)
def test_an_edit_reruns_what_used_it_and_pays_for_what_is_new(repository: Path, name: str) -> None:
    case, before, asked = PAID[name], digests(repository), requests_made(repository)
    with undone(repository):
        case.change(repository)
        done = ran(run(repository, "dvc", "repro"))
        assert len(done) == len(set(done))
        assert case.stages - {"report"} <= set(done) <= case.stages  # report runs if a figure came out otherwise
        new = requests_made(repository) - asked
        assert set(new) == set(case.requests)
        for stage, (least, most) in case.requests.items():
            assert least <= new[stage] <= most, stage
    run(repository, "dvc", "checkout")
    assert digests(repository) == before


@pytest.mark.slow
def test_an_edit_undone_is_restored_without_work(repository: Path) -> None:
    before, text = digests(repository), (repository / "params.yaml").read_text()
    edit(repository, "iterations.i01.sample", {"iid": {"temperature": 0.7}})
    assert len(ran(run(repository, "dvc", "repro"))) == 8
    (repository / "params.yaml").write_text(text)
    assert ran(run(repository, "dvc", "repro")) == []
    assert digests(repository) == before

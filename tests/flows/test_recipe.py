"""Recipes: each is valid at every size, and `use` writes the same bytes every time."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import recipe
from flows.params import compose, file, gallery, problems, sections, write
from tasks.core.errors import BadInput
from tests.support.paths import ROOT

RECIPES = compose.names()
ON_COUNTDOWN = ["oracle", "self_evolution", "self_rewarding", "unfiltered"]  # compared on one budget
ELSEWHERE = {
    "self_improving_transformers",
    "evolve_self_refinement",
    "generative_self_aggregation",
    "multi_agent_debate",
}
ON_SUMS = sorted({*RECIPES} - ELSEWHERE)
SEE_LABELS = {"oracle", *compose.names("verifier")}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use(*arguments: str) -> str:
    result = CliRunner().invoke(recipe.app, ["use", *arguments])
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_committed_file_is_what_use_writes() -> None:
    committed = (ROOT / "params.yaml").read_text()
    made = compose.chosen("self_evolution", file.load(ROOT), None, None, None)
    assert write.render(made) == committed, "run `python -m flows.recipe use self_evolution`"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", ["full", "mini"])
def test_every_recipe_is_valid_and_written_twice_alike(repository: Path, name: str, size: str) -> None:
    use(name)
    if size == "mini":
        use("mini")
    first = (repository / "params.yaml").read_bytes()
    params = file.load(repository)
    files = None if params["prepare"]["family"] == "text" else ROOT  # the user's own are not here
    problems.check(params, files, compose.names())
    assert params["recipe"] == name
    assert write.render(params).encode() == first
    assert "0 values changed" in use(name if size == "full" else "mini")
    assert (repository / "params.yaml").read_bytes() == first


@pytest.mark.parametrize("name", ON_SUMS)
def test_a_method_on_sums(repository: Path, name: str) -> None:
    use(name, "--family", "sums")
    problems.check(file.load(repository), ROOT, compose.names())
    use("mini")
    params = file.load(repository)
    problems.check(params, ROOT, compose.names())
    assert params["prepare"]["options"]["n"] == 3


def test_a_recipe_restores_what_mini_lowered(repository: Path) -> None:
    use("scpo")
    full = (repository / "params.yaml").read_bytes()
    shown = use("mini")
    assert "synthesize.pool.n: 1000 -> 60" in shown
    small = file.load(repository)
    assert small["recipe"] == "scpo"
    assert len(small["iterations"]) == 3
    use("scpo")
    assert (repository / "params.yaml").read_bytes() == full


def test_a_size_lowers_and_sets_what_is_there_and_raises_nothing() -> None:
    size = compose.Size(
        summary="x", iterations=3, set={"a.d": "s", "a.e": 1}, limits={"a.*.n": 5, "a.b.flag": 1, "z": 1}
    )
    assert compose.resized({"a": {"b": {"n": 9, "flag": True}, "c": {"n": 2}, "d": 1}}, size) == {
        "a": {"b": {"n": 5, "flag": True}, "c": {"n": 2}, "d": "s"}
    }


@pytest.mark.parametrize("name", ON_COUNTDOWN)
def test_methods_differ_in_judgement_and_not_in_budget(name: str) -> None:
    default, other = compose.compose("self_evolution"), compose.compose(name)
    for section in ("engine", "prepare", "base", "synthesize", "evaluate", "promote", "iterations"):
        assert other[section] == default[section], section
    draws = other["sample"]["iid"]["n"] + other["refine"].get("revise", {"per_prompt": 0})["per_prompt"]
    assert draws == 9 + 3
    (training,) = other["train"].values()
    own = training["mixture"]["own"] * (1 + ("loss" in training))
    corpus = training.get("replay") or {k: v for k, v in training["mixture"].items() if k != "own"}
    base = default["train"]["sft"]
    assert (training["steps"], own, corpus) == (
        base["steps"],
        96,
        {k: v for k, v in base["mixture"].items() if k != "own"},
    )


@pytest.mark.parametrize("name", ["lmsi", "scpo", "self_evolution", "self_rewarding", "unfiltered", "cream", "kto"])
def test_a_method_on_the_users_own_prompts(repository: Path, name: str) -> None:
    use(name, "--family", "text")
    path = repository / "params.yaml"
    path.write_text(path.read_text().replace("source: prompts.jsonl", "source: mine.jsonl"))
    problems.check(file.load(repository))
    use("lmsi", "--family", "text")
    assert file.load(repository)["prepare"]["source"] == "mine.jsonl"
    use(name)
    assert file.load(repository)["prepare"]["family"] == compose.read(name).family


def test_labels_are_declared_by_the_oracle_and_the_verifiers_alone() -> None:
    assert {name for name in RECIPES if compose.compose(name)["labels"]} == SEE_LABELS


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is(name: str) -> None:
    recipe = compose.read(name)
    for field in ("paper", "summary", "formula", "source", "departs", "needs"):
        assert getattr(recipe, field).strip(), field


def test_the_gallery_is_current() -> None:
    assert gallery.FILE.read_text() == gallery.page(), "run `python -m flows.params.gallery`"
    assert all(f"### {name}\n" in gallery.page() for name in RECIPES)


def test_whose_models_and_what_later_iterations_override() -> None:
    rows = compose.compose("cream")["iterations"]
    assert [rows[key]["past"] for key in ("i01", "i02", "i03")] == ["i00", "i00", "i01"]
    rows = compose.compose("rest_em")["iterations"]
    assert [(rows[key]["initial"], rows[key]["previous"]) for key in rows] == [
        ("i00", "i00"),
        ("i00", "i01"),
        ("i00", "i02"),
    ]
    params = compose.compose("scpo")
    gates = [sections.section(params, "filter", key)["pairs"]["chosen"]["at_least"] for key in params["iterations"]]
    assert gates == [0.5, 0.7, 0.7]
    assert sections.section(params, "filter", "i03")["pairs"]["chosen"]["pick"] == "most"


def test_seed_and_engine_are_the_users(repository: Path) -> None:
    use("self_evolution", "--seed", "7")
    path = repository / "params.yaml"
    path.write_text(path.read_text().replace("threads: 2\n  batch_size", "threads: 5\n  batch_size"))
    use("lmsi")
    params = file.load(repository)
    assert (params["seed"], params["engine"]["threads"], params["train"]["sft"]["threads"]) == (7, 5, 2)


def test_appending_an_iteration_leaves_the_others_alone(repository: Path) -> None:
    use("self_evolution")
    before = (repository / "params.yaml").read_text().splitlines()
    use("self_evolution", "--iterations", "4")
    after = (repository / "params.yaml").read_text().splitlines()
    row, evaluation = [line for line in after if line not in before]
    assert row.startswith("  i04: {previous: i03, initial: i03, reference: i03, judge: i03, past: i03, synthesize: {}")
    assert evaluation == "  i04: {}"
    assert [line for line in after if line not in (row, evaluation)] == before
    assert list(file.load(repository)["evaluations"]) == ["i00", "i01", "i02", "i03", "i04"]


def test_extend_adds_rows_and_changes_nothing_else(repository: Path) -> None:
    use("self_evolution")
    path = repository / "params.yaml"
    path.write_text(path.read_text().replace("i02: {previous: i01, initial: i01", "i02: {previous: i01, initial: i00"))
    before = file.load(repository)
    invoke = partial(CliRunner().invoke, recipe.app)
    assert invoke(["extend", "5"]).exit_code == 0
    after = file.load(repository)
    assert list(after["iterations"]) == ["i01", "i02", "i03", "i04", "i05"]
    assert len(after["evaluations"]) == 6
    assert {key: after["iterations"][key] for key in before["iterations"]} == before["iterations"]
    assert "has i05 already" in str(invoke(["extend", "3"]).exception)
    assert file.load(repository) == after


def test_mini_keeps_overrides_of_rows(repository: Path) -> None:
    use("self_evolution")
    path = repository / "params.yaml"
    path.write_text(path.read_text().replace("past: i00, synthesize: {}", "past: i00, synthesize: {pool: {n: 50}}"))
    use("mini", "--iterations", "2")
    params = file.load(repository)
    assert list(params["iterations"]) == ["i01", "i02"]
    assert sections.section(params, "synthesize", "i01")["pool"]["n"] == 50


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["self_evolutoin"], "unknown recipe 'self_evolutoin'; did you mean 'self_evolution'?"),
        (["minni"], "did you mean 'mini'?"),
        (["scpo", "--family", "countdwon"], "unknown family 'countdwon'; did you mean 'countdown'?"),
        (["mini", "--family", "strings"], "mini is a size"),
    ],
)
def test_a_refused_call_writes_nothing(repository: Path, arguments: list[str], expected: str) -> None:
    use("lmsi")
    before = (repository / "params.yaml").read_bytes()
    with pytest.raises(BadInput) as caught:
        use(*arguments)
    assert expected in str(caught.value)
    assert (repository / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in repository.iterdir()) == ["dvc.yaml", "params.yaml"]


def test_mini_wants_a_recipe_first(repository: Path) -> None:
    with pytest.raises(BadInput, match="use a recipe first"):
        use("mini")
    assert not (repository / "params.yaml").exists()


def test_list_for_programs_and_people() -> None:
    rows = json.loads(CliRunner().invoke(recipe.app, ["list", "--json"]).output)
    assert {row["name"] for row in rows} == set(RECIPES)
    assert all(set(row) == {"name", "group", "title", "needs"} and all(row.values()) for row in rows)
    shown = CliRunner().invoke(recipe.app, ["list"]).output
    assert all(name in shown for name in [*RECIPES, "mini", "sums", "votes"])


@pytest.mark.parametrize("name", [*RECIPES, "mini"])
def test_show(name: str) -> None:
    result = CliRunner().invoke(recipe.app, ["show", name])
    assert result.exit_code == 0
    assert name in result.output


def test_exit_codes_of_the_real_command(repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.recipe", "use", "scop"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repository, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("unknown recipe 'scop'; did you mean 'scpo'?")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["self_evolution", "self_rewarding", "oracle"])
def test_a_method_that_the_family_has_no_skill_for(repository: Path, name: str) -> None:
    with pytest.raises(BadInput) as caught:
        use(name, "--family", "strings")
    assert str(caught.value).startswith(f"recipe {name} is not for family strings: its critique needs ")
    assert "strings has no critique skill; leave --family out" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (repository / "params.yaml").exists()

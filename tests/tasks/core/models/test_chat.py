"""Chat templates tried without transformers: what is refused, and that the outcome is that of transformers."""

import json
from pathlib import Path

import jinja2
import pytest

from tasks.core.errors import BadInput
from tasks.core.models import chat, folders, tokenizers
from tests.support.models import model_files

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ message['content'] | trim }}{% endfor %}"
)
TRACKED = "{%- for m in messages -%}{%- generation -%}{{ m | tojson }}{%- endgeneration -%}{%- break -%}{%- endfor -%}"
THINKING = (
    "{% for m in messages %}{{ m.role + ':' + m.content.split('</think>')[-1] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:<think>\\n' }}{% endif %}"
)
WANTED = {"system": "Be brief.", "system_field": None}


def test_templates_that_are_taken() -> None:
    for text in (
        GEMMA,
        TRACKED,
        tokenizers.ROLE_TEMPLATE,
        tokenizers.WORD_TEMPLATE,
        tokenizers.chat_template("plain"),
        THINKING,
    ):
        chat.check(text, chat.MADE, "m", "")
        chat.check_system(text, chat.MADE, {"system": None}, "m")
        if text is not GEMMA:
            chat.check_system(text, chat.MADE, WANTED, "m")


@pytest.mark.parametrize("options", [WANTED, {"system": None, "system_field": "s"}])
def test_a_template_without_system_messages(options: dict[str, str | None]) -> None:
    with pytest.raises(BadInput) as caught:
        chat.check_system(GEMMA, chat.MADE, options, "base.pretrained: m: its chat template")
    assert str(caught.value) == (
        "base.pretrained: m: its chat template refuses a system message (System role not supported); this model takes no "
        "system message: set prepare.options.system and system_field to null, or base.chat_template to one of your own"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n{% if %}", "m: its chat template, line 2: is no Jinja template: Expected an expression, got 'end of"),
        ("{{ raise_exception('never') }}", "m: its chat template refuses a conversation of one question and its reply (never)"),
        ("{{ 1 / 0 }}", "m: its chat template refuses a conversation of one question and its reply (division by zero)"),
        ("", "m: its chat template leaves out what the user says: of a question it makes ''; fetch"),
        ("{{ messages[-1].role }}", "leaves out what the user says: of a question it makes 'user'"),
        ("{{ messages[0].content }}{% if add_generation_prompt %}A:{% endif %}", "cannot be told apart in training; fetch"),
        ("{{ nothing.at_all }}", "one question and its reply ('nothing' is undefined); fetch the model again, or set base"),
    ],
)  # fmt: skip
def test_a_model_whose_template_cannot_work(tmp_path: Path, text: str, told: str) -> None:
    folder = model_files(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(text)
    with pytest.raises(BadInput) as caught:
        folders.validate_folder(folder)
    assert told in str(caught.value)
    folders.validate_folder(folder, template=False)


def test_where_a_folder_has_its_template_and_tokens(tmp_path: Path) -> None:
    folder = model_files(tmp_path / "m", "chat_template.jinja")
    assert chat.of_folder(folder) is None
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    about = {"chat_template": several, "eos_token": {"content": "</s>"}, "bos_token": None, "unk_token": "<u>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    assert chat.of_folder(folder) == "d"
    assert chat.tokens(folder) == {"eos_token": "</s>", "unk_token": "<u>"}
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"chat_template\.jinja is not UTF-8 text \(byte 0\); save it as UTF-8"):
        chat.of_folder(folder)


def test_the_outcome_is_that_of_transformers() -> None:
    tokenizer = tokenizers.make_tokenizer(None, ["How many legs has a cat? Four. Be brief."], 300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    before: list[list[dict[str, str]]] = [[], chat.SYSTEM]
    for text in (
        GEMMA,
        TRACKED,
        tokenizers.ROLE_TEMPLATE,
        tokenizers.chat_template("plain"),
        "{{ raise_exception('no') }}",
    ):
        tokenizer.chat_template = text
        for first in before:
            try:
                tokenizer.apply_chat_template([*first, *chat.QUESTION], tokenize=False)
                theirs = None
            except jinja2.TemplateError as error:
                theirs = str(error)
            assert chat.refusal(text, tokenizer.special_tokens_map, first) == theirs

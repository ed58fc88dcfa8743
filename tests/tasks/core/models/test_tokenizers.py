"""Chat templates: the clock stands still, variables of their own get values, refusals say what to do, replies end."""

import datetime
import json
from typing import ClassVar

import pytest
from transformers.utils import chat_template_utils

from tasks.core.errors import BadInput, StageFailed, UnknownName
from tasks.core.models import tokenizers
from tests.support import templates, tiny

TEXTS = ["Ann has 5 nuts.", "How many has she? 5"]
ASKED = tiny.user("Hi?")
SYSTEM = [{"role": "system", "content": "Be brief."}]


def tokenizer(kind):
    return templates.tokenizer(templates.KINDS[kind], TEXTS, 400)


def with_template(text):
    made = tokenizers.make_tokenizer(None, TEXTS, 400)
    made.chat_template = text
    return made


class Moved(datetime.datetime):
    """A clock that another day may be set on."""

    today: ClassVar = datetime.datetime(2031, 1, 2)

    @classmethod
    def now(cls, tz=None):
        return cls.today


def test_the_date_is_the_same_every_day(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Moved)
    llama = tokenizer("llama")
    assert "02 Jan 2031" in llama.apply_chat_template(ASKED, tokenize=False)
    first = tokenizers.render(llama, ASKED)
    assert "Today Date: 26 Jul 2024\n" in first
    monkeypatch.setattr(Moved, "today", datetime.datetime(2031, 1, 3))
    assert tokenizers.render(llama, ASKED) == first
    llama.chat_template = tokenizers.with_options(llama.chat_template, {"date_string": "1 May 2025"})
    assert "Today Date: 1 May 2025\n" in tokenizers.render(llama, ASKED)


@pytest.mark.parametrize(
    "value",
    [False, True, None, 3, -0.5, 1e300, "", "low", 'a"b\'c\\n\n%}}}{% x {{ é🙂', ["a", {"b": [None, False]}], {"k": {"l": "m"}}],
)  # fmt: skip
def test_a_variable_has_the_value_given_unless_the_caller_has_one(value):
    made = with_template("{{ (v if v is defined else 'none given') | tojson }}")
    assert tokenizers.render(made, ASKED) == '"none given"'
    made.chat_template = tokenizers.with_options(made.chat_template, {"v": value})
    assert json.loads(tokenizers.render(made, ASKED)) == value
    assert made.apply_chat_template(ASKED, tokenize=False, v="mine") == '"mine"'


def test_values_reach_loops_and_macros_and_change_nothing_else():
    text = "\n  {% macro m(x) %}{{ x }}{{ v }}{% endmacro %}{% for x in [1, 2] %}{{ m(x) }}{{ w }}{% endfor %}  \n"
    made = with_template(text)
    empty = tokenizers.render(made, ASKED)
    made.chat_template = tokenizers.with_options(text, {"w": "b", "v": "a"})
    assert tokenizers.render(made, ASKED) == empty.replace("12", "1ab2ab")
    assert tokenizers.with_options(text, {}) == text


def test_what_no_template_takes_is_refused():
    with pytest.raises(UnknownName, match=r"unknown variable 'enable_thinkin'; did you mean 'enable_thinking'\?"):
        tokenizers.with_options(templates.QWEN, {"enable_thinkin": False})
    with pytest.raises(BadInput, match="the chat template, line 1: is no Jinja template"):
        tokenizers.with_options("{% if", {"a": 1})
    for name in ("messages", "eos_token", "strftime_now"):
        with pytest.raises(
            BadInput, match=rf"base\.chat_template_options\.{name}: every template is given that anyway"
        ):
            tokenizers.check_options({name: 1})
    with pytest.raises(BadInput, match="given 'a b'; a variable's name"):
        tokenizers.check_options({"a b": 1})


def test_a_system_message_that_is_refused_says_what_to_do():
    for kind in ("gemma", "mistral"):
        with pytest.raises(
            StageFailed, match=r"takes no system message: set prepare\.options\.system and system_field"
        ):
            tokenizers.render_many(tokenizer(kind), [ASKED, [*SYSTEM, *ASKED]])
    with pytest.raises(StageFailed, match=r"Roles must alternate$"):
        tokenizers.render(tokenizer("gemma"), [*ASKED, *ASKED])
    with pytest.raises(StageFailed, match=r"not supported$"):  # and more is wrong than the system message
        tokenizers.render_many(tokenizer("gemma"), [[*SYSTEM, *ASKED], [*ASKED, *ASKED]])


def test_the_end_token_is_the_one_that_ends_a_reply(tmp_path):
    gemma = tokenizer("gemma")
    assert gemma.eos_token == "<eos>"
    gemma.save_pretrained(tmp_path)
    assert tokenizers.stored_tokenizer(tmp_path).eos_token == "<eos>"
    loaded = tokenizers.plain_tokenizer(tmp_path)
    assert (loaded.eos_token, loaded.eos_token_id) == ("<end_of_turn>", gemma.convert_tokens_to_ids("<end_of_turn>"))
    assert tokenizers.render(loaded, ASKED) == tokenizers.render(gemma, ASKED)


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.content + ('<|pad|>' if m.role == 'assistant' else eos_token) }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[0].content[0].text + none }}",
    ],
)
def test_the_end_token_stays_where_a_template_needs_it_or_writes_none(text):
    made = with_template(text)
    tokenizers.end_as_templated(made)
    assert made.eos_token == "<|end|>"

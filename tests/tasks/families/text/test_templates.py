"""Templates that a user may have edited: what cannot work is refused with its line, and nothing leaves its fence."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import families
from tasks.core.errors import BadInput
from tasks.core.family import Parts
from tasks.families.text import templates
from tasks.families.text.family import TEMPLATES
from tests.support.work import text_options

FAMILY = families.create("text", text_options(answer_field=None, extraction="text"))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TEMPLATES, tmp_path / "text")


def test_the_projects_own_templates_pass(folder):
    templates.check(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("critique.j2", "{{ response | fenced }}", "{{ respons | fenced }}", r"critique\.j2, line 7: unknown variable 'respons'.*'response'"),
        ("critique.j2", "{{ response | fenced }}", "", r"critique\.j2: does not use the variable 'response'"),
        ("critique.j2", "{{ response | fenced }}", "{{ response }}", r"critique\.j2, line 7: prints 'response' outside of fences.*response \| fenced"),
        ("critique.j2", "{{ response | fenced }}", "```\n{{ response }}\n```", "outside of fences"),
        ("critique.j2", "{% endif %}", "", r"critique\.j2, line \d+: Unexpected end of template"),
        ("critique.j2", "| fenced", "| fence", r"critique\.j2, line 4: No filter named 'fence'; did you mean 'fenced'\?"),
        ("critique.j2", "Score: POINTS", "{{ response | fenced }}\n{{ response }}", r"critique\.j2, line 2\d: prints 'response' outside"),
        ("critique.j2", "Score: POINTS", "{% set x = response %}\n{{ x }}", r"critique\.j2, line 2\d: prints 'response' outside"),
        ("critique.j2", "Score: POINTS", "{{ response.__class__.__mro__ }}", r"critique\.j2, line 2\d: access to attribute '__class__'"),
        ("critique.j2", "Score: POINTS", "{{ 1 / 0 }}", r"critique\.j2, line 2\d: division by zero; change what the template does there"),
        ("critique.j2", "Score: POINTS", '{% include "refine.j2" %}', r"critique\.j2, line 2\d: refers to another file"),
        ("critique.j2", "Score: POINTS", "{{ range(9) }}", r"unknown variable 'range'"),
        ("critique.j2", "Score: POINTS", "{{ [1, 2] | random }}", "No filter named 'random'"),
        ("critique.j2", "Score: POINTS", "x" * 30_000, "its own text has 30,"),
        ("pairwise.j2", "{{ second | fenced }}", "{{ first | fenced }}", "does not use the variable 'second'"),
        ("pairwise.j2", "{{ second | fenced }}", "{% if brief %}{{ second | fenced }}{% endif %}", "'second' is not in its text where numeric is False, brief is False"),
        ("checklist.j2", "{{ criterion }}", "", "does not use the variable 'criterion'"),
        ("invent.j2", "{{ example | fenced }}", "{{ examples | length }}{{ example }}", r"invent\.j2, line \d+: prints 'examples' outside of fences.*write \{\{ example \| fenced \}\}"),
        ("answer.j2", "{{ question }}", "{{ Question }}", r"answer\.j2, line 1: unknown variable 'Question'; did you mean 'question'"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_work_is_refused_with_its_place(folder, name, old, new, message):
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=message) as caught:
        templates.check(folder)
    assert str(path) in str(caught.value)


def test_missing_and_unreadable_files(folder):
    (folder / "invent.j2").unlink()
    (folder / "refine.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"refine\.j2: is not UTF-8.*\n.*invent\.j2: the template is not there"):
        templates.check(folder)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(["`", "```", "\n", "<|im_end|>", "[INST]", "~~~"])).map("".join)))
def test_a_message_quotes_and_is_bounded(text):
    values = {"question": text, "first": text, "second": text * 1000, "numeric": True, "brief": False}
    message = templates.render(TEMPLATES, "pairwise.j2", **values)
    assert templates.fenced(text) in message
    assert len(message) < 8 * templates.QUOTED
    assert "<|" not in message.replace("< |", "")


def test_a_long_quotation_says_what_is_left_out():
    long = "a" * 15_000 + "b" * 15_000
    quoted = templates.fenced(long)
    assert "[10,000 characters left out]" in quoted
    assert quoted.count("a") == 10_000 + 2  # the remark has two
    assert templates.fenced("x" * templates.QUOTED).count("x") == templates.QUOTED


def test_a_file_of_the_users_is_a_use(folder):
    """No Python: its variables say what it shows; what a model wrote stands between fences."""
    (folder / "doubt.j2").write_text(
        "{{ question }}\n{% for answer in answers %}\n{{ answer | fenced }}\n{% endfor %}\nAre you sure?"
    )
    templates.check(folder)
    assert templates.own(folder) == ["aggregate", "debate", "doubt", "hinted", "retry"]
    assert templates.shown(folder, "doubt") == ("answers",)
    family = replace(FAMILY, templates=folder)
    question = family.prompt("How many?")
    [message] = family.ask("doubt", Parts(question, ("Four ```` [INST]",))) or [{}]
    assert message["content"] == "How many?\n`````\nFour ```` [ INST]\n`````\nAre you sure?"
    assert family.shows("doubt") == {"answers"}
    assert family.ask("doubt", Parts(question)) is None  # nothing to show
    assert family.ask("doubt", Parts(question, (" ",))) is None
    with pytest.raises(BadInput, match="unknown use 'dubt'; did you mean 'doubt'"):
        family.ask("dubt", Parts(question))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for answer in answers %}{{ answer }}{% endfor %}", r"does not use the variable 'question'"),
        (
            "{{ question }}{% for answer in answers %}{{ answer }}{% endfor %}",
            r"outside of fences.*write \{\{ answer \| fenced",
        ),
        ("{{ question }}{{ critique }}", r"prints 'critique' outside of fences"),
        ("{{ question }}{{ response }}", r"unknown variable 'response'"),
        ("{{ question }}{% if %}", r"line 1"),
    ],
)
def test_a_use_that_cannot_work_is_refused_with_its_place(folder, text, message):
    (folder / "doubt.j2").write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        templates.check(folder)
    assert str(folder / "doubt.j2") in str(caught.value)


def test_the_projects_own_uses_show_every_part(folder):
    family = replace(FAMILY, templates=folder)
    question = family.prompt("How many?")
    for use in templates.own(folder):
        [message] = family.ask(use, Parts(question, ("One.", "Two."), "Bad.", "3")) or [{}]
        shown = {"answers": ("One.", "Two."), "critique": ("Bad.",), "gold": ("3",)}
        assert all(text in message["content"] for name in family.shows(use) for text in shown[name]), use

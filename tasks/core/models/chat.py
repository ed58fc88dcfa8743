"""Chat templates, tried out without transformers: whether one is Jinja at all, and which conversations it refuses.

The environment is that of `transformers.utils.chat_template_utils`: sandboxed, with its filter `tojson` and its functions
`raise_exception` and `strftime_now`; `{% generation %}` marks what the model says and prints nothing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.core.errors import BadInput
from tasks.core.models.files import read_json

TODAY = datetime(2024, 7, 26)  # what Llama's own templates print where they are given no date
FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
MADE = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}  # of a tokenizer that is made here
QUESTION: list[dict[str, str]] = [{"role": "user", "content": "How many legs has a cat?"}]
REPLY: list[dict[str, str]] = [{"role": "assistant", "content": "Four."}]
FAILURES = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
SYSTEM: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]


class _Generation(ext.Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def of_folder(folder: Path) -> str | None:
    """The chat template that the tokenizer files in `folder` have; None without one."""
    if (folder / FILE).is_file():
        try:
            return (folder / FILE).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{folder / FILE} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    given = read_json(folder / CONFIG).get("chat_template")
    if isinstance(given, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
        given = named.get("default")
    return given if isinstance(given, str) and given else None


def tokens(folder: Path) -> dict[str, Any]:
    """The special tokens by the names that templates know them by."""
    found: dict[str, Any] = {}
    for file in ("special_tokens_map.json", CONFIG):
        given = read_json(folder / file)
        for several in (given, given.get("extra_special_tokens"), given.get("model_specific_special_tokens")):
            for name, token in several.items() if isinstance(several, Mapping) else ():
                text = token.get("content") if isinstance(token, Mapping) else token
                if name.endswith("_token") and isinstance(text, str):
                    found[name] = text
    return found


def check(text: str, special: Mapping[str, Any], where: str, advice: str) -> None:
    """Raises `BadInput` unless the template is Jinja, takes a question and its reply, and can be trained with. `where` names
    it in messages, `advice` says what to do instead."""
    parse(text, where, advice)
    if why := refusal(text, special, []):
        raise BadInput(f"{where} refuses a conversation of one question and its reply ({why}); {advice}")
    asked, whole = _rendered(text, special, QUESTION, True), _rendered(text, special, [*QUESTION, *REPLY], False)
    if QUESTION[0]["content"] not in asked:
        raise BadInput(f"{where} leaves out what the user says: of a question it makes {asked[:80]!r}; {advice}")
    if not whole.startswith(asked) and not opened_thought(asked):
        raise BadInput(
            f"{where} does not begin a finished conversation with the text that asks for the reply ({asked[-40:]!r}), so "
            f"prompt and completion cannot be told apart in training; {advice}"
        )


def opened_thought(prompt: str) -> str | None:
    """The tag that ends the thought in which a prompt opens the reply (DeepSeek-R1, QwQ); None where it opens none."""
    found = re.search(r"<(think|thinking|thought|reasoning)>\s*\Z", prompt)
    return f"</{found[1]}>" if found else None


def parse(text: str, where: str, advice: str = "correct it") -> nodes.Template:
    """The template's syntax tree. Raises `BadInput` for what is no Jinja; `where` and `advice` as in `check`."""
    try:
        return _environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise BadInput(f"{where}, line {error.lineno}: is no Jinja template: {error.message}; {advice}") from error


def check_system(text: str, special: Mapping[str, Any], options: Mapping[str, Any], where: str) -> None:
    """Raises `BadInput` where prompts have system messages, as `prepare.options` say, and the template takes none."""
    wanted = options.get("system") or options.get("system_field")
    if wanted and (why := refusal(text, special, SYSTEM)):
        raise BadInput(
            f"{where} refuses a system message ({why}); this model takes no system message: set prepare.options.system and "
            "system_field to null, or base.chat_template to one of your own"
        )


def refusal(text: str, special: Mapping[str, Any], before: Sequence[Mapping[str, str]]) -> str | None:
    """Why the template does not take a question, and one with its reply, after the messages `before`; None if it does."""
    for several, opening in (([*before, *QUESTION], True), ([*before, *QUESTION, *REPLY], False)):
        try:
            _rendered(text, special, several, opening)
        except FAILURES as error:
            return str(error)
    return None


def _rendered(text: str, special: Mapping[str, Any], messages: Sequence[Mapping[str, str]], opening: bool) -> str:
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": opening}
    return _environment().from_string(text).render(**special, **given)


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)

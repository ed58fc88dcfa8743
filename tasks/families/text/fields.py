"""Records of the user's files as rows: which field is what, and of which type."""

from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.core.errors import BadInput
from tasks.families.text import readers
from tasks.families.text.options import Options

WHERE = "prepare.options"
ROLES = {  # roles by the other names that they go by
    "user": "user", "human": "user", "system": "system", "developer": "system", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant",
}  # fmt: skip
TEXT_PARTS = ("text", "input_text", "output_text")
NAMES = {
    str: "text",
    int: "a number",
    float: "a number",
    Decimal: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


class Row(NamedTuple):
    """One row: where it is from, its own id where a field for it is named, and what is used of it."""

    file: str
    number: int
    id: str | None
    prompt: str
    answer: str | None
    system: str | None
    lack: str | None = None  # why there is no prompt, where more can be said of it


class Reader:
    """Maps records to rows; remembers of which type every field was, so that mixed types are seen, and counts what is
    left out of rows that are used."""

    def __init__(self, options: Options, path: Path) -> None:
        self.options, self.path = options, path
        self.fields: dict[str, str] = {}  # name -> the option that names it
        for option in ("prompt_field", "messages_field", "answer_field", "system_field", "id_field"):
            if (name := getattr(options, option)) is not None:
                self.fields.setdefault(name, f"{WHERE}.{option}")
        if options.split.field is not None:
            self.fields.setdefault(options.split.field, f"{WHERE}.split.field")
        self.counts: Counter[str] = Counter()
        self._types: dict[str, tuple[str, str]] = {}

    def rows(self, file: Path) -> Iterator[Row]:
        for row, _ in self.split_rows(file):
            yield row

    def split_rows(self, file: Path) -> Iterator[tuple[Row, str | None]]:
        """The file's rows, each with its value of the split's field."""
        options, name = self.options, readers.relative(file, self.path)
        for number, record in readers.records(file, self.fields):

            def text(given: str | None, *types: type, of: Mapping[str, Any] = record, at: int = number) -> str | None:
                return None if given is None else self._text(file, at, given, of[given], types or (str,))

            split = text(options.split.field, str, bool, int)
            system = text(options.system_field)
            own = text(options.id_field, str, int)
            answer = lack = None
            if options.messages_field is not None:
                prompt, reply, turn, lack = self._messages(file, number, options.messages_field, record)
                system = turn if options.system_field is None else system
                answer = reply if options.answer_field == options.messages_field else None
            else:
                prompt = text(options.prompt_field) or ""
            if options.answer_field not in (None, options.messages_field):
                answer = text(options.answer_field, str, int, float, Decimal)
            yield Row(name, number, own, prompt, answer, (system or "").strip() or None, lack), split

    def benchmark(self, name: str, file: Path) -> Iterator[Row]:
        """The prompts of a benchmark's file; those without text are left out."""
        assert self.options.decontaminate is not None
        field = self.options.decontaminate.benchmarks[name].field
        for number, record in readers.records(file, {field: f"{WHERE}.decontaminate.benchmarks.{name}.field"}):
            text = self._text(file, number, field, record[field], (str,), f"{name}: {field}")
            if text and text.strip():
                yield Row(readers.relative(file, self.path), number, None, text, None, None)

    def _text(
        self, file: Path, number: int, field: str, value: Any, types: tuple[type, ...], name: str | None = None
    ) -> str | None:
        """The value as text, None for null. Raises `BadInput` for another type than allowed, or than before."""
        if value is None:
            return None
        if type(value) not in types:
            allowed = " or ".join(dict.fromkeys(NAMES[t] for t in types))
            raise BadInput(
                f"{file}: row {number}: field '{field}' is of type {type(value).__name__}; it must be {allowed}"
            )
        kind = NAMES[type(value)]
        before, where = self._types.setdefault(name or field, (kind, f"row {number} of {file.name}"))
        if before != kind:
            raise BadInput(
                f"{file}: row {number}: field '{field}' is {kind}, but {before} in {where}; make it one type"
            )
        text = str(value)
        if isinstance(value, float):
            text = np.format_float_positional(value, trim="-")
        elif isinstance(value, Decimal):
            text = format(value.normalize(), "f")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise BadInput(
                    f"{file}: row {number}: field '{field}' has half a surrogate pair, no valid text; remove it"
                ) from error
        return text

    def _messages(self, file: Path, number: int, field: str, record: Mapping[str, Any]) -> "Said":
        """The first message of a user, the reply that follows it, and the system messages before it."""
        turns = record[field]
        if turns is None:
            return Said("", None, None, None)
        if not _are_messages(turns):
            raise BadInput(
                f"{file}: row {number}: field '{field}' is no list of messages with role and content "
                f"(given {str(turns)[:80]!r}); rename its keys, or name a field of plain text in prompt_field"
            )
        roles = [ROLES.get(str(turn["role"]).casefold(), str(turn["role"])) for turn in turns]
        if "user" not in roles:
            there = ", ".join(dict.fromkeys(str(turn["role"]) for turn in turns)) or "no message at all"
            return Said("", None, None, f"no message in '{field}' has the role user (there: {there})")
        place = roles.index("user")

        def content(index: int) -> str | None:
            told = _text_of_parts(file, number, field, turns[index].get("content"))
            return self._text(file, number, field, told, (str,), f"{field}.content")

        before = [content(index) for index in range(place) if roles[index] == "system"]
        self.counts["later_system_messages_left_out"] += roles[place:].count("system")
        reply = content(place + 1) if roles[place + 1 : place + 2] == ["assistant"] else None
        return Said(content(place) or "", reply, "\n\n".join(filter(None, before)) or None, None)


class Said(NamedTuple):
    """What of a conversation is used. `lack`: why there is no prompt."""

    prompt: str
    reply: str | None
    system: str | None
    lack: str | None


def _are_messages(turns: Any) -> bool:
    """Whether it is a list of messages; one that calls a tool has no content."""
    several = isinstance(turns, list) and all(isinstance(turn, dict) and "role" in turn for turn in turns)
    return several and (not turns or any("content" in turn for turn in turns))


def _text_of_parts(file: Path, number: int, field: str, content: Any) -> Any:
    """The text of a message's content that comes in parts; other content as it is. Raises `BadInput` for other parts than
    text."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") or "text" if isinstance(part, dict) else type(part).__name__
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise BadInput(
                f"{file}: row {number}: {field}.content has a part of type '{kind}'; only parts of text can be read: remove "
                f"the row, or name a field of plain text in prompt_field"
            )
        texts.append(part["text"])
    return "".join(texts)

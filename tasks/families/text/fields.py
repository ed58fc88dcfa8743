"""Records of the user's files as rows: which field is what, and of which type."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.core.errors import BadInput
from tasks.families.text import readers
from tasks.families.text.options import Options

WHERE = "prepare.options"
NAMES = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


class Row(NamedTuple):
    """One row: where it is from, its own id where a field for it is named, and what is used of it."""

    file: str
    number: int
    id: str | None
    prompt: str
    answer: str | None
    system: str | None


class Reader:
    """Maps records to rows; remembers of which type every field was, so that mixed types are seen."""

    def __init__(self, options: Options, path: Path) -> None:
        self.options, self.path = options, path
        self.fields: dict[str, str] = {}  # name -> the option that names it
        for option in ("prompt_field", "messages_field", "answer_field", "system_field", "id_field"):
            if (name := getattr(options, option)) is not None:
                self.fields.setdefault(name, f"{WHERE}.{option}")
        if options.split.field is not None:
            self.fields.setdefault(options.split.field, f"{WHERE}.split.field")
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
            answer = None
            if options.messages_field is not None:
                prompt, reply, turn = self._messages(file, number, options.messages_field, record)
                system = turn if options.system_field is None else system
                answer = reply if options.answer_field == options.messages_field else None
            else:
                prompt = text(options.prompt_field) or ""
            if options.answer_field not in (None, options.messages_field):
                answer = text(options.answer_field, str, int, float)
            yield Row(name, number, own, prompt, answer, (system or "").strip() or None), split

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
        text = np.format_float_positional(value, trim="-") if isinstance(value, float) else str(value)
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise BadInput(
                    f"{file}: row {number}: field '{field}' has half a surrogate pair, no valid text; remove it"
                ) from error
        return text

    def _messages(
        self, file: Path, number: int, field: str, record: Mapping[str, Any]
    ) -> tuple[str, str | None, str | None]:
        """The first user message, the reply that follows it, and the system message before it."""
        turns = record[field]
        if turns is None:
            return "", None, None
        wrong = not isinstance(turns, list) or any(
            not isinstance(t, dict) or not {"role", "content"} <= set(t) for t in turns
        )
        if wrong:
            raise BadInput(
                f"{file}: row {number}: field '{field}' is no list of messages with role and content "
                f"(given {str(turns)[:80]!r}); rename its keys, or name a field of plain text in prompt_field"
            )
        roles = [str(turn["role"]) for turn in turns]
        if "user" not in roles:
            return "", None, None
        place = roles.index("user")

        def content(index: int) -> str | None:
            return self._text(file, number, field, turns[index]["content"], (str,), f"{field}.content")

        system = content(0) if place and roles[0] == "system" else None
        reply = content(place + 1) if roles[place + 1 : place + 2] == ["assistant"] else None
        return content(place) or "", reply, system

"""A reply cut into the sentences that it says itself: without quotations, markup, and JSON around a field."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_OBJECT = re.compile(r"(?m)^[ \t]*(?P<fence>(?:`{3,}|~{3,})[ \t]*(?:json)?[ \t]*\n\s*)?(?=\{)", re.IGNORECASE)
_FENCE_ENDS = re.compile(r"\s*^[ \t]*(?:`{3,}|~{3,})[ \t]*$", re.MULTILINE)
_JSON = json.JSONDecoder(object_pairs_hook=list, parse_int=str, parse_float=str, parse_constant=str)


def with_objects(text: str, wanted: Callable[[str], bool]) -> str:
    """The text with a line for each wanted field in the place of every JSON object that has lines of its own, and of the
    fence around it."""
    made, place = "", 0
    for match in _OBJECT.finditer(text):
        if match.start() < place:
            continue
        try:
            pairs, end = _JSON.raw_decode(text, match.end())
            lines = list(_lines("", pairs))
        except (ValueError, RecursionError):
            continue
        ends = _FENCE_ENDS.match(text, end)
        block = match["fence"] and ends
        if block or not text[end:].partition("\n")[0].strip():
            start = match.start() if block else match.end()
            made += text[place:start] + "\n".join(filter(wanted, lines))
            place = ends.end() if block and ends else end
    return made + text[place:]


def _lines(name: str, value: Any) -> Iterator[str]:
    """What a JSON value says, in lines; an object is a list of pairs."""
    if isinstance(value, list):
        for entry in value:
            yield from _lines(*entry) if isinstance(entry, tuple) else _lines(name, entry)
    else:
        told = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        yield f"{name.replace('_', ' ')}: {told}"


def outside_quotations(text: str) -> list[str]:
    """Lines that are in no fenced block (an open one reaches to the end) and do not begin with `>`."""
    kept, fence = [], ""
    for line in text.splitlines():
        opening = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence:
            if opening and opening[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif opening:
            fence = opening[1]
        elif not line.lstrip().startswith(">"):
            kept.append(line)
    return kept


def sentences(lines: Sequence[str], label: re.Pattern[str]) -> Iterator[list[str]]:
    """The sentences of every line, without markup; a `label` alone on its line is joined with the next line."""
    cleaned = [line for line in map(_clean, lines) if line]
    place = 0
    while place < len(cleaned):
        line = cleaned[place]
        if label.fullmatch(line) and place + 1 < len(cleaned):
            place += 1
            line = f"{line} {cleaned[place]}"
        yield [sentence for sentence in re.split(r"(?<=[.!?])\s+|(?<=。)\s*", line) if sentence]
        place += 1


def _clean(line: str) -> str:
    """A line without emphasis, bullets and signs of mathematics around it; a heading of words ends with a colon."""
    heading = re.fullmatch(r"\s*#+\s+\**([^\W\d_]{4,}(?: [^\W\d_]+)*)\**\s*", line)
    if heading:
        return f"{heading[1]}:"
    line = re.sub(r"(?<=\d)[*_`$]+(?=\d)", " ", line)  # 0`5 is not 05
    line = re.sub(r"[*_`$]|\\[()\[\]]", "", line)
    return re.sub(r"\A\s*(?:#+\s+|[-+•]\s+|\d{1,2}[.)]\s+)*", "", line).strip()


def unwrapped(unit: str) -> str:
    r"""`\boxed{4}`, `[[4]]` and `[4]` as 4."""
    for pattern in (
        r"\\(?:text|textbf|mathrm|mathbf|boxed)\{([^{}]*)\}",
        r"\\boxed\{([^{}]*)\}",
        r"\[\[?(?!(?i:result)\])([^\[\]]*)\]\]?",
    ):
        unit = re.sub(pattern, r" \1 ", unit)  # with spaces: 0\boxed{2} is not 02
    return " ".join(unit.split())

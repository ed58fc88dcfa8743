r"""Reads verdicts out of free text: points from 0 to 5, which of two answers is better, yes or no.

Models write one verdict in many ways ("**Score:** 4/5", "I'd give it a 4 out of 5.", "Final verdict: [[A]]", "No -
because"). A reply is cut into sentences outside of quotations (fenced blocks, lines that begin with `>`); markup,
full-width forms and digits of other scripts are made plain; then every sentence is compared, as a whole, with the forms
of its kind. A reply is read only if that leaves nothing to guess:

- some sentence states a verdict, and all that do state the same one;
- no other sentence speaks of one in another way (a copy of the instructions, "Score: 4-5", look-alike letters);
- the verdict is on the scale, and closes the reply; a yes or no may open it instead;
- what the judge was shown does not state the same verdict, for then it may be a repetition: with a label ("Score: 4")
  or in double brackets at all, in a looser form ("4 out of 5", "Yes.") in the same form.

Anything else gives the reason and no value.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tasks.families.text.plain import plain, simple

POINTS = 5
LONGEST = 300  # characters of a sentence that may be a verdict


class Reading(NamedTuple):
    """A verdict, or why there is none."""

    value: str | None  # "0" to "5"; "a", "b" or "tie"; "yes" or "no"
    why: str | None = None


class Statement(NamedTuple):
    """A sentence that gives a verdict. `form`: in which way; a repetition has the same."""

    form: str
    value: str
    scale: str | None = None


@dataclass(frozen=True)
class Grammar:
    """A kind of verdict. `forms` match whole sentences, with a group `value`; `stated` is what speaks of a verdict in
    any way; `shown` finds, in what the judge was shown, values that it may be repeating, by form."""

    what: str
    forms: Mapping[str, re.Pattern[str]]
    stated: re.Pattern[str]
    shown: Mapping[str, re.Pattern[str]]
    alone: frozenset[str] = frozenset()  # forms that count only where they are all of the reply
    opens: bool = False  # the first sentence may give the verdict


_LEAD = r"(?:(?:so|thus|hence|therefore|overall|finally|in (?:total|conclusion|summary))[,:]?\s+)?"
_GRADE = r"(?:score|rating|grade)"
_THE = r"(?:(?:my|the|its|final|overall|total|additive)\s+){0,3}"
_NUMBER = r"(?P<value>\d{1,9}(?:\.\d{1,9})?)"
_SCALE = r"\s*(?:/|out\s+of|of)\s*(?P<scale>\d{1,9})"
_END = r"(?:\s*(?:points?|stars?))?\s*[.!]?"
_ITS_RANGE = r"(?:\s*\((?:0\s*(?:-|to)\s*5|(?:out\s+)?of\s+5)\))?"
_SUBJECT = r"(?:it|this|(?:this|the)\s+(?:response|answer))"


def _forms(**patterns: str) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern) for name, pattern in patterns.items()}


def points(bare: bool) -> Grammar:
    """Points from 0 to 5. `bare`: a number without a word of what it is counts too (`4/5`, a boxed 4); not where such a
    number may be the answer to the problem, which judges like to solve."""
    forms = {
        "label": rf"{_LEAD}{_THE}{_GRADE}(?:\s+(?:for|of)\s+{_SUBJECT})?{_ITS_RANGE}\s*[:=–—]\s*{_NUMBER}(?:{_SCALE})?{_END}",
        "scale": rf"{_LEAD}(?:{_THE}{_GRADE}(?:\s+(?:for|of)\s+{_SUBJECT})?\s+(?:is|would\s+be)"
        rf"|(?:i(?:[’']d|\s+would|\s+will)?\s+)?(?:give|rate|score|grade|award)\s+{_SUBJECT})"
        rf"\s+(?:an?\s+)?(?:{_GRADE}\s+of\s+)?{_NUMBER}{_SCALE}{_END}",
    }
    stated = rf"(?<![^\W_]){_GRADE}[\W_]{{0,8}}?[:=–—\d]|\d\s*out\s+of\s*5|\[\["
    if bare:
        forms |= {"bare": rf"{_NUMBER}(?:{_SCALE})?{_END}"}
        stated += r"|\d\s*/\s*5(?!\d)|\\boxed"
    shown = {
        "label": rf"{_GRADE}[\W_]{{0,12}}?[:=–—][\W_]{{0,6}}0*(\d+)",
        "scale": r"(?<!\d)0*(\d+)(?:\.0+)?\s*(?:/|out\s+of|of)\s*5",
        "brackets": r"\[\[\s*0*(\d+)",
        "bare": r"(?<!\d)0*(\d+)(?!\d)",
    }
    return Grammar("score", _forms(**forms, brackets=rf"{_NUMBER}{_END}"), re.compile(stated), _forms(**shown))


_NOUN = r"(?:answer|response|candidate|assistant|option)"
_SIDE = rf"(?:the\s+)?(?:{_NOUN}\s+)?[\"']?(?P<value>a|b)[\"']?"
_TIE = r"(?:a\s+)?(?:tie|draw)"
_WINNER = r"(?:winner|verdict|judge?ment|decision|choice|preference|better(?:\s+(?:answer|response|one))?)"
_BETTER = rf"(?:is\s+(?:the\s+)?(?:better|best|winner|stronger|superior)(?:\s+(?:one|{_NOUN}))?|wins)(?:\s+overall)?"
PREFERENCE = Grammar(
    "verdict",
    _forms(
        label=rf"{_LEAD}{_THE}{_WINNER}\s*(?:[:=–—]|is)\s*(?:{_SIDE}(?:\s+{_BETTER})?|{_TIE})\s*[.!]?",
        sentence=rf"{_LEAD}(?:{_SIDE}\s+{_BETTER}|i\s+(?:would\s+)?(?:prefer|choose|pick)\s+(?:the\s+)?{_NOUN}\s+(?P<other>a|b)"
        rf"|(?:it|this)(?:[’']s|\s+is)\s+{_TIE})\s*[.!]?",
        brackets=rf"(?:{_SIDE}|{_TIE}|(?P<third>c))\s*[.!]?",
        bare=rf"(?:{_SIDE}|{_TIE})\s*[.!]?",
    ),
    re.compile(r"(?<![^\W_])(?:winner|verdict)[\W_]{0,8}?[:=–—]|\[\["),
    _forms(
        label=rf"{_WINNER}[\W_]{{0,8}}(?:is[\W_]{{1,4}})?(?:the\s+)?(?:{_NOUN}[\W_]{{1,4}})?(?P<value>a|b|tie|draw)(?![^\W_])",
        brackets=rf"\[\[[\W_]*(?:{_NOUN}\s+)?(?P<value>a|b|c|tie|draw)(?![^\W_])",
        sentence=rf"(?<![^\W_])(?P<value>a|b)[\W_]{{1,4}}{_BETTER}|(?:prefer|choose|pick)\s+(?:the\s+)?{_NOUN}\s+(?P<other>a|b)(?![^\W_])",
    ),
    alone=frozenset({"bare"}),
)

_MET = r"(?:met|verdict|judge?ment|decision|satisfied|fulfilled|criterion(?:\s+(?:is\s+)?met)?)"
_YES = r"(?P<value>yes|no)"
_WHY = r"(?:[,.;:!]|\s*[–—]|\s+-(?=\s)|\s+because\b)(?!\s*(?:but|or|and|yes|no|/)(?![^\W_])).*"
_YES_AND_WHY = rf"{_YES}(?:\s*[.!]?|{_WHY})"
YES_OR_NO = Grammar(
    "yes or no",
    _forms(
        label=rf"{_LEAD}{_THE}{_MET}\s*[:=–—]\s*{_YES_AND_WHY}",
        answer=rf"{_LEAD}{_THE}answer\s*[:=–—]\s*{_YES_AND_WHY}",
        bare=rf"{_LEAD}{_YES_AND_WHY}",
    ),
    re.compile(r"(?<![^\W_])(?:met|verdict)[\W_]{0,8}?[:=–—]|\[\[|^(?:yes|no)\s*(?:/|(?:and|or|but)\b)"),
    _forms(
        label=rf"{_MET}[\W_]{{0,4}}[:=–—][\W_]{{0,6}}{_YES}(?![^\W_])",
        answer=rf"answer[\W_]{{0,4}}[:=–—][\W_]{{0,6}}{_YES}(?![^\W_])",
    ),
    opens=True,
)


def read(grammar: Grammar, reply: str, shown: str) -> Reading:
    """The verdict of a reply by the module's rules. `shown`: everything of others that the judge saw."""
    units = list(_units(_outside_quotations(simple(reply))))
    found: list[tuple[int, Statement]] = []
    for place, unit in enumerate(units):
        statement = _statement(grammar, unit, len(units) == 1)
        if statement is not None:
            found.append((place, statement))
        elif grammar.stated.search(plain(unit).casefold()):
            return Reading(None, f"a {grammar.what} in no form that can be read")
    if not found:
        return Reading(None, f"no {grammar.what}" if units else "nothing outside quotations")
    values = {statement.value for _, statement in found}
    if len(values) > 1:
        return Reading(None, f"more than one {grammar.what}")
    first, last = found[0][0], found[-1][0]
    if last != len(units) - 1 and not (grammar.opens and first == 0):
        return Reading(None, f"text after the {grammar.what}")
    [value] = values
    if grammar.what == "score":
        if any(statement.scale not in (None, str(POINTS)) for _, statement in found):
            return Reading(None, f"a score on another scale than 0 to {POINTS}")
        if value not in {str(number) for number in range(POINTS + 1)}:
            return Reading(None, f"the score is not a whole number from 0 to {POINTS}")
    known = _stated_in(grammar, shown)
    plainly = {(form, value) for form in ("label", "brackets")}  # repeated in whatever form
    if any((statement.form, value) in known for _, statement in found) or plainly & known:
        return Reading(None, f"the candidate or its prompt states the same {grammar.what}")
    return Reading(value)


def _statement(grammar: Grammar, unit: str, whole: bool) -> Statement | None:
    """The verdict that a sentence gives. `whole`: it is all of the reply."""
    if len(unit) > LONGEST and not grammar.opens:
        return None
    bracketed = "[[" in unit
    text = _unwrapped(unit).casefold()
    for form, pattern in grammar.forms.items():
        if (form == "brackets") > bracketed or (form in grammar.alone and not whole):
            continue
        if match := pattern.fullmatch(text):
            groups = match.groupdict()
            value = groups.get("value") or groups.get("other")
            return Statement(form, _canonical(value) if value else "tie", groups.get("scale"))
    return None


def _canonical(value: str) -> str:
    """A number without idle zeros; letters as they are."""
    if not value[0].isdigit():
        return {"c": "tie", "draw": "tie"}.get(value, value)
    whole, _, rest = value.partition(".")
    return (whole.lstrip("0") or "0") + (f".{rest}" if rest.strip("0") else "")


def _stated_in(grammar: Grammar, shown: str) -> set[tuple[str, str]]:
    """Form and value of every verdict that the text states, quoted or not, in any way that may be repeated."""
    found = set()
    lines = [line.lstrip("> \t") for line in simple(shown).splitlines()]
    for unit in _units(lines):
        if statement := _statement(grammar, unit, True):
            found.add((statement.form, statement.value))
    text = plain(shown).casefold()
    for form, pattern in grammar.shown.items():
        for match in pattern.finditer(text):
            value = next((group for group in match.groups() if group), None)
            found |= {(form, _canonical(value))} if value else set()
    return found


# --- text ------------------------------------------------------------------------------------------------
_LABEL_ALONE = re.compile(rf"{_THE}(?:{_GRADE}|{_WINNER}|met)\s*:", re.IGNORECASE)


def _outside_quotations(text: str) -> list[str]:
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


def _units(lines: list[str]) -> Iterator[str]:
    """Sentences without markup; a label alone on its line is joined with the next line."""
    cleaned = [line for line in map(_clean, lines) if line]
    place = 0
    while place < len(cleaned):
        line = cleaned[place]
        if _LABEL_ALONE.fullmatch(line) and place + 1 < len(cleaned):
            place += 1
            line = f"{line} {cleaned[place]}"
        yield from re.split(r"(?<=[.!?])\s+", line)
        place += 1


def _clean(line: str) -> str:
    """A line without emphasis, headings, bullets and signs of mathematics around it."""
    line = re.sub(r"[*_`$]|\\[()\[\]]", "", line)
    return re.sub(r"\A\s*(?:#+\s+|[-+•]\s+|\d{1,2}[.)]\s+)*", "", line).strip()


def _unwrapped(unit: str) -> str:
    r"""`\boxed{4}`, `[[4]]` and `[4]` as 4."""
    for pattern in (
        r"\\(?:text|textbf|mathrm|mathbf|boxed)\{([^{}]*)\}",
        r"\\boxed\{([^{}]*)\}",
        r"\[\[?([^\[\]]*)\]\]?",
    ):
        unit = re.sub(pattern, r" \1 ", unit)  # with spaces: 0\boxed{2} is not 02
    return " ".join(unit.split())


# --- prompts ---------------------------------------------------------------------------------------------
_ENTRY = re.compile(
    r"(?m)^[ \t]*(?:\*\*)?(?:(?:question|problem|prompt|task|instruction)[ \t]*)?(\d{1,2})[.):](?:\*\*)?[ \t]+", re.I
)
_PREFIX = re.compile(
    r"\A[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:(?:here(?:[’']s| is)|a|one|the|new)[ \t]+){0,4}"
    r"(?:question|problem|prompt|task|instruction)[ \t]*:?(?:\*\*)?[ \t]*:?(?:\*\*)?[ \t]*(?=\S|\n)",
    re.I,
)
_INTRODUCTION = re.compile(
    r"(?:sure|certainly|of course|okay|here)?[^\n]*\b(?:prompts?|questions?|problems?|tasks?|instructions?)\b[^\n]*:|",
    re.I,
)


def prompts(reply: str) -> list[str]:
    """The prompts that a reply holds: the entries of a list numbered from 1, with at most an introduction before it
    ("Here are two questions:"), else the whole of it, or its only fenced block. A label before a prompt, bold print and
    quotation marks around it go."""
    text = _unfenced(reply.strip())
    entries = list(_ENTRY.finditer(text))
    numbered = [int(entry[1]) for entry in entries] == list(range(1, len(entries) + 1))
    if not entries or not numbered or not _INTRODUCTION.fullmatch(text[: entries[0].start()].strip()):
        return [made] if (made := _bare_prompt(text)) else []
    ends = [entry.start() for entry in entries[1:]] + [len(text)]
    pieces = (text[entry.end() : end] for entry, end in zip(entries, ends, strict=True))
    return [made for made in map(_bare_prompt, pieces) if made]


def _unfenced(text: str) -> str:
    """What the only fenced block holds; a text with none, or with more, as it is."""
    found = re.findall(r"(?ms)^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)\n[ \t]*\1[ \t]*$", text)
    return found[0][1] if len(found) == 1 else text


def _bare_prompt(text: str) -> str:
    made = _unfenced(text.strip()).strip()
    labelled = _PREFIX.match(made)
    if labelled and ":" in labelled[0]:
        made = made[labelled.end() :].strip()
    if len(made) > 1 and (made[0], made[-1]) in {('"', '"'), ("“", "”"), ("'", "'")}:
        made = made[1:-1].strip()
    return made.removeprefix("**").removesuffix("**").strip() if made.count("**") == 2 else made

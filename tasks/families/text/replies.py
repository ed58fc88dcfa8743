r"""Reads verdicts out of free text: points from 0 to 5, which of two answers is better, yes or no.

Models write one verdict in many ways ("**Score:** 4/5", "I'd give it a 4 out of 5.", "Final verdict: [[A]]", "No -
because", `{"score": 4}`). Of a reply counts what it says (`plain.said`), cut into sentences outside of quotations (fenced
blocks, lines that begin with `>`); markup, full-width forms and digits of other scripts are made plain; a JSON object
counts as lines, one for each field about a verdict. Then every sentence is compared, as a whole, with the forms of its
kind, behind each of which an explanation may stand. A reply is read only if that leaves nothing to guess:

- some sentence states a verdict, and all that do state the same one;
- no other sentence speaks of one in another way (a copy of the instructions, "Score: 4-5", look-alike letters);
- the verdict is on the scale, and opens the reply or its last line, or closes it; nothing behind it speaks against it;
- what the judge was shown does not state the same verdict, for then it may be a repetition: with a label ("Score: 4")
  or in double brackets at all, in a looser form ("4 out of 5", "Yes.") in the same form.

Anything else gives the reason and no value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tasks.families.text import sentences
from tasks.families.text.plain import UNSPACED, plain, said, simple

POINTS = 5


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
    """A kind of verdict. `forms` match whole sentences, with groups `value` and `why`; `stated` is what speaks of a
    verdict in any way; `shown` finds, in what the judge was shown, values that it may be repeating, by form; `against`
    finds values that other sentences give; an explanation in which `unsure` is found takes the verdict back."""

    what: str
    forms: Mapping[str, re.Pattern[str]]
    stated: re.Pattern[str]
    shown: Mapping[str, re.Pattern[str]]
    against: re.Pattern[str]
    unsure: re.Pattern[str]
    alone: frozenset[str] = frozenset()  # forms that count only where they are all of the reply


_START = rf"(?<![^\W_{UNSPACED}])"  # of a word
_LEAD = r"(?:(?:so|thus|hence|therefore|overall|finally|however|still|but|actually|in (?:total|conclusion|summary))[,:]?\s+)?"
_THE = r"(?:(?:my|the|its|final|overall|total|additive)\s+|最[终終]){0,3}"
_RESULT = r"\[result\]\s*:?"
_NO_WHY = r"(?!\W*(?:(?:but|or|and|to|yes|no|if|unless|maybe|perhaps)(?![^\W_])|/))"
_WHY = rf"(?P<why>(?:\s*[(,;:–—]|\s+-+(?=[\s\w])|\s+(?:because|since|as|due)\b){_NO_WHY}.*)"
_END = rf"(?:\s*[.!。]*:?|{_WHY})"


def _forms(**patterns: str) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern) for name, pattern in patterns.items()}


# --- points ----------------------------------------------------------------------------------------------
_GRADE = r"(?:score|rating|grade|得分|[评評]分|分[数數]|打分|[总總]分)"
_NUMBER = r"(?P<value>\d{1,9}(?:\.\d{1,9})?)"
_SCALE = r"\s*(?:\(\s*)?(?:/|out\s+of|of)\s*(?P<scale>\d{1,9})(?:\s*\))?"
_POINTS = rf"(?:\s*(?:points?|stars?|分))?{_END}"
_ITS_RANGE = r"(?:\s*\((?:0\s*(?:-|to)\s*5|(?:out\s+)?of\s+5)\))?"
_SUBJECT = r"(?:it|this|(?:this|the)\s+(?:response|answer))"
_IS = rf"{_THE}{_GRADE}(?:\s+(?:for|of)\s+{_SUBJECT})?\s+(?:is|would\s+be)"
_GIVE = rf"(?:i(?:[’']d|\s+would|\s+will)?\s+)?(?:give|rate|score|grade|award)\s+{_SUBJECT}"


def points(bare: bool) -> Grammar:
    """Points from 0 to 5. `bare`: a number without a word of what it is counts too (`4/5`, a boxed 4); not where such a
    number may be the answer to the problem, which judges like to solve."""
    label = rf"(?:{_THE}{_GRADE}(?:\s+(?:for|of)\s+{_SUBJECT})?{_ITS_RANGE}\s*(?:[:=–—]|[是为為])|{_RESULT})\s*"
    told = rf"{_LEAD}(?:{_IS}|{_GIVE})\s+(?:an?\s+)?(?:{_GRADE}\s+of\s+)?{_NUMBER}"
    forms = {
        "label": rf"{_LEAD}(?:{label}){{1,2}}{_NUMBER}(?:{_SCALE})?{_POINTS}",
        "scale": rf"{told}{_SCALE}{_POINTS}",
        "told": rf"{told}{_POINTS}",
    }
    stated = rf"{_START}{_GRADE}[\W_]{{0,8}}?[:=–—是为為\d]|\d\s*out\s+of\s*5|\[\[|\[result\]"
    if bare:
        forms |= {"bare": rf"{_NUMBER}(?:{_SCALE})?(?:\s*(?:points?|stars?))?\s*[.!]?"}
        stated += r"|\d\s*/\s*5(?!\d)|\\boxed"
    shown = {
        "label": rf"(?:{_GRADE}[\W_]{{0,12}}?[:=–—是为為]|\[result\])[\W_]{{0,6}}0*(\d+)",
        "scale": r"(?<!\d)0*(\d+)(?:\.0+)?\s*\(?(?:/|out\s+of|of)\s*5",
        "told": rf"(?:{_GRADE}\s+(?:is|would\s+be|of)|{_GIVE})\s+(?:an?\s+)?(?:{_GRADE}\s+of\s+)?0*(\d+)",
        "brackets": r"\[\[\s*0*(\d+)",
        "bare": r"(?<!\d)0*(\d+)(?!\d)",
    }
    return Grammar(
        "score",
        _forms(**forms, brackets=rf"{_NUMBER}{_POINTS}"),
        re.compile(stated),
        _forms(**shown),
        against=re.compile(rf"{_GRADE}\s+(?:(?:is|to|should\s+be|would\s+be)\s+)(?:an?\s+)?0*(\d+)"),
        unsure=re.compile(r"\A\W*\d|(?<![^\W_])(?:or|to|maybe|perhaps|possibly|rather|almost|nearly)\W+(?:an?\s+)?\d"),
    )


# --- which is better -------------------------------------------------------------------------------------
_NOUN = r"(?:answer|response|candidate|assistant|option)"
_SIDE = rf"(?:the\s+)?(?:{_NOUN}\s+)?[\"'(]?(?P<value>a|b)[\"')]?"
_THAN = rf"(?:\s+than\s+(?:the\s+)?(?:{_NOUN}\s+)?[\"'(]?(?P<than>a|b)[\"')]?)?"
_TIE = r"(?:a\s+)?(?:tie|draw)"
_WINNER = r"(?:winner|verdict|judge?ment|decision|choice|preference|preferred|better(?:\s+(?:answer|response|one))?)"
_CLEARLY = r"(?:(?:clearly|slightly|much|far|significantly|somewhat|marginally|definitely|clear|by\s+far)\s+){0,2}"
_BETTER = (
    rf"(?:is\s+{_CLEARLY}(?:the\s+)?{_CLEARLY}(?:better|best|winner|stronger|superior|preferable)(?:\s+(?:one|{_NOUN}))?"
    rf"|{_CLEARLY}wins)(?:\s+overall)?"
)
_PREFER = rf"(?:prefer|choose|pick)\s+(?:the\s+)?{_NOUN}\s+(?P<other>a|b)(?![^\W_])"
PREFERENCE = Grammar(
    "verdict",
    _forms(
        label=rf"{_LEAD}(?:(?:{_THE}{_WINNER}\s*(?:[:=–—]|is)|{_RESULT})\s*){{1,2}}"
        rf"(?:{_SIDE}(?:\s+{_BETTER})?|{_TIE}){_END}",
        sentence=rf"{_LEAD}(?:{_SIDE}\s+{_BETTER}{_THAN}|i\s+(?:would\s+)?{_PREFER}"
        rf"|(?:it|this)(?:[’']s|\s+is)\s+{_TIE}){_END}",
        brackets=rf"(?:{_SIDE}|{_TIE}|(?P<third>c))\s*[.!]?",
        bare=rf"(?:{_SIDE}|{_TIE})\s*[.!]?",
    ),
    re.compile(rf"{_START}(?:winner|verdict)[\W_]{{0,8}}?[:=–—]|\[\[|\[result\]"),
    _forms(
        label=rf"(?:{_WINNER}[\W_]{{0,8}}(?:is[\W_]{{1,4}})?|\[result\]\W{{0,4}})(?:the\s+)?(?:{_NOUN}[\W_]{{1,4}})?"
        r"(?P<value>a|b|tie|draw)(?![^\W_])",
        brackets=rf"\[\[[\W_]*(?:{_NOUN}\s+)?(?P<value>a|b|c|tie|draw)(?![^\W_])",
        sentence=rf"(?<![^\W_])(?P<value>a|b)[\W_]{{1,4}}{_BETTER}|{_PREFER}",
    ),
    against=re.compile(rf"(?<![^\W_])(?P<value>a|b)[\W_]{{1,4}}{_BETTER}\W*\Z|{_PREFER}\W*\Z"),
    unsure=re.compile(r"\A\W*(?:[ab]\W*)?\Z"),
    alone=frozenset({"bare"}),
)

# --- yes or no -------------------------------------------------------------------------------------------
_MET = r"(?:met|verdict|judge?ment|decision|satisfied|fulfilled|criterion(?:\s+(?:is\s+)?met)?)"
_YES = r"(?P<value>yes|no)"
_TRUE = r"(?P<value>yes|no|true|false)"
YES_OR_NO = Grammar(
    "yes or no",
    _forms(
        label=rf"{_LEAD}(?:(?:{_THE}{_MET}\s*[:=–—]|{_RESULT})\s*){{1,2}}{_TRUE}{_END}",
        answer=rf"{_LEAD}{_THE}answer\s*[:=–—]\s*{_TRUE}{_END}",
        brackets=rf"{_YES}{_END}",
        bare=rf"{_LEAD}{_YES}{_END}",
    ),
    re.compile(rf"{_START}(?:met|verdict)[\W_]{{0,8}}?[:=–—]|\[\[|\[result\]|^(?:yes|no)\s*(?:/|(?:and|or|but)\b)"),
    _forms(
        label=rf"(?:{_MET}[\W_]{{0,4}}[:=–—]|\[result\])[\W_]{{0,6}}{_TRUE}(?![^\W_])",
        answer=rf"answer[\W_]{{0,4}}[:=–—][\W_]{{0,6}}{_TRUE}(?![^\W_])",
    ),
    against=re.compile(r"(?!)"),
    unsure=re.compile(r"(?!)"),
)

# --- reading ---------------------------------------------------------------------------------------------
_LABEL_ALONE = re.compile(rf"(?:{_THE}(?:{_GRADE}|{_WINNER}|met)\s*:|{_RESULT})", re.IGNORECASE)
_TAKES_BACK = re.compile(r"(?:no|wait|hm+|sorry|oops|correction|actually|rather|scratch that)\s*(?:[,.:;!–—-]|\Z)")


def read(grammar: Grammar, reply: str, shown: str) -> Reading:
    """The verdict of a reply by the module's rules. `shown`: everything of others that the judge saw."""
    text = sentences.with_objects(simple(said(reply)), lambda line: _speaks(grammar, line))
    lines = list(sentences.sentences(sentences.outside_quotations(text), _LABEL_ALONE))
    units = [unit for line in lines for unit in line]
    found: dict[int, Statement] = {}
    for place, unit in enumerate(units):
        if statement := _statement(grammar, unit, len(units) == 1):
            found[place] = statement
        elif _speaks(grammar, unit):
            return Reading(None, f"a {grammar.what} in no form that can be read")
    if not found:
        return Reading(None, f"no {grammar.what}" if units else "nothing outside quotations")
    values = {statement.value for statement in found.values()}
    opens = all(place in found or units[place].endswith(":") for place in range(min(found)))
    opens = opens or max(found) == len(units) - len(lines[-1])  # its last line
    closes = max(found) == len(units) - 1
    if not closes:
        rest = [plain(unit).casefold() for place, unit in enumerate(units) if place not in found]
        values |= {value for unit in rest for value in _values(grammar.against, unit)}
        opens = opens and not any(_TAKES_BACK.match(unit) for unit in rest)
    if len(values) > 1:
        return Reading(None, f"more than one {grammar.what}")
    if not (opens or closes):
        return Reading(None, f"text after the {grammar.what}")
    [value] = values
    if grammar.what == "score":
        if any(statement.scale not in (None, str(POINTS)) for statement in found.values()):
            return Reading(None, f"a score on another scale than 0 to {POINTS}")
        if value not in {str(number) for number in range(POINTS + 1)}:
            return Reading(None, f"the score is not a whole number from 0 to {POINTS}")
    known = _stated_in(grammar, shown)
    plainly = {(form, value) for form in ("label", "brackets")}  # repeated in whatever form
    if any((statement.form, value) in known for statement in found.values()) or plainly & known:
        return Reading(None, f"the candidate or its prompt states the same {grammar.what}")
    return Reading(value)


def _statement(grammar: Grammar, unit: str, whole: bool) -> Statement | None:
    """The verdict that a sentence gives. `whole`: it is all of the reply."""
    bracketed = "[[" in unit
    text = sentences.unwrapped(unit).casefold()
    for form, pattern in grammar.forms.items():
        if (form == "brackets") > bracketed or (form in grammar.alone and not whole):
            continue
        if match := pattern.fullmatch(text):
            groups = match.groupdict()
            value = groups.get("value") or groups.get("other")
            statement = Statement(form, _canonical(value) if value else "tie", groups.get("scale"))
            return None if _taken_back(grammar, statement, groups) else statement
    return None


def _speaks(grammar: Grammar, text: str) -> bool:
    """Whether a text says anything of a verdict, in whatever form."""
    return bool(grammar.stated.search(plain(text).casefold()) or _statement(grammar, text, False))


def _taken_back(grammar: Grammar, statement: Statement, groups: Mapping[str, str | None]) -> bool:
    """Whether the rest of its sentence speaks against a verdict."""
    why = groups.get("why") or ""
    others = _values(grammar.against, why)
    unsure = why and (grammar.unsure.search(why) or grammar.stated.search(why))
    return bool(unsure) or bool(others - {statement.value}) or groups.get("than") == statement.value


def _values(pattern: re.Pattern[str], text: str) -> set[str]:
    """The canonical values that a pattern finds."""
    found = (next((group for group in match.groups() if group), None) for match in pattern.finditer(text))
    return {_canonical(value) for value in found if value}


def _canonical(value: str) -> str:
    """A number without idle zeros; one word for each verdict."""
    if not value[0].isdigit():
        return {"c": "tie", "draw": "tie", "true": "yes", "false": "no"}.get(value, value)
    whole, _, rest = value.partition(".")
    return (whole.lstrip("0") or "0") + (f".{rest}" if rest.strip("0") else "")


def _stated_in(grammar: Grammar, shown: str) -> set[tuple[str, str]]:
    """Form and value of every verdict that the text states, quoted or not, in any way that may be repeated."""
    found = set()
    lines = [line.lstrip("> \t") for line in simple(shown).splitlines()]
    for unit in (unit for line in sentences.sentences(lines, _LABEL_ALONE) for unit in line):
        if statement := _statement(grammar, unit, True):
            found.add((statement.form, statement.value))
    text = plain(shown).casefold()
    for form, pattern in grammar.shown.items():
        found |= {(form, value) for value in _values(pattern, text)}
    return found


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
    quotation marks around it go, and thoughts."""
    text = _unfenced(said(reply).strip())
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

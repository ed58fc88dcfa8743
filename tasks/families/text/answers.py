r"""The answer in a text: a number, as GSM8K and MATH mark it or as prose gives it.

It is looked for in this order: after the last `####`; in the last `\boxed{}`; behind the last "answer is" or "answer:";
in the whole text, if that is a value and no prose; else it is the last number of the prose. A value is one number, in
one form however it is written (0.75, 3/4, 6/8 and `\frac34` are 0.75), or else its own text: `2\sqrt{3}`, `(3,4)`,
`12:30`. Reading an answer once more gives the same answer.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import gcd
from unicodedata import normalize

from tasks.families.text.plain import UNSPACED, said, simple

PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?")
LONGEST_FRACTION = 300  # characters

# --- numbers ---------------------------------------------------------------------------------------
_LETTER = rf"[^\W\d_{UNSPACED}]"
_NAME = rf"[^\W{UNSPACED}]"  # digits next to it belong to a name: x1, H2O
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?:\$\s?)?(?<!{_NAME})(?<![./])(?P<fraction>-?[0-9]+/[0-9]+)(?!{_NAME})(?!/)"
    rf"|(?:(?<!{_NAME})(?<![)\].])(?P<minus>-))?(?:\$\s?(?P<inner>-)?)?(?<!{_NAME})(?<!\.)(?P<whole>{_DIGITS})?"
    rf"(?P<decimals>\.[0-9]+)?(?:(?<=[0-9])[eE](?P<exponent>[+-]?[0-9]{{1,2}})(?!{_NAME})(?!\.))?"
)
_TIDY: list[
    tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]
] = [  # how LaTeX and typography write what has a plain form too
    (re.compile(r"<<[^<>\n]*>>"), ""),  # GSM8K's calculator
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"[⁄∕]"), "/"),
    (re.compile(r"π"), r"\\pi "),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"(?<=[0-9])(?:\\[,;:! ]|[\u00a0\u2009\u202f'’~]|,\\!|\{,\})(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}(?:\^\{?-?[0-9]\}?)?"), r" \1 "),
    (re.compile(rf"(?<=[0-9])\s*({_LETTER}{{2,}})\^\{{?-?[0-9]\}}?"), r" \1"),  # 5 cm^2
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\(?:left|right|displaystyle)(?![a-z])|\\[,;:!()\[\]]|\\(?=\s)|°"), " "),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"(?<=[0-9])(?=\\frac)"), " "),
    (re.compile(r"\\frac\s*(?:\{\s*(-?[0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"), r"\1\2/\3\4"),
    (re.compile(r"[⅟¼-¾⅐-⅞]"), lambda match: " " + normalize("NFKC", match[0]).replace("⁄", "/")),
    (re.compile(r"\\(?:times|cdot)(?![a-z])|×|(?<=[0-9] )x(?= [0-9])"), "*"),
    (re.compile(r"(?<=[0-9])\s*\*\s*10\s*\^\s*\{?\s*(-?[0-9]{1,2})\s*\}?"), r"e\1"),
    (re.compile(r"√\s*([0-9]+)|\\sqrt\s*([0-9])"), r"\\sqrt{\1\2}"),
    (re.compile(r"\^\{(\w)\}"), r"^\1"),
]


def numbers(text: str) -> list[str]:
    """Canonical numbers in order: no thousands separators, signs of currency, powers of ten (1.5e3) or idle zeros; a
    fraction as a decimal number, or in lowest terms where it is none. Digits of all scripts count."""
    return [number for _, number in _found(_tidy(text))]


def _tidy(text: str) -> str:
    text = simple(text)
    for pattern, written in _TIDY:
        text = pattern.sub(written, text)
    return text


def _found(text: str) -> list[tuple[re.Match[str], str]]:
    """Every number of a tidy text: where it stands, and its canonical form."""
    found = []
    for match in _NUMBER.finditer(text):
        if match["fraction"]:
            found.append((match, _fraction(match["fraction"])))
        elif match["whole"] or match["decimals"]:
            value = _decimal(match["whole"] or "", match["decimals"] or "", match["exponent"])
            found.append((match, f"-{value}" if (match["minus"] or match["inner"]) and value != "0" else value))
    return found


def _decimal(whole: str, decimals: str, exponent: str | None = None) -> str:
    """A number without a sign; `decimals` with their point."""
    value = (whole.replace(",", "").lstrip("0") or "0") + decimals.rstrip("0").rstrip(".")
    if exponent is None:
        return value
    value = format(Decimal(f"{value}e{exponent}"), "f")
    return value.rstrip("0").rstrip(".") if "." in value else value


def _fraction(text: str) -> str:
    """A fraction of whole numbers; one over 0, or of hundreds of digits, stays as it is."""
    if len(text) > LONGEST_FRACTION or not text.rpartition("/")[2].strip("0"):
        return text
    value = Fraction(text)
    rest, places = value.denominator, 0
    while gcd(rest, 10) > 1:
        rest, places = rest // gcd(rest, 10), places + 1
    if rest > 1:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole = digits[: len(digits) - places]
    return ("-" if value < 0 else "") + _decimal(whole, f".{digits[len(whole) :]}" if places else "")


# --- values ----------------------------------------------------------------------------------------
_UNIT = r"[mgshdlLVAWN]"  # one letter; other letters next to a number are variables
_SIGN = r"\s*[-+*/^]\s*"
_TAKES_PART = re.compile(  # before a number, what makes it a part of something
    rf"(?:(?<!{_LETTER}){_LETTER}|[)\]}}]){_SIGN}$|(?:[\^_√±<>≤≥≠]|\*\*?[-+]?)\s*$|{_LETTER}\($"
)
_GOES_ON = re.compile(  # the same behind it
    rf"(?:(?!{_UNIT}){_LETTER}|\s*[xyzn])(?!{_NAME})|{_SIGN}(?:{_LETTER}(?!{_LETTER})|[(\[{{\\])|\s*[\^_√<>≤≥≠!]|\.[0-9]"
)
_WORD = re.compile(rf"{_LETTER}{{2,}}|[{UNSPACED}]{{2}}")
_GROUPS = re.compile(r"(?<![\w.,/])[0-9]{1,3}(?: [0-9]{3})+(?!\w)")
_MIXED = re.compile(r"(?<![\w.,/])([0-9]{1,99}) ([0-9]{1,99})/([0-9]{1,99})(?![\w/])")  # 3 1/2
_COMPUTED = re.compile(r"[^A-Za-z\\^_{},;]*|[A-Za-z ]+")  # before an equals sign, so that what follows is the value


def _value(text: str) -> str | None:
    """The value that a tidy text is, with what is said about it (a unit, a sign of currency). None without a
    number, and for prose of several."""
    text = re.sub(r"\A-\s+(?=[0-9.])", "-", " ".join(text.strip("*_`$ \t\n").split()))
    *before, last = text.split("=")
    if before and all(_COMPUTED.fullmatch(piece) for piece in before) and (number := _number(last)):
        return number
    if (number := _number(text)) or is_prose(text) or not _found(text):
        return number
    apart = r"(?<!\w)(?<![0-9],) | (?!\w)|(?<=[0-9],) (?![0-9]{3}(?![0-9]))"  # 100, 200 is not 100,200
    return re.sub(apart, "", text.replace("$", "").replace("**", "")).rstrip(".,;")


def _number(text: str) -> str | None:
    """The number that a value consists of; None where it is none, several, or a part of something else."""
    text = _GROUPS.sub(lambda match: match[0].replace(" ", ""), text.replace(" / ", "/"))
    found = _found(_MIXED.sub(lambda match: f"{int(match[1]) * int(match[3]) + int(match[2])}/{match[3]}", text))
    if len(found) != 1:
        return None
    [(match, number)] = found
    before, after = match.string[: match.start()], match.string[match.end() :]
    apart = "\\" in before + after or _TAKES_PART.search(before) or _GOES_ON.match(after)
    return None if apart else number


def is_prose(text: str) -> bool:
    """Whether a text is a sentence or several lines, so that its last number is its answer; LaTeX has no words."""
    words = len(_WORD.findall(re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z]+\})?", "", text)))
    several = "\n" in text.strip() and "\\begin{" not in text
    return several or words > 2 or (words == 2 and re.search(r"[.!?。](?![^\s*_])", text) is not None)


# --- answers ---------------------------------------------------------------------------------------
_MARK = re.compile(rf"####(?![ \t*]*{_LETTER}{{2}})[ \t]*\n?([^\n]*)")  # no heading of words
_ANSWER = re.compile(
    r"(?i:(?:(?<!\w)answer(?:\s+is\s*:?|[*_ \t]*[:=]|[*_ \t]*(?=\n))|(?:答案|答え|답|정답)(?:是|为|為|は|은|는|\s*[:=]))"
    r"(?!\W*(?:not|no)\b)(?:[ \t*_$#`]*([^\n]*[^\s*_$#`][^\n]*)|[\s*_$#`]*([^\n]*)))"
)
_ANSWERED = re.compile(rf"####[ \t]*\S|\\boxed\{{|(?m:^A:)|{_ANSWER.pattern}")
_BECAUSE = re.compile(  # ends an answer that is explained in its own line
    rf"\s*\((?=[^()]*{_LETTER}{{2}})|[,;]?\s+(?:because|since|as|where|which|so)\b|[.,;]\s+(?={_LETTER}{{2}})|[.!?]\s+|。"
)
_QUESTION = re.compile(  # opens another problem: the reply has run on
    r"(?im)^[ \t#*>]*(?:(?:next|new)[ \t]+)?(?:question|problem|exercise|instruction|task|user|human|q)[ \t]*[0-9]*[ \t*]*:"
)
_PART = re.compile(r"\\(?:sqrt|frac|d?binom|pi|log|ln|sin|cos|tan)|\^")  # in a word of prose, so its number is not all


def number_in(text: str) -> str | None:
    """The answer by the module's rules; None without one. Of a reply that has run on into another problem, the first
    problem's; thoughts hold none. A text that would be read as another once more is none either."""
    answer = _read(said(text))
    return answer if answer is None or PLAIN.fullmatch(answer) or _read(answer) == answer else None


def _read(text: str) -> str | None:
    text = _tidy(_own(text))
    marked = [piece for piece in _MARK.findall(text) if piece.strip()]
    boxed = _boxed(marked[-1] if marked else text)
    if boxed is not None:
        return _value(boxed)
    if marked:
        return _value(_BECAUSE.split(marked[-1].strip(), maxsplit=1)[0])
    told = [found for same, following in _ANSWER.findall(text) if (found := _told(same, following))]
    if told:
        return told[-1]
    return _last(text) if is_prose(text) or "\\boxed" in text else _value(text)


def _own(text: str) -> str:
    """The text up to where another problem begins, if the answer stands before that."""
    first = _ANSWERED.search(text) if _QUESTION.search(text) else None
    further = _QUESTION.search(text, first.end()) if first else None
    return text[: further.start()] if further else text


def _told(same: str, following: str) -> str | None:
    """The answer behind a label: of its own line, or of the next one if that is a value."""
    piece = _BECAUSE.split((same or following).strip(), maxsplit=1)[0]
    if not is_prose(piece):
        return _value(piece)
    found = _found(piece.rpartition("=")[2]) if same else []
    return found[0][1] if found else None


def _last(prose: str) -> str | None:
    """The last number of prose, or the value in LaTeX of which it is a part."""
    found = _found(prose)
    if not found:
        return None
    match, number = found[-1]
    word = next(word[0] for word in re.finditer(r"\S+", prose) if word.end() >= match.end())
    return _value(word.strip(".,;:!?()")) if _PART.search(word) else number


def _boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` holds; braces inside it are balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None

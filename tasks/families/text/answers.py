"""The answer in a text: a number, as GSM8K and MATH mark it or as prose gives it."""

import re
from decimal import Decimal

from tasks.families.text.plain import simple

# --- numbers ---------------------------------------------------------------------------------------
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?<![\w./])(?P<fraction>-?[0-9]+/[0-9]+)(?![\w/])"
    rf"|(?:(?<![\w)\].])(?P<minus>-))?(?:\$\s?(?P<inner>-)?)?(?<![\w.])(?P<whole>{_DIGITS})?(?P<decimals>\.[0-9]+)?"
    r"(?:(?<=[0-9])[eE](?P<exponent>[+-]?[0-9]{1,2})(?![\w.]))?"
)
_ANSWER = re.compile(r"(?i)(?<!\w)answer(?:\s+is\s*:?|\s*[:=])(?!\s*(?:not|no)\b)([^\n]*)")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")  # of LaTeX


def numbers(text: str) -> list[str]:
    """Canonical numbers in order: no thousands separators, signs of currency, powers of ten (1.5e3) or idle zeros; a
    fraction as written. Digits of all scripts count."""
    found = []
    for match in _NUMBER.finditer(simple(text).replace("−", "-").replace("\\$", "$").replace("{,}", ",")):
        if match["fraction"]:
            found.append(match["fraction"])
        elif match["whole"] or match["decimals"]:
            whole = (match["whole"] or "").replace(",", "").lstrip("0") or "0"
            decimals = (match["decimals"] or ".").rstrip("0")
            value = whole if decimals == "." else whole + decimals
            if match["exponent"]:
                value = format(Decimal(f"{value}e{match['exponent']}"), "f")
                value = value.rstrip("0").rstrip(".") if "." in value else value
            found.append(f"-{value}" if (match["minus"] or match["inner"]) and value != "0" else value)
    return found


def number_in(text: str) -> str | None:
    r"""The answer: after the last `####`, else in the last `\boxed{}`, else the first number after the last "answer is" or
    "answer:" (and after the last equals sign in that line), else the last number; None without one. A marked answer with digits that is not a single number (a fraction
    in LaTeX) stays as its text without spaces."""
    text = simple(text)
    marked = re.findall(r"####([^\n]*)", text)
    piece = marked[-1] if marked else _boxed(text)
    if piece is None:
        told = [found for line in _ANSWER.findall(text) if (found := numbers(line.rpartition("=")[2]))]
        found = told[-1][:1] if told else numbers(text)
        return found[-1] if found else None
    inside = _boxed(piece)
    piece = _WORDS.sub(r" \1 ", piece if inside is None else inside)
    found = numbers(piece)
    if len(found) == 1 and "\\" not in piece.replace("\\$", "").replace("\\%", ""):
        return found[0]
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", " ".join(piece.split())).rstrip(".") if found else None


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

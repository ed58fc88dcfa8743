"""Text as a reader sees it: full-width and look-alike forms as ordinary ones, all digits, nothing invisible."""

import unicodedata

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}


def simple(text: str) -> str:
    """Full-width forms as ASCII, decimal digits of all scripts as 0 to 9, and nothing invisible."""
    if text.isascii():
        return text
    shown = (c for c in text.translate(_FULL_WIDTH) if unicodedata.category(c) != "Cf")
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in shown)


def plain(text: str) -> str:
    """`simple`, and look-alike forms as ordinary ones."""
    return text if text.isascii() else simple(unicodedata.normalize("NFKC", text))

"""Text as a reader sees it: full-width and look-alike forms as ordinary ones, all digits, nothing invisible, and of a
reply what it says, without the thoughts before it and the turns after it."""

import re
import unicodedata

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
_THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning)"
_THOUGHTS = re.compile(rf"(?i)[<\[◁](?P<end>/)?{_THOUGHT}[>\]▷]")
_SIGN = r"(?:end|eot|eom|eos|eot_id|eom_id|im_end|im_start|endoftext|end.of.\w+|start_header_id|user|human|system)"
_TURN = re.compile(rf"(?i)<[|｜]{_SIGN}[|｜]>|</s>|<eos>|<(?:end|start)_of_turn>|\[/?INST\]")
UNSPACED = (  # letters of scripts that put no spaces between words, as a character class has them
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
)


def simple(text: str) -> str:
    """Full-width forms as ASCII, decimal digits of all scripts as 0 to 9, and nothing invisible."""
    if text.isascii():
        return text
    shown = (c for c in text.translate(_FULL_WIDTH) if unicodedata.category(c) != "Cf")
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in shown)


def plain(text: str) -> str:
    """`simple`, and look-alike forms as ordinary ones."""
    return text if text.isascii() else simple(unicodedata.normalize("NFKC", text))


def said(reply: str) -> str:
    """What a reply says: what follows its last `</think>` (nothing, where a thought is open at its end; the opening tag may
    stand in the prompt), up to the first sign of a chat template that ends the turn."""
    tags = list(_THOUGHTS.finditer(reply))
    if tags:
        reply = reply[tags[-1].end() :] if tags[-1]["end"] else ""
    return _TURN.split(reply, maxsplit=1)[0] if _TURN.search(reply) else reply

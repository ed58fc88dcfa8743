"""Seeds for every random choice, derived by name so that they never depend on order."""

import hashlib


def derive(seed: int, *names: object) -> int:
    """A 31-bit seed from a seed and names: equal arguments, equal seed; any other, an unrelated one."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF

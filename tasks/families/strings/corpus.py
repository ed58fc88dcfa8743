"""The data of `strings`: random strings, no string in two parts or twice outside the corpus."""

import random
from collections.abc import Sequence

from tasks.core.family import SeedData
from tasks.families.strings.family import Strings, solve_messages


def build(family: Strings, rng: random.Random) -> SeedData:
    """All data of the family: labels up to the longest base length, a pool and evaluated strings above."""
    options = family.options
    seen: set[str] = set()

    def fresh(length: int) -> str:
        while (text := " ".join(rng.choices(family.symbols, k=length))) in seen:
            pass
        return text

    def drawn(lengths: Sequence[int], number: int) -> list[dict]:
        rows = []
        for length in lengths:
            for _ in range(number):
                text = fresh(length)
                seen.add(text)
                rows.append({"messages": solve_messages(text), "difficulty": length, "answer": None})
        return rows

    shortest, longest = options.base_lengths
    heldout = drawn(options.evaluated_lengths, options.heldout)
    probe = drawn(options.evaluated_lengths, options.probe)
    pool = drawn(range(longest + 1, options.max_length + 1), options.pool)
    corpus = []
    for number in range(options.corpus):
        text = fresh(shortest + number % (longest - shortest + 1))
        completion = [{"role": "assistant", "content": text}]
        corpus.append({"part": "solve", "prompt": solve_messages(text), "completion": completion})
    return SeedData(corpus, pool, probe, heldout)

"""Near copies against all pairs compared one by one, and shared passages against a search in the words."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.families.text import overlap

WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12).map(" ".join)


def shingles(text: str, length: int) -> set[tuple[str, ...]]:
    found = overlap.words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)} or {tuple(found)}


def jaccard(one: str, other: str, length: int) -> float:
    a, b = shingles(one, length), shingles(other, length)
    return len(a & b) / len(a | b)


def sharing(one: str, other: str, n: int, shortest: int) -> bool:
    """Some min(n, |one|, |other|) consecutive words in common, and `shortest` at least or all of both."""
    a, b = overlap.words(one), overlap.words(other)
    length = min(n, len(a), len(b))
    if length < min(shortest, n):
        return a == b
    runs = {tuple(a[i : i + length]) for i in range(len(a) - length + 1)}
    return any(tuple(b[i : i + length]) in runs for i in range(len(b) - length + 1))


def test_words_are_what_counts():
    assert overlap.words("Ｈow MUCH — is  it?\n") == ["how", "much", "is", "it"]
    assert overlap.words("?!") == ["?!"]
    assert overlap.words("दो, दी!") == ["दो", "दी"]  # vowels that are marks
    assert overlap.words("nin\u0303o\ufe0f ❤\ufe0f") == ["niño"]


def test_near_copies_are_those_of_an_exhaustive_comparison():
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(400):
        if texts and rng.random() < 0.5:
            copy = rng.choice(texts).split()
            copy[rng.randrange(len(copy))] = f"x{rng.randrange(9)}"
            texts.append(" ".join(copy))
        else:
            texts.append(" ".join(f"w{rng.randrange(300)}" for _ in range(rng.randrange(1, 60))))
    expected: dict[int, tuple[int, float]] = {}
    for index, text in enumerate(texts):
        kept = [(jaccard(text, texts[other], 2), -other) for other in range(index) if other not in expected]
        best = max(kept, default=(0.0, 0))
        if best[0] >= 0.7:
            expected[index] = (-best[1], best[0])
    found = overlap.near_copies(overlap.hashed(texts), 0.7, 2, 128)
    assert {index: (near.other, near.similarity) for index, near in found.items()} == expected
    assert len(expected) > 100


@pytest.mark.parametrize(("threshold", "permutations"), [(0.5, 128), (0.8, 128), (0.9, 64), (1.0, 16)])
def test_bands_find_what_is_right_at_the_threshold(threshold, permutations):
    b, r = overlap.bands(threshold, permutations)
    assert b * r <= permutations
    assert 1 - (1 - threshold**r) ** b >= 0.99
    assert r == permutations or 1 - (1 - threshold ** (r + 1)) ** (permutations // (r + 1)) < 0.99


def test_minima_agree_as_often_as_the_sets_are_similar():
    """P(minima equal) = Jaccard similarity, over pairs of known similarity; four standard deviations."""
    rng = random.Random(1)
    for common in (5, 20, 35):
        own = [f"w{rng.randrange(10**9)}" for _ in range(40)]
        other = own[:common] + [f"w{rng.randrange(10**9)}" for _ in range(40 - common)]
        texts = overlap.hashed([" ".join(own), " ".join(other)])
        signatures, _ = overlap._signatures(texts, 1, 1024, 1, 1)
        true = common / (80 - common)
        seen = float((signatures[0] == signatures[1]).mean()) - (1 - true) / 256
        assert abs(seen - true) < 4 * (true * (1 - true) / 1024) ** 0.5


def test_the_first_texts_may_be_kept_whatever_they_resemble():
    texts = overlap.hashed(["one two three four"] * 4)
    assert set(overlap.near_copies(texts, 0.8, 2, 64)) == {1, 2, 3}
    found = overlap.near_copies(texts, 0.8, 2, 64, keep=2)
    assert {index: near.other for index, near in found.items()} == {2: 0, 3: 0}


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=5))
def test_passages_are_those_of_a_search_in_the_words(evaluated, texts):
    n, shortest = 5, 3
    found = overlap.Passages(overlap.hashed(evaluated), n, shortest).find(overlap.hashed(texts))
    assert set(found) == {i for i, text in enumerate(texts) if any(sharing(text, e, n, shortest) for e in evaluated)}
    for index, (other, place, length) in found.items():
        passage = overlap.words(texts[index])[place : place + length]
        assert " ".join(passage) in evaluated[other]
    lookup = overlap.Lookup(overlap.hashed(evaluated), (0.6, 2), (n, shortest))
    for index, text in enumerate(texts):
        assert (lookup.shared(text) is not None) == (index in found)
        best = max(jaccard(text, e, 2) for e in evaluated)
        near = lookup.near(text)
        assert (near is not None) == (best >= 0.6)
        assert near is None or near.similarity == pytest.approx(best)


def test_runs_of_words_know_their_text():
    texts = overlap.hashed(["a b c", "a", "b c"])
    runs = overlap.windows(texts, 2)
    assert list(zip(runs.owners.tolist(), runs.places.tolist(), strict=True)) == [(0, 0), (0, 1), (2, 0)]
    assert runs.hashes[1] == runs.hashes[2] != runs.hashes[0]
    assert len(overlap.windows(texts, 4).hashes) == 0
    part = overlap.windows(texts, 2, 1, 3)
    assert part.owners.tolist() == [2]
    assert part.hashes.dtype == np.uint64


def test_nothing_to_compare():
    assert overlap.near_copies(overlap.hashed(["a"]), 0.8, 3, 64) == {}
    lookup = overlap.Lookup(overlap.Hashed(), (0.8, 3), (13, 8))
    assert lookup.near("a b c") is None
    assert lookup.shared("a b c") is None


def test_every_pair_at_the_threshold_is_rarely_missed():
    rng = random.Random(2)
    texts = []
    for _ in range(300):
        own = [f"w{rng.randrange(10**6)}" for _ in range(36)]
        texts += [" ".join(own), " ".join([*own[:32], *(f"w{rng.randrange(10**6)}" for _ in range(4))])]
    assert all(jaccard(a, b, 1) == 0.8 for a, b in zip(texts[::2], texts[1::2], strict=True))
    found = overlap.near_copies(overlap.hashed(texts), 0.8, 1, 128)
    assert len(found) >= 0.97 * 300
    assert not [pair for pair in combinations(texts[::2], 2) if jaccard(*pair, 1) > 0.5]

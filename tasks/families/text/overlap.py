"""Which texts are near copies of one another, and which share passages: deduplication and decontamination.

A text is its words: NFKC, casefolded, letters and digits only, each word a 64-bit hash (`Hashed`).

Near copies are pairs whose sets of shingles (`shingle` consecutive words; a shorter text is one shingle) have a Jaccard
similarity |A and B| / |A or B| of at least `threshold`. Candidates come from MinHash and locality-sensitive hashing
(Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3): `permutations` minima are cut into b
bands of r rows, and a pair that agrees in a whole band, which it does with probability 1 - (1 - s^r)^b, is looked at. r
is the largest for which that is at least 0.99 at the threshold. The similarity of candidates is then computed exactly,
so no pair below the threshold is ever called near; about one in a hundred right at it may be missed.

Two texts share a passage if they have n consecutive words in common (n = 13 in GPT-3: Brown and others 2020, appendix
C). Of a text shorter than n, all words must stand in the other one, where they are at least `shortest`; shorter texts
must be equal.

Everything is arithmetic on hashes: no random numbers, equal results for equal texts in equal order.
"""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # hashes of a text's words, in order
Bytes = NDArray[np.uint8]

RECALL = 0.99  # share of the pairs right at the threshold that become candidates
CHUNK = 50_000  # texts whose shingles are in memory at once
CROWDED = 32  # kept texts of one band and value that a text is compared with, at most: templates crowd them
SLACK = 0.106  # three standard deviations of a similarity of 0.8 estimated from 128 minima
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, hence invertible modulo 2^64


def words(text: str) -> list[str]:
    """The words that count: case, punctuation, spacing and look-alike forms make no difference."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _word().findall(plain) or plain.split()


@cache
def _word() -> re.Pattern[str]:
    r"""Letters and digits, with the marks on them that `\w` leaves out: many scripts write vowels as marks."""
    codes = (*range(0x300, 0xFE00), *range(0xFE10, 0x1F000))  # without variation selectors, which change looks alone
    marks = (chr(code) for code in codes if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    return re.compile(rf"\w[\w{''.join(marks)}]*")


class Hashed:
    """Texts as hashes of their words, one after the other: 8 bytes a word."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._flat, self._ends = array("Q"), array("q", [0])

    def add(self, found: Iterable[str]) -> None:
        """One more text, given as its words."""
        known = self._known
        for word in found:
            value = known.get(word)
            if value is None:
                value = known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            self._flat.append(value)
        self._ends.append(len(self._flat))

    def extend(self, hashes: Sequence[int]) -> None:
        """One more text, given as the hashes of its words."""
        self._flat.extend(hashes)
        self._ends.append(len(self._flat))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> list[int]:
        return self._flat[self._ends[index] : self._ends[index + 1]].tolist()

    @property
    def flat(self) -> Words:
        return np.frombuffer(self._flat, dtype=np.uint64) if len(self._flat) else np.empty(0, np.uint64)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each text begins in `flat`, and the end of the last."""
        return np.frombuffer(self._ends, dtype=np.int64)


def hashed(texts: Iterable[str]) -> Hashed:
    """The texts' words as hashes."""
    made = Hashed()
    for text in texts:
        made.add(words(text))
    return made


class Windows(NamedTuple):
    """Hashes of consecutive words, and in which text and at which of its words they begin."""

    hashes: Words
    owners: NDArray[np.int64]
    places: NDArray[np.int64]

    def at(self, mask: NDArray[np.bool_]) -> "Windows":
        """Those of the mask."""
        return Windows(self.hashes[mask], self.owners[mask], self.places[mask])


def windows(texts: Hashed, length: int, first: int = 0, last: int | None = None, short: bool = False) -> Windows:
    """All runs of `length` words of the texts from `first` to before `last`; with `short`, a text of fewer words is a
    run of its own. A run's hash also says its length."""
    ends = texts.ends[first : (len(texts) if last is None else last) + 1]
    counts = np.maximum(np.diff(ends) - length + 1, int(short))
    owners = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    begins = ends[owners] + places
    lengths = np.minimum(ends[owners + 1] - begins, length)
    total = lengths.astype(np.uint64)
    for step in range(length):
        on = lengths > step if short else slice(None)
        total[on] = total[on] * _BASE + texts.flat[begins[on] + step]
    return Windows(_mixed(total), owners + first, places)


def _mixed(values: Words) -> Words:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014), a bijection: every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# --- near copies -----------------------------------------------------------------------------------------------
class Near(NamedTuple):
    """The earlier text that a text is a near copy of, and their Jaccard similarity."""

    other: int
    similarity: float


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """(b, r): bands and rows a band; the largest r with 1 - (1 - threshold^r)^b >= 0.99 and b = permutations // r."""
    rows = range(1, permutations + 1)
    r = max((r for r in rows if 1 - (1 - threshold**r) ** (permutations // r) >= RECALL), default=1)
    return permutations // r, r


def near_copies(texts: Hashed, threshold: float, shingle: int, permutations: int, keep: int = 0) -> dict[int, Near]:
    """Texts that are near copies of an earlier one that is kept itself, in their order. The first `keep` are kept
    whatever they resemble. Of more than one, the most similar is named, the earliest among equals."""
    b, r = bands(threshold, permutations)
    signatures, keys = _signatures(texts, shingle, permutations, b, r)
    found: dict[int, Near] = {}
    buckets: dict[tuple[int, int], list[int]] = {}
    sets: dict[int, Words] = {}

    def shingles(index: int) -> Words:
        if index not in sets:
            sets[index] = np.unique(windows(texts, shingle, index, index + 1, short=True).hashes)
        return sets[index]

    for index in np.flatnonzero(_shared(keys)).tolist():
        places = list(enumerate(keys[index].tolist()))
        if index >= keep:
            candidates = sorted({other for place in places for other in buckets.get(place, ())})
            alike = _alike(signatures, index, candidates, threshold, permutations)
            near = [Near(other, similarity(shingles(index), shingles(other))) for other in alike]
            if best := max((n for n in near if n.similarity >= threshold), key=lambda n: n.similarity, default=None):
                found[index] = best
                del sets[index]
                continue
        for place in places:
            if len(bucket := buckets.setdefault(place, [])) < CROWDED:
                bucket.append(index)
    return found


def similarity(one: Words, other: Words) -> float:
    """Jaccard similarity of two sets, each sorted and without repetition."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _alike(signatures: Bytes, index: int, candidates: list[int], threshold: float, permutations: int) -> list[int]:
    """Candidates whose similarity, estimated from one byte of every minimum, is not clearly below the threshold."""
    if not candidates:
        return []
    equal = (signatures[candidates] == signatures[index]).mean(axis=1)
    least = threshold - SLACK * (128 / permutations) ** 0.5
    return [other for other, share in zip(candidates, equal.tolist(), strict=True) if share >= least]


def _signatures(texts: Hashed, length: int, permutations: int, b: int, r: int) -> tuple[Bytes, Words]:
    """One byte of each minimum (texts by permutations), and the hash of each band (texts by bands)."""
    count = len(texts)
    signatures, keys = np.empty((count, permutations), np.uint8), np.empty((count, b), np.uint64)
    drawn = _mixed(np.arange(1, 2 * permutations + 1, dtype=np.uint64))
    factors = (drawn[:permutations] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)  # odd: h -> a h + b is bijective
    shifts = (drawn[permutations:] >> np.uint64(32)).astype(np.uint32)
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        found = windows(texts, length, first, last, short=True)
        starts = np.searchsorted(found.owners, np.arange(first, last))
        short = (found.hashes >> np.uint64(32)).astype(np.uint32)
        minima = np.empty((last - first, permutations), np.uint32)
        for column in range(permutations):
            minima[:, column] = np.minimum.reduceat(short * factors[column] + shifts[column], starts)
        signatures[first:last] = (minima >> np.uint32(24)).astype(np.uint8) ^ minima.astype(np.uint8)
        for band in range(b):
            total = np.full(last - first, band + 1, np.uint64)
            for column in range(band * r, band * r + r):
                total = _mixed(total * _BASE + minima[:, column])
            keys[first:last, band] = total
    return signatures, keys


def _shared(keys: Words) -> NDArray[np.bool_]:
    """Texts that agree with another one in a band at least."""
    shared = np.zeros(len(keys), bool)
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        equal = column[order][1:] == column[order][:-1]
        shared[order[1:][equal]] = True
        shared[order[:-1][equal]] = True
    return shared


# --- shared passages ---------------------------------------------------------------------------------------------
class Shared(NamedTuple):
    """The evaluation text that a text has a passage in common with; the passage is `length` words from `place`."""

    other: int
    place: int
    length: int


class Passages:
    """What other texts must not contain: the passages of evaluation texts."""

    def __init__(self, texts: Hashed, n: int, shortest: int) -> None:
        """`n` words are a passage; a text of fewer counts as a whole, inside others from `shortest` words."""
        self.n, self.shortest = n, shortest
        lengths = np.diff(texts.ends)
        self._runs: dict[int, tuple[Words, NDArray[np.int64]]] = {}  # of texts of at least that many words
        self._wholes: dict[int, tuple[Words, NDArray[np.int64]]] = {}  # of texts of just that many words
        for length in range(1, n + 1):
            runs = windows(texts, length)
            if len(runs.hashes) and (length >= shortest or length == n):
                self._runs[length] = _index(runs)
            whole = lengths[runs.owners] == length
            if length < n and whole.any():
                self._wholes[length] = _index(runs.at(whole))

    def find(self, texts: Hashed) -> dict[int, Shared]:
        """Texts that share a passage, each with the first that it shares."""
        found: dict[int, Shared] = {}
        for first in range(0, len(texts), CHUNK):
            for index, shared in self._found(texts, first, min(first + CHUNK, len(texts))):
                if index not in found or shared.place < found[index].place:
                    found[index] = shared
        return found

    def _found(self, texts: Hashed, first: int, last: int) -> Iterator[tuple[int, Shared]]:
        lengths = np.diff(texts.ends[first : last + 1])
        for length in range(1, self.n + 1):
            full = (lengths == length) if length < self.n else lengths >= length
            inside = (lengths > length) & (self.shortest <= length < self.n)
            for index, wanted in ((self._runs, full), (self._wholes, full | inside)):
                if length in index and wanted.any():
                    runs = windows(texts, length, first, last)
                    runs = runs.at(wanted[runs.owners - first])
                    keys, owners = index[length]
                    place = np.minimum(np.searchsorted(keys, runs.hashes), len(keys) - 1)
                    for hit in np.flatnonzero(keys[place] == runs.hashes).tolist():
                        yield int(runs.owners[hit]), Shared(int(owners[place[hit]]), int(runs.places[hit]), length)


def _index(runs: Windows) -> tuple[Words, NDArray[np.int64]]:
    """Sorted hashes, each with the first text that has it."""
    keys, first = np.unique(runs.hashes, return_index=True)
    return keys, runs.owners[first]


# --- both, for one text after the other --------------------------------------------------------------------------
class Lookup:
    """Near copies and shared passages of a fixed set of texts, for single texts; similarities are exact."""

    def __init__(self, texts: Hashed, near: tuple[float, int] | None, passages: tuple[int, int] | None) -> None:
        """`near`: threshold and shingle; `passages`: n and shortest; None: not looked at."""
        self._near = near if len(texts) else None
        self._passages = Passages(texts, *passages) if passages and len(texts) else None
        if self._near is not None:
            runs = windows(texts, self._near[1], short=True)
            pairs = np.unique(np.stack([runs.hashes, runs.owners.astype(np.uint64)]), axis=1)
            self._keys, self._owners = pairs[0], pairs[1].astype(np.int64)
            self._sizes = np.bincount(self._owners, minlength=len(texts))

    def near(self, text: str) -> Near | None:
        """The most similar text, if it is near."""
        if self._near is None:
            return None
        threshold, length = self._near
        own = np.unique(windows(hashed([text]), length, short=True).hashes)
        low, high = np.searchsorted(self._keys, own, "left"), np.searchsorted(self._keys, own, "right")
        hits = np.concatenate([self._owners[a:b] for a, b in zip(low, high, strict=True)])
        common = np.bincount(hits, minlength=len(self._sizes))
        scores = common / (self._sizes + len(own) - common)
        best = int(np.argmax(scores))
        return Near(best, float(scores[best])) if scores[best] >= threshold else None

    def shared(self, text: str) -> Shared | None:
        """The first passage in common with one of the texts."""
        return self._passages.find(hashed([text])).get(0) if self._passages else None

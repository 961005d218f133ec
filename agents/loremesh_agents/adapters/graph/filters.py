"""Bloom filters over words, so that the writer rarely asks the database for what is not there.

Bloom, "Space/time trade-offs in hash coding with allowable errors" (1970), with two probes. A run of words has a rolling hash; all runs of a batch of
texts are hashed together with numpy.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.document import TextSpans
from loremesh_agents.domain.mentions import LONGEST_TITLE, is_matchable

_MASK = (1 << 64) - 1
_BASE = 0x9E3779B97F4A7C15
_PROBES = (np.uint64(0xD6E8FEB86659FD93), np.uint64(0xC2B2AE3D27D4EB4F))
_FEWEST_BITS = 1 << 16
_BITS_PER_TITLE = 16
_PHRASE_BITS = 1 << 27


class BloomFilter:
    """A set of 64-bit hashes, with false positives.

    Args:
        bits: Its size, a power of two.
    """

    def __init__(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits.bit_length() + 1)
        self._bits = np.zeros(bits // 8, dtype=np.uint8)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Takes hashes, shape (n,)."""
        for byte, bit in self._places(hashes):
            np.bitwise_or.at(self._bits, byte, bit)

    def holds(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each of the hashes may be in the set, shape (n,)."""
        (byte, bit), *more = self._places(hashes)
        seen: NDArray[np.bool_] = (self._bits[byte] & bit) != 0
        for byte, bit in more:
            seen &= (self._bits[byte] & bit) != 0
        return seen

    def _places(self, hashes: NDArray[np.uint64]) -> list[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
        places = [(hashes * probe) >> self._shift for probe in _PROBES]
        return [(place >> np.uint64(3), (1 << (place & np.uint64(7))).astype(np.uint8)) for place in places]


class TitleFilter:
    """The titles of a collection: which of them may be in a text? It forgets none; build it anew to be rid of old ones. Takes two bytes a title.

    Args:
        keys: Entity keys of the titles. Those that are looked for in no text are left out.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        bits = _FEWEST_BITS
        while bits < _BITS_PER_TITLE * len(keys):
            bits *= 2
        self._room = 2 * bits // _BITS_PER_TITLE
        self._titles = BloomFilter(bits)
        self.add(keys)

    @property
    def full(self) -> bool:
        """Whether so many titles have come that too much passes: time for a new, larger one."""
        return self._room < 0

    def add(self, keys: Iterable[str]) -> None:
        """Takes more titles."""
        matchable = [key for key in keys if is_matchable(key)]
        self._room -= len(matchable)
        self._titles.add(np.array([_hash(key.split()) for key in matchable], dtype=np.uint64))

    def proposals(self, texts: Sequence[TextSpans]) -> list[set[str]]:
        """For each text the keys of titles that it may contain, among them all that it does."""
        found: list[set[str]] = [set[str]() for _ in texts]
        names = [(place, name) for place, spans in enumerate(texts) for name in spans.names]
        for hit in np.flatnonzero(self._titles.holds(_hashes(name for _, name in names))).tolist():
            found[names[hit][0]].add(names[hit][1])
        words, owners = _words_of(texts)
        singles = _hashes(words)
        runs = singles
        for size in range(2, min(LONGEST_TITLE, len(words)) + 1):
            runs = _longer(runs, singles, size)
            within = owners[: len(runs)] == owners[size - 1 :]
            for hit in np.flatnonzero(within & self._titles.holds(runs)).tolist():
                found[int(owners[hit])].add(" ".join(words[hit : hit + size]))
        return found


class PhraseFilter:
    """The words and pairs of words of passages: may a title be in one of them? Of a fixed size; it lets ever more pass beyond some ten million pairs.

    Args:
        since: Id of the first passage that it knows; 0 if it knows all.
    """

    def __init__(self, since: int) -> None:
        self.since = since
        self._pairs = BloomFilter(_PHRASE_BITS)

    def add(self, texts: Sequence[TextSpans]) -> None:
        """Takes passages, in the order of their ids."""
        words, owners = _words_of(texts)
        singles = _hashes(words)
        self._pairs.add(_longer(singles, singles, 2)[owners[:-1] == owners[1:]])
        self._pairs.add(_hashes({name for spans in texts for name in spans.names}))

    def may_hold(self, keys: Sequence[str]) -> list[bool]:
        """For each key whether a title of it may be in a passage that the filter knows."""
        if not keys:
            return []
        pairs: list[Sequence[Sequence[str]]] = [list(pairwise(words)) or [words] for words in map(str.split, keys)]
        hashes = np.array([_hash(pair) for of_key in pairs for pair in of_key], dtype=np.uint64)
        starts = np.cumsum([0, *map(len, pairs[:-1])])
        return [bool(held) for held in np.logical_and.reduceat(self._pairs.holds(hashes), starts)]


def _words_of(texts: Sequence[TextSpans]) -> tuple[list[str], NDArray[np.int64]]:
    """The words of all texts in a row, and which text each is of."""
    owners = np.repeat(np.arange(len(texts)), [len(spans.words) for spans in texts])
    return list(chain.from_iterable(spans.words for spans in texts)), owners


def _hashes(words: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(hash, words), dtype=np.int64).view(np.uint64)


def _longer(runs: NDArray[np.uint64], singles: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """The hashes of all runs of `size` words, from those of the runs that are one word shorter."""
    return runs[:-1] * np.uint64(_BASE) + singles[size - 1 :]


def _hash(words: Iterable[str]) -> int:
    found = 0
    for word in words:
        found = (found * _BASE + hash(word)) & _MASK
    return found

"""Finds the titles of a collection in texts, many texts at once.

Every run of up to eight words of a text may be a title. Each is hashed, all of a batch together with numpy, and looked up in a Bloom filter (Bloom,
"Space/time trade-offs in hash coding with allowable errors", 1970); what the filter lets through the store checks. The filter takes two bytes a title.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.document import TextSpans
from loremesh_agents.domain.mentions import LONGEST_TITLE, is_matchable

_MASK = (1 << 64) - 1
_BASE = 0x9E3779B97F4A7C15
_PROBES = (np.uint64(0xD6E8FEB86659FD93), np.uint64(0xC2B2AE3D27D4EB4F))
_FEWEST_BITS = 1 << 16
_BITS_PER_TITLE = 16


class TitleFilter:
    """The titles of a collection, with false positives. It forgets none; build it anew to be rid of old ones.

    Args:
        keys: Entity keys of the titles. Those that are looked for in no text are left out.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        bits = _FEWEST_BITS
        while bits < _BITS_PER_TITLE * len(keys):
            bits *= 2
        self._shift = np.uint64(64 - bits.bit_length() + 1)
        self._room = bits // (_BITS_PER_TITLE // 2)
        self._bits = np.zeros(bits // 8, dtype=np.uint8)
        self.add(keys)

    @property
    def full(self) -> bool:
        """Whether so many titles have come that too much passes: time for a new, larger one."""
        return self._room < 0

    def add(self, keys: Iterable[str]) -> None:
        """Takes more titles."""
        matchable = [key for key in keys if is_matchable(key)]
        self._room -= len(matchable)
        hashes = np.array([_hash(key.split()) for key in matchable], dtype=np.uint64)
        for byte, bit in self._places(hashes):
            np.bitwise_or.at(self._bits, byte, bit)

    def proposals(self, texts: Sequence[TextSpans]) -> list[set[str]]:
        """For each text the keys of titles that it may contain, among them all that it does."""
        found: list[set[str]] = [set() for _ in texts]
        names = [(place, name) for place, spans in enumerate(texts) for name in spans.names]
        for hit in self._hits(_hashes(name for _, name in names)):
            place, name = names[hit]
            found[place].add(name)
        words = list(chain.from_iterable(spans.words for spans in texts))
        owners = np.repeat(np.arange(len(texts)), [len(spans.words) for spans in texts])
        singles = _hashes(words)
        runs = singles
        for size in range(2, min(LONGEST_TITLE, len(words)) + 1):
            runs = runs[:-1] * np.uint64(_BASE) + singles[size - 1 :]
            within = owners[: len(runs)] == owners[size - 1 :]
            for hit in self._hits(runs, within):
                found[owners[hit]].add(" ".join(words[hit : hit + size]))
        return found

    def _places(self, hashes: NDArray[np.uint64]) -> list[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
        places = [(hashes * probe) >> self._shift for probe in _PROBES]
        return [(place >> np.uint64(3), (1 << (place & np.uint64(7))).astype(np.uint8)) for place in places]

    def _hits(self, hashes: NDArray[np.uint64], within: NDArray[np.bool_] | None = None) -> list[int]:
        seen = np.ones(len(hashes), dtype=np.bool_) if within is None else within
        for byte, bit in self._places(hashes):
            seen = seen & ((self._bits[byte] & bit) != 0)
        return [int(hit) for hit in np.flatnonzero(seen)]


def _hashes(words: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(hash, words), dtype=np.int64).view(np.uint64)


def _hash(words: Iterable[str]) -> int:
    found = 0
    for word in words:
        found = (found * _BASE + hash(word)) & _MASK
    return found

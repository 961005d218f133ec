"""What is stored of search terms: hashes of 64 bits, packed, as text that every engine takes.

What a term is looked up by is its hash. Words of a text that are no search term, and names, have hashes of their own beside them, so that a title can be
looked for in what is there already.
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.document import PassageWrite

_MOST_COUNTED = 0xFFFF
_BUCKET_SHIFT = 56
_COMPRESSION = 1


@lru_cache(maxsize=1 << 16)
def term_hash(term: str) -> int:
    """The hash of a search term or of a word."""
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def name_hash(key: str) -> int:
    """The hash of a word where it is written like a name."""
    return term_hash(f"\x1f{key}")


def bucket_of(found: int) -> int:
    """Which bucket of a collection a hash belongs to, 0 to 255."""
    return found >> _BUCKET_SHIFT


@dataclass(frozen=True, slots=True)
class Features:
    """What is stored of a passage for its exact score.

    Attributes:
        document_id: Its document.
        ordinal: Its place there.
        length: Search terms in it, with repeats.
        hashes: Of what it can be looked up by, ascending, shape (n,).
        counts: How often each is in it; 0 for what is no search term, shape (n,).
    """

    document_id: str
    ordinal: int
    length: int
    hashes: NDArray[np.uint64]
    counts: NDArray[np.uint16]

    @classmethod
    def of(cls, document_id: str, write: PassageWrite) -> "Features":
        """The features of a new passage."""
        found = dict.fromkeys(map(term_hash, write.spans.words), 0)
        found.update(dict.fromkeys(map(name_hash, write.spans.names), 0))
        found.update((term_hash(term), min(count, _MOST_COUNTED)) for term, count in write.term_frequencies.items())
        hashes = np.fromiter(found.keys(), dtype=np.uint64, count=len(found))
        order = np.argsort(hashes)
        counts = np.fromiter(found.values(), dtype=np.uint16, count=len(found))
        return cls(document_id, write.passage.ordinal, write.length, hashes[order], counts[order])

    def encoded(self) -> str:
        """As text."""
        header = np.array([self.ordinal, self.length], dtype="<u4").tobytes()
        packed = header + self.hashes.astype("<u8").tobytes() + self.counts.astype("<u2").tobytes()
        return f"{base64.b64encode(packed).decode()} {self.document_id}"

    @classmethod
    def decoded(cls, text: str) -> "Features":
        """From text."""
        packed, _, document_id = text.partition(" ")
        data = base64.b64decode(packed)
        ordinal, length = np.frombuffer(data, dtype="<u4", count=2).tolist()
        size = (len(data) - 8) // 10
        hashes = np.frombuffer(data, dtype="<u8", count=size, offset=8).astype(np.uint64)
        counts = np.frombuffer(data, dtype="<u2", count=size, offset=8 + 8 * size).astype(np.uint16)
        return cls(document_id, ordinal, length, hashes, counts)


@dataclass(frozen=True, slots=True)
class Frequencies:
    """By how much document frequencies change.

    Attributes:
        hashes: Of the terms, ascending, shape (n,).
        changes: Shape (n,).
    """

    hashes: NDArray[np.uint64]
    changes: NDArray[np.int64]

    @classmethod
    def of(cls, added: Sequence[Features], removed: Sequence[Features]) -> "Frequencies":
        """What passages that come and go change."""
        hashes = [features.hashes[features.counts > 0] for features in (*added, *removed)]
        if not hashes:
            return cls(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))
        signs = np.repeat([1] * len(added) + [-1] * len(removed), [len(found) for found in hashes])
        return cls._summed(np.concatenate(hashes), signs)

    @classmethod
    def total(cls, payloads: Iterable[str]) -> "Frequencies":
        """What cells add up to."""
        parts = [cls._decoded(payload) for payload in payloads]
        if not parts:
            return cls(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))
        return cls._summed(
            np.concatenate([part.hashes for part in parts]), np.concatenate([part.changes for part in parts])
        )

    @classmethod
    def _summed(cls, hashes: NDArray[np.uint64], changes: NDArray[np.int64]) -> "Frequencies":
        unique, places = np.unique(hashes, return_inverse=True)
        sums = np.zeros(len(unique), dtype=np.int64)
        np.add.at(sums, places, changes)
        kept = sums != 0
        return cls(unique[kept], sums[kept])

    @classmethod
    def _decoded(cls, payload: str) -> "Frequencies":
        data = base64.b64decode(payload)
        size = len(data) // 12
        hashes = np.frombuffer(data, dtype="<u8", count=size).astype(np.uint64)
        return cls(hashes, np.frombuffer(data, dtype="<i4", count=size, offset=8 * size).astype(np.int64))

    @property
    def nbytes(self) -> int:
        """What they take in memory, about."""
        return 256 + self.hashes.nbytes + self.changes.nbytes

    def encoded(self) -> str:
        """As text."""
        return base64.b64encode(self.hashes.astype("<u8").tobytes() + self.changes.astype("<i4").tobytes()).decode()

    def by_bucket(self) -> dict[int, "Frequencies"]:
        """The changes of each bucket that has some."""
        return {bucket: Frequencies(self.hashes[rows], self.changes[rows]) for bucket, rows in _by_bucket(self.hashes)}

    def of_term(self, wanted: int) -> int:
        """The change of one term, by its hash."""
        place = int(np.searchsorted(self.hashes, np.uint64(wanted)))
        return int(self.changes[place]) if place < len(self.hashes) and int(self.hashes[place]) == wanted else 0


@dataclass(frozen=True, slots=True)
class Postings:
    """Which passages hold what, of some versions.

    Attributes:
        hashes: Of what is held, ascending, shape (n,).
        refs: Handles of the passages, shape (n,).
        counts: How often, at most 255; 0 for what is no search term, shape (n,).
        removed: Handles of passages that are gone, whatever they held, ascending, shape (m,).
    """

    hashes: NDArray[np.uint64]
    refs: NDArray[np.int64]
    counts: NDArray[np.uint8]
    removed: NDArray[np.int64]

    @classmethod
    def of(cls, added: Mapping[int, Features]) -> "Postings":
        """The postings of new passages, by handle."""
        if not added:
            return cls._empty()
        sizes = [len(features.hashes) for features in added.values()]
        hashes = np.concatenate([features.hashes for features in added.values()])
        counts = np.concatenate([features.counts for features in added.values()])
        order = np.argsort(hashes, kind="stable")
        refs = np.repeat(np.fromiter(added, dtype=np.int64), sizes)
        return cls(
            hashes[order], refs[order], np.minimum(counts, 255).astype(np.uint8)[order], np.zeros(0, dtype=np.int64)
        )

    @classmethod
    def _empty(cls) -> "Postings":
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing.astype(np.uint64), nothing, nothing.astype(np.uint8), nothing)

    @classmethod
    def total(cls, payloads: Iterable[str], *, whole: bool) -> "Postings":
        """What cells add up to.

        Args:
            payloads: Of the cells.
            whole: Whether they are all from the beginning, so that no passage is left of which the end must be remembered.
        """
        parts = [cls._decoded(payload) for payload in payloads]
        if not parts:
            return cls._empty()
        hashes = np.concatenate([part.hashes for part in parts])
        refs = np.concatenate([part.refs for part in parts])
        counts = np.concatenate([part.counts for part in parts])
        removed = np.unique(np.concatenate([part.removed for part in parts]))
        kept = ~np.isin(refs, removed)
        order = np.argsort(hashes[kept], kind="stable")
        left = removed[:0] if whole else removed[~np.isin(removed, refs)]
        return cls(hashes[kept][order], refs[kept][order], counts[kept][order], left)

    @classmethod
    def _decoded(cls, payload: str) -> "Postings":
        data = zlib.decompress(base64.b64decode(payload))
        size, gone = np.frombuffer(data, dtype="<u4", count=2).tolist()
        return cls(
            np.frombuffer(data, dtype="<u8", count=size, offset=8).astype(np.uint64),
            np.frombuffer(data, dtype="<i8", count=size, offset=8 + 8 * size).astype(np.int64),
            np.frombuffer(data, dtype="u1", count=size, offset=8 + 16 * size).astype(np.uint8),
            np.frombuffer(data, dtype="<i8", count=gone, offset=8 + 17 * size).astype(np.int64),
        )

    @property
    def nbytes(self) -> int:
        """What they take in memory, about."""
        return 256 + self.hashes.nbytes + self.refs.nbytes + self.counts.nbytes + self.removed.nbytes

    def encoded(self) -> str:
        """As text."""
        data = b"".join(
            [
                np.array([len(self.hashes), len(self.removed)], dtype="<u4").tobytes(),
                self.hashes.astype("<u8").tobytes(),
                self.refs.astype("<i8").tobytes(),
                self.counts.tobytes(),
                self.removed.astype("<i8").tobytes(),
            ]
        )
        return base64.b64encode(zlib.compress(data, _COMPRESSION)).decode()

    def of_term(self, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The passages that hold something, by its hash, and how often each does."""
        start = int(np.searchsorted(self.hashes, np.uint64(wanted), side="left"))
        end = int(np.searchsorted(self.hashes, np.uint64(wanted), side="right"))
        return self.refs[start:end], self.counts[start:end]


def postings_by_bucket(added: Mapping[int, Features], removed: Mapping[int, Features]) -> dict[int, Postings]:
    """What passages that come and go, by handle, change in each bucket."""
    new = Postings.of(added)
    rows = dict(_by_bucket(new.hashes))
    gone: dict[int, list[int]] = {}
    for ref in sorted(removed):
        for bucket in np.unique(removed[ref].hashes >> np.uint64(_BUCKET_SHIFT)).tolist():
            gone.setdefault(bucket, []).append(ref)
    nothing = slice(0, 0)
    return {
        bucket: Postings(
            new.hashes[rows.get(bucket, nothing)],
            new.refs[rows.get(bucket, nothing)],
            new.counts[rows.get(bucket, nothing)],
            np.array(gone.get(bucket, ()), dtype=np.int64),
        )
        for bucket in sorted(rows.keys() | gone.keys())
    }


def _by_bucket(hashes: NDArray[np.uint64]) -> list[tuple[int, slice]]:
    """The buckets of ascending hashes, each with its range of rows."""
    numbers = (hashes >> np.uint64(_BUCKET_SHIFT)).astype(np.int64)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    ends = [*starts[1:], len(numbers)]
    return (
        [(int(numbers[start]), slice(start, end)) for start, end in zip(starts, ends, strict=False)] if starts else []
    )

"""What is read of passages, kept from one question to the next.

A passage never changes and its handle is never given again, so what is kept needs no check but for the set that its vector is of. Whether it is still there depends on the revision of its
collection alone, so that this is kept with the revision; whether the caller may read it is asked of the engine each time, but where everybody may.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.versioned.engine import PassageRow
from loremesh_agents.adapters.graph.versioned.terms import Features, term_hash
from loremesh_agents.adapters.graph.versioned.texts import Body
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.retrieval import PassageFeatures, PassageRef

SHOWN_FIELDS = ("body", "uid")
"""What must be read of a passage that is to be shown."""
FIELDS = ("features", *SHOWN_FIELDS)
"""What is read of a candidate besides its vector: its text as well, for another request would cost more than the texts that nobody is shown."""
_CAPACITY = 16_384
_MOST_BODY_BYTES = 32 << 20
_BODY_OVERHEAD = 1024


@dataclass(frozen=True, slots=True)
class KeptPassage:
    """What is kept of a passage.

    Attributes:
        uid: Its collection.
        features: Its features.
        vector_set: Number of the set of its vector.
        vector: Its vector, as little-endian float32; empty where it has none.
    """

    uid: str
    features: Features
    vector_set: int
    vector: bytes


class PassageCache:
    """The passages that were read last: features of 16,384 at most, texts of 32 MB at most."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, KeptPassage] = OrderedDict()
        self._there: dict[int, int] = {}
        self._bodies: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._body_bytes = 0

    def missing(self, refs: Iterable[int], sets: Mapping[str, int]) -> list[int]:
        """Those of whose features nothing is kept, or a vector of another set.

        Args:
            refs: Passages.
            sets: Numbers of the sets whose vectors count, by the collection's uid.
        """
        return [
            ref
            for ref in refs
            if (kept := self._kept.get(ref)) is None or kept.vector_set != sets.get(kept.uid, kept.vector_set)
        ]

    def take(
        self, rows: Iterable[PassageRow], sets: Mapping[str, int], vectors: Mapping[int, bytes]
    ) -> dict[int, KeptPassage]:
        """Keeps what was read, with `FIELDS`; gives it as well.

        Args:
            rows: What was read.
            sets: As for `missing`.
            vectors: Those that count, by passage.
        """
        fresh: dict[int, KeptPassage] = {}
        for row in rows:
            uid = str(row.properties["uid"])
            features = Features.decoded(str(row.properties["features"]))
            fresh[row.ref] = KeptPassage(uid, features, sets[uid], vectors.get(row.ref, b""))
            self.take_body(row)
        self._kept.update(fresh)
        while len(self._kept) > _CAPACITY:
            oldest, _ = self._kept.popitem(last=False)
            self._there.pop(oldest, None)
        return fresh

    def kept(self, refs: Iterable[int]) -> dict[int, KeptPassage]:
        """What is kept of passages."""
        found: dict[int, KeptPassage] = {}
        for ref in refs:
            if ref in self._kept:
                self._kept.move_to_end(ref)
                found[ref] = self._kept[ref]
        return found

    def found(self, refs: Iterable[int], revisions: Mapping[str, int]) -> None:
        """Notes that passages are there.

        Args:
            refs: The passages.
            revisions: Of their collections, by uid; what is not among them is not noted.
        """
        for ref in refs:
            kept = self._kept.get(ref)
            if kept is not None and kept.uid in revisions:
                self._there[ref] = revisions[kept.uid]

    def is_there(self, ref: int, revisions: Mapping[str, int]) -> bool:
        """Whether a passage is known to be there at the revision of its collection, by the collections' uids."""
        kept = self._kept.get(ref)
        return kept is not None and kept.uid in revisions and self._there.get(ref) == revisions[kept.uid]

    def take_body(self, row: PassageRow) -> None:
        """Keeps the text of a passage, that was read with `SHOWN_FIELDS` or more."""
        text = str(row.properties["body"])
        _, before = self._bodies.pop(row.ref, ("", ""))
        self._bodies[row.ref] = str(row.properties["uid"]), text
        self._body_bytes += _size(text) - (_size(before) if before else 0)
        while self._body_bytes > _MOST_BODY_BYTES:
            _, (_, oldest) = self._bodies.popitem(last=False)
            self._body_bytes -= _size(oldest)

    def shown(self, refs: Iterable[int], names: Mapping[str, str]) -> dict[int, Passage]:
        """Those of the passages whose text is kept.

        Args:
            refs: The passages.
            names: Of the collections, by uid.
        """
        found: dict[int, Passage] = {}
        for ref in refs:
            if ref in self._bodies:
                self._bodies.move_to_end(ref)
                uid, text = self._bodies[ref]
                found[ref] = Body.decoded(text).shown(names[uid])
        return found


def _size(text: str) -> int:
    return 2 * len(text) + _BODY_OVERHEAD


def passage_features(found: dict[int, KeptPassage], names: Mapping[str, str], terms: Sequence[str]) -> PassageFeatures:
    """Features of passages, by handle.

    Args:
        found: What is kept of them.
        names: Of the collections, by uid; passages of others are left out.
        terms: Of the question.
    """
    refs = sorted(ref for ref, kept in found.items() if kept.uid in names)
    rows = [found[ref] for ref in refs]
    wanted = np.array([term_hash(term) for term in terms], dtype=np.uint64)
    size = next((len(row.vector) for row in rows if row.vector), 0)
    # Collections may have vectors of different models. The retriever uses none then.
    has_vector = np.array([size > 0 and len(row.vector) == size for row in rows], dtype=np.bool_)
    vectors = np.zeros((len(rows), size // 4), dtype=np.float32)
    if size:
        joined = b"".join(row.vector for row, has in zip(rows, has_vector.tolist(), strict=True) if has)
        vectors[has_vector] = np.frombuffer(joined, dtype="<f4").reshape(-1, size // 4)
    return PassageFeatures(
        refs=tuple(PassageRef(ref) for ref in refs),
        passage_ids=tuple(f"{names[row.uid]}/{row.features.document_id}#{row.features.ordinal}" for row in rows),
        lengths=np.array([row.features.length for row in rows], dtype=np.float32),
        term_frequencies=_frequencies([row.features for row in rows], wanted),
        vectors=vectors,
        has_vector=has_vector,
    )


def _frequencies(rows: Sequence[Features], wanted: NDArray[np.uint64]) -> NDArray[np.float32]:
    """How often terms are in passages, by their hashes, shape (len(rows), len(wanted)): all passages together, for each of them is small."""
    unique, columns = np.unique(wanted, return_inverse=True)
    found = np.zeros((len(rows), len(unique)), dtype=np.float32)
    if rows and len(unique):
        hashes = np.concatenate([row.hashes for row in rows])
        places = np.minimum(np.searchsorted(unique, hashes), len(unique) - 1)
        hits = np.flatnonzero(unique[places] == hashes)
        owners = np.repeat(np.arange(len(rows)), [len(row.hashes) for row in rows])
        found[owners[hits], places[hits]] = np.concatenate([row.counts for row in rows])[hits]
    return found[:, columns]

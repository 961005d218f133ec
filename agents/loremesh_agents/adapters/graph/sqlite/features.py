"""Features of passages, kept from one question to the next.

A passage never changes and its id is never given again, so what is kept needs no check against the file but for the vector: that counts while its collection
is at its model. Whether a passage is still there, and whether the caller may read it, is asked of the database each time.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.sqlite.schema import VECTOR_TABLES
from loremesh_agents.domain.retrieval import PassageFeatures, PassageRef

_CAPACITY = 16_384


class CurrentVectors(NamedTuple):
    """Which vectors of a collection count.

    Attributes:
        name: Name of the collection.
        model: Their model.
        slot: Their table, as a place in `VECTOR_TABLES`.
    """

    name: str
    model: str
    slot: int


class _Stored(NamedTuple):
    """What the database holds of a passage: ids of its terms (little-endian uint32), how often each occurs (uint16), its vector (float32) of a model."""

    collection: int
    model: str
    name: str
    length: int
    terms: bytes
    counts: bytes
    vector: bytes | None


class FeatureCache:
    """Features of the passages that were read last, 16,384 at most. Used by the one thread that reads."""

    def __init__(self) -> None:
        self._kept: dict[PassageRef, _Stored] = {}
        self._columns = np.zeros(0, dtype=np.uint16)

    def features(
        self,
        connection: sqlite3.Connection,
        refs: Sequence[PassageRef],
        terms: Sequence[int | None],
        collections: Mapping[int, CurrentVectors],
    ) -> PassageFeatures:
        """Features of passages that are there.

        Args:
            connection: Within a read transaction.
            refs: Passages in ascending order, each once.
            terms: Ids of the question's terms; None for one that no passage holds.
            collections: The collections of the passages by their ids.
        """
        passages = self._passages(connection, refs, collections)
        vectors, has_vector = _vectors([passage.vector for passage in passages])
        return PassageFeatures(
            refs=tuple(refs),
            passage_ids=tuple([passage.name for passage in passages]),
            lengths=np.array([passage.length for passage in passages], dtype=np.float32),
            term_frequencies=self._frequencies(passages, terms),
            vectors=vectors,
            has_vector=has_vector,
        )

    def _frequencies(self, passages: Sequence[_Stored], terms: Sequence[int | None]) -> NDArray[np.float32]:
        found = np.zeros((len(passages), len(terms)), dtype=np.float32)
        stored = np.frombuffer(b"".join([passage.terms for passage in passages]), dtype="<u4")
        counts = np.frombuffer(b"".join([passage.counts for passage in passages]), dtype="<u2")
        known = [term for term in terms if term is not None]
        most = max(int(stored.max(initial=0)), *known, 0)
        if most >= len(self._columns):
            self._columns = np.zeros(2 * most + 1, dtype=np.uint16)
        # A table over all term ids: a look-up for each stored term, however many terms the question has.
        self._columns[known] = [column for column, term in enumerate(terms, 1) if term is not None]
        columns = self._columns[stored]
        self._columns[known] = 0
        hits = np.flatnonzero(columns)
        ends = np.cumsum([len(passage.terms) // 4 for passage in passages])
        found[np.searchsorted(ends, hits, side="right"), columns[hits] - 1] = counts[hits]
        return found

    def _passages(
        self, connection: sqlite3.Connection, refs: Sequence[PassageRef], collections: Mapping[int, CurrentVectors]
    ) -> list[_Stored]:
        missing = [
            ref
            for ref in refs
            if (kept := self._kept.get(ref)) is None or collections[kept.collection].model != kept.model
        ]
        if not missing:
            return [self._kept[ref] for ref in refs]
        slots = sorted({collection.slot for collection in collections.values()})
        columns = "".join(f", {VECTOR_TABLES[slot]}.vector" for slot in slots)
        joins = "".join(f" LEFT JOIN {VECTOR_TABLES[slot]} ON {VECTOR_TABLES[slot]}.passage = p.id" for slot in slots)
        rows = connection.execute(
            f"SELECT p.id, p.collection, o.document_id, p.ordinal, p.length, p.terms, p.counts{columns}"
            f" FROM json_each(?) j CROSS JOIN passage p ON p.id = j.value JOIN document o ON o.id = p.document{joins}",
            (json.dumps(missing),),
        )
        fresh: dict[PassageRef, _Stored] = {}
        for ref, collection, document_id, ordinal, length, terms, counts, *vectors in rows.fetchall():
            name, model, slot = collections[collection]
            vector = vectors[slots.index(slot)]
            fresh[ref] = _Stored(collection, model, f"{name}/{document_id}#{ordinal}", length, terms, counts, vector)
        found = [fresh[ref] if ref in fresh else self._kept[ref] for ref in refs]
        self._kept.update(fresh)
        if len(self._kept) > _CAPACITY:
            for ref in list(self._kept)[: len(self._kept) - _CAPACITY]:
                del self._kept[ref]
        return found


def _vectors(stored: Sequence[bytes | None]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One row for each; zero, and false, where there is none."""
    sizes = np.array([len(vector) if vector is not None else 0 for vector in stored], dtype=np.intp)
    # Collections may have vectors of different models. The retriever uses none then.
    size = int(sizes[np.flatnonzero(sizes)[0]]) if sizes.any() else 0
    has_vector = (sizes == size) & (size > 0)
    fitting = [vector for vector, has in zip(stored, has_vector.tolist(), strict=True) if vector is not None and has]
    some = np.frombuffer(b"".join(fitting), dtype="<f4").reshape(len(fitting), size // 4)
    if len(fitting) == len(stored):
        return some, has_vector
    vectors = np.zeros((len(stored), size // 4), dtype=np.float32)
    vectors[has_vector] = some
    return vectors, has_vector

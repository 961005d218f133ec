"""Document frequencies and postings of a collection, spread over 256 vertices by the terms' hashes."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.versioned.batch import COMPACTED_FROM, Batch
from loremesh_agents.adapters.graph.versioned.cells import View, cell, parts
from loremesh_agents.adapters.graph.versioned.engine import GraphEngine, Record, Vertex
from loremesh_agents.adapters.graph.versioned.identifiers import BUCKETS, bucket_id
from loremesh_agents.adapters.graph.versioned.states import CollectionState
from loremesh_agents.adapters.graph.versioned.terms import (
    Features,
    Frequencies,
    Postings,
    bucket_of,
    postings_by_bucket,
)
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import VertexLabel

_MOST_COMPACTED = 32
_MOST_BYTES = 32 << 20

Held = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Handles of passages that hold something, and how often each does (0 for what is no search term)."""


def buckets_of(uid: str, hashes: Iterable[int]) -> list[str]:
    """The vertices that know of these terms."""
    return [bucket_id(uid, number) for number in sorted({bucket_of(found) for found in hashes})]


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


_Content = TypeVar("_Content", bound=_Sized)


class BucketCache(Generic[_Content]):
    """What some buckets say, as it was read last, 32 MB at most.

    What a bucket says to a reader depends on the revision of its collection alone, so that what is kept needs no check.

    Args:
        name: The property that it is read from.
        total: What cells of it add up to.
    """

    def __init__(self, name: str, total: Callable[[Iterable[str]], _Content]) -> None:
        self._name = name
        self._total = total
        self._kept: OrderedDict[tuple[str, int], _Content] = OrderedDict()
        self._bytes = 0

    def kept(self, state: CollectionState, hashes: Iterable[int]) -> tuple[dict[str, _Content], list[str]]:
        """Of the buckets that know of these terms: those that are kept, by id, and the ids of those that must be read."""
        found: dict[str, _Content] = {}
        missing: list[str] = []
        for vertex in buckets_of(state.uid, hashes):
            content = self._kept.get((vertex, state.revision))
            if content is None:
                missing.append(vertex)
            else:
                self._kept.move_to_end((vertex, state.revision))
                found[vertex] = content
        return found, missing

    def take(
        self, state: CollectionState, vertices: Iterable[str], records: Mapping[str, Record], view: View
    ) -> dict[str, _Content]:
        """Keeps buckets that were read, those that are not there among them; gives them as well."""
        fresh: dict[str, _Content] = {}
        for vertex in vertices:
            record = records.get(vertex)
            values = record.sets.get(self._name, ()) if record is not None else ()
            fresh[vertex] = self._total([part.payload for part in parts(values, view)])
            before = self._kept.pop((vertex, state.revision), None)
            self._bytes += fresh[vertex].nbytes - (before.nbytes if before is not None else 0)
            self._kept[vertex, state.revision] = fresh[vertex]
        while self._bytes > _MOST_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return fresh


class Buckets:
    """The buckets that a process has read."""

    def __init__(self) -> None:
        self.frequencies = BucketCache("frequencies", Frequencies.total)
        self.postings = BucketCache("postings", lambda payloads: Postings.total(payloads, whole=True))


async def read_postings(
    engine: GraphEngine,
    buckets: Buckets,
    state: CollectionState,
    view: View,
    hashes: Iterable[int],
    *,
    deadline: Deadline,
) -> dict[int, Held]:
    """Who holds what in a state of a collection, by hash; at most one request."""
    wanted = set(hashes)
    found, missing = buckets.postings.kept(state, wanted)
    if missing:
        records = await engine.records({VertexLabel.BUCKET: missing}, fields={"postings"}, deadline=deadline)
        found |= buckets.postings.take(state, missing, records, view)
    return {term: found[bucket_id(state.uid, bucket_of(term))].of_term(term) for term in wanted}


class BucketChanges:
    """What a write changes of the buckets of a collection.

    Args:
        uid: The collection.
        touched: How many cells this process has added to a bucket since it merged them, by the bucket's id; kept from write to write.
    """

    def __init__(self, uid: str, touched: dict[str, int]) -> None:
        self._uid = uid
        self._touched = touched
        self._compacted: list[str] = []

    def collect(self, batch: Batch, added: Mapping[int, Features], removed: Mapping[int, Features]) -> None:
        """Adds the cells for passages that come and go, by handle."""
        frequencies = Frequencies.of(list(added.values()), list(removed.values())).by_bucket()
        postings = postings_by_bucket(added, removed)
        for number in sorted(frequencies.keys() | postings.keys()):
            vertex = bucket_id(self._uid, number)
            sets: dict[str, list[str]] = {}
            if number in frequencies:
                sets["frequencies"] = [cell(batch.version, frequencies[number].encoded())]
            if number in postings:
                sets["postings"] = [cell(batch.version, postings[number].encoded())]
            if vertex not in self._touched:
                # Where it is there already, it gains the cells all the same.
                batch.vertices.append(Vertex(VertexLabel.BUCKET, vertex, sets=sets))
                self._touched[vertex] = number % COMPACTED_FROM  # so that they are not all due at once
            else:
                for name, (value,) in sets.items():
                    batch.add(VertexLabel.BUCKET, vertex, name, value.partition(":")[2])
            self._touched[vertex] += 1

    async def compact(self, batch: Batch, engine: GraphEngine, *, since: int, deadline: Deadline) -> None:
        """Merges cells of some buckets that have gained many.

        Args:
            batch: Takes the changes.
            engine: To read from.
            since: Version before the first that wrote the collection, as far as known.
            deadline: When to give up.
        """
        if batch.horizon <= since:
            return
        ids = [bucket_id(self._uid, number) for number in range(BUCKETS)]
        due = [vertex for vertex in ids if self._touched.get(vertex, 0) > COMPACTED_FROM][:_MOST_COMPACTED]
        if not due:
            return
        records = await engine.records({VertexLabel.BUCKET: due}, deadline=deadline)
        for vertex in due:
            self._touched[vertex] = 0
            record = records.get(vertex)
            if record is None:
                continue
            merged = batch.to_merge(VertexLabel.BUCKET, vertex, "frequencies", record.sets.get("frequencies", ()))
            if merged:
                total = Frequencies.total(part.payload for part in merged)
                batch.merge(VertexLabel.BUCKET, vertex, "frequencies", merged, total.encoded())
            merged = batch.to_merge(VertexLabel.BUCKET, vertex, "postings", record.sets.get("postings", ()))
            if merged:
                whole = merged == parts(record.sets["postings"], batch.view)[: len(merged)]
                held = Postings.total((part.payload for part in merged), whole=whole)
                batch.merge(VertexLabel.BUCKET, vertex, "postings", merged, held.encoded())

"""Document frequencies and postings of a collection, spread over 256 vertices by the terms' hashes."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.versioned.batch import COMPACTED_FROM, Batch
from loremesh_agents.adapters.graph.versioned.cells import View, cell, parts
from loremesh_agents.adapters.graph.versioned.engine import GraphEngine, Record, Vertex
from loremesh_agents.adapters.graph.versioned.identifiers import BUCKETS, bucket_id
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

Held = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Handles of passages that hold something, and how often each does (0 for what is no search term)."""


def buckets_of(uid: str, hashes: Iterable[int]) -> list[str]:
    """The vertices that know of these terms."""
    return [bucket_id(uid, number) for number in sorted({bucket_of(found) for found in hashes})]


def frequency_of(uid: str, wanted: int, records: Mapping[str, Record], view: View) -> int:
    """In how many passages of a collection a term is, by its hash."""
    record = records.get(bucket_id(uid, bucket_of(wanted)))
    if record is None:
        return 0
    counting = parts(record.sets.get("frequencies", ()), view)
    return Frequencies.total(part.payload for part in counting).of_term(wanted)


async def read_postings(
    engine: GraphEngine, view: View, uid: str, hashes: Iterable[int], deadline: Deadline
) -> dict[int, Held]:
    """Who holds what, by hash; one request."""
    wanted = sorted(set(hashes))
    ids = buckets_of(uid, wanted)
    if not ids:
        return {}
    records = await engine.records({VertexLabel.BUCKET: ids}, fields={"postings"}, deadline=deadline)
    whole = {
        vertex: Postings.total((part.payload for part in parts(record.sets.get("postings", ()), view)), whole=True)
        for vertex, record in records.items()
    }
    found = {term: whole.get(bucket_id(uid, bucket_of(term))) for term in wanted}
    return {term: held.of_term(term) for term, held in found.items() if held is not None}


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

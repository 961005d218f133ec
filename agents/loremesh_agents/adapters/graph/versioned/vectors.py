"""Vectors of passages, by the sets that they belong to.

Set 0 is what passages hold themselves. The vectors of other sets, and those that set 0 has gained later, are vertices of their own, named by the number of
the set and the handle of the passage. The number of a set never comes back, so such a vertex says the same for ever, whoever writes it when.
"""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from collections.abc import Collection as Group
from typing import Any, NamedTuple

from loremesh_agents.adapters.graph.versioned.cells import View, cell, writer_of
from loremesh_agents.adapters.graph.versioned.concurrently import both
from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    GraphEngine,
    PassageRow,
    Record,
    Value,
    Vertex,
)
from loremesh_agents.adapters.graph.versioned.identifiers import first_ref, vector_id
from loremesh_agents.adapters.graph.versioned.states import CollectionState
from loremesh_agents.adapters.graph.versioned.visibility import is_there
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import VertexLabel

INLINE = 0
"""The set that passages hold themselves."""
_AT_ONCE = 1000


class VectorPlaces(NamedTuple):
    """Where a collection has the vectors of a model.

    Attributes:
        own: Whether its passages hold them themselves, but for those of the set that is named.
        number: Of the set of those that are vertices; None where there are none.
    """

    own: bool
    number: int | None


def places_of(state: CollectionState, model: str) -> VectorPlaces | None:
    """Where a model's vectors are; None where it has none of every passage."""
    number = state.set_of(model)
    if number is None:
        return None
    return VectorPlaces(number == INLINE, number if number != INLINE or state.newest_set else None)


def next_set(state: CollectionState) -> int:
    """The number of a new set: one that there never was, odd where that of the set which counts is even, and the other way round.

    So an engine's index of the odd ones, and that of the even ones, holds one model of a collection.
    """
    number = state.newest_set + 1
    return number + (number - state.vector_set + 1) % 2


def vector_vertex(state: CollectionState, number: int, model: str, ref: int, *, vector: bytes, version: int) -> Vertex:
    """The vertex of a passage's vector of a set, which a version gives."""
    properties: dict[str, Value] = {
        "ref": ref,
        "uid": state.uid,
        "generation": number,
        "model": model,
        "vector": vector,
    }
    return Vertex(VertexLabel.VECTOR, vector_id(number, ref), properties, {"made": [cell(version, "")]})


def own_vector(row: PassageRow) -> bytes:
    """The vector that a passage holds itself, empty for none; it must have been read."""
    found = row.properties.get("vector")
    return found if isinstance(found, bytes) else b""


def vector_of(record: Record | None) -> bytes:
    """The vector of a vertex, empty where there is none."""
    found = record.properties.get("vector") if record is not None else None
    return found if isinstance(found, bytes) else b""


async def read_vectors(
    engine: GraphEngine, ids: Iterable[str], *, fields: Group[str] = ("vector",), deadline: Deadline
) -> dict[str, Record]:
    """Those of the vertices of vectors that are there, by id."""
    listed = list(ids)
    found: dict[str, Record] = {}
    for start in range(0, len(listed), _AT_ONCE):
        wanted = {VertexLabel.VECTOR: listed[start : start + _AT_ONCE]}
        found.update(await engine.records(wanted, fields=set(fields), deadline=deadline))
    return found


async def having_one(
    engine: GraphEngine, view: View, state: CollectionState, number: int, refs: Group[int], *, deadline: Deadline
) -> tuple[set[int], set[int]]:
    """Which of some passages are there, and which of these have a vector of a set.

    Args:
        engine: To read from.
        view: What counts.
        state: The collection's.
        number: Of the set.
        refs: The passages.
        deadline: When to give up.
    """
    if not refs:
        return set(), set()
    access = Access((state.uid,), first_ref(view.version + 1))
    inline = number == INLINE
    rows, records = await both(
        engine.passages(sorted(refs), access, fields={"vector"} if inline else (), deadline=deadline),
        read_vectors(engine, [vector_id(number, ref) for ref in refs], fields=("made",), deadline=deadline),
    )
    made = {
        vertex
        for vertex, record in records.items()
        if any(view.counts(writer_of(value)) for value in record.sets.get("made", ()))
    }
    there = [row for row in rows if is_there(row, view)]
    found = {row.ref for row in there}
    own = {row.ref for row in there if inline and own_vector(row)}
    return found, own | {ref for ref in found if vector_id(number, ref) in made}


async def read_with_vectors(
    engine: GraphEngine,
    refs: Group[int],
    sets: Mapping[CollectionState, int],
    read: Callable[[tuple[str, ...]], Coroutine[Any, Any, Sequence[PassageRow]]],
    deadline: Deadline,
) -> tuple[Sequence[PassageRow], dict[int, bytes]]:
    """Passages with a vector of each, read at once.

    Args:
        engine: To read from.
        refs: The passages.
        sets: Which set's vectors, by collection: of each of its passages there is one, or of none.
        read: Reads those of the passages that are there, with the properties given.
        deadline: When to give up.
    """
    numbers = {state.uid: number for state, number in sets.items()}
    others = sorted(set(numbers.values()).difference({INLINE}))
    fields = ("uid", "vector") if INLINE in numbers.values() else ("uid",)
    ids = [vector_id(number, ref) for number in others for ref in refs]
    if ids:
        rows, records = await both(read(fields), read_vectors(engine, ids, deadline=deadline))
    else:
        rows, records = await read(fields), {}
    vectors: dict[int, bytes] = {}
    for row in rows:
        number = numbers[str(row.properties["uid"])]
        vectors[row.ref] = own_vector(row) if number == INLINE else vector_of(records.get(vector_id(number, row.ref)))
    # What set 0 has gained since another one counted.
    gaining = {state.uid for state, number in sets.items() if number == INLINE and state.newest_set}
    lacking = {
        vector_id(INLINE, row.ref): row.ref
        for row in rows
        if not vectors[row.ref] and str(row.properties["uid"]) in gaining
    }
    gained = await read_vectors(engine, lacking, deadline=deadline)
    vectors.update((lacking[vertex], vector_of(record)) for vertex, record in gained.items())
    return rows, vectors

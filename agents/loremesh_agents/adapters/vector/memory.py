"""`memory://`: compares the question with every vector."""

from collections.abc import Collection as Group
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.vector.query import require_comparable
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, CollectionNotFound
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore

_PAGE = 10_000


@dataclass(slots=True)
class _Held:
    """The vectors of a collection as they were at a revision."""

    uid: str
    revision: int = 0
    vectors: dict[PassageRef, NDArray[np.float32]] = field(default_factory=dict[PassageRef, NDArray[np.float32]])


class MemoryVectorIndex:
    """See `ports.vectors.VectorIndex`. Exact, and lost when the process ends; each process fills its own from the graph.

    Args:
        graph: Where vectors come from.
    """

    def __init__(self, graph: GraphStore) -> None:
        self._graph = graph
        self._collections: dict[tuple[str, str], _Held] = {}

    async def search(
        self,
        vector: NDArray[np.float32],
        *,
        model: str,
        revisions: tuple[CollectionRevision, ...],
        limit: int,
        deadline: Deadline,
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        if deadline.expired:
            raise BudgetExhausted("vector index", "search")
        found: list[tuple[float, PassageRef]] = []
        for revision in revisions:
            held = await self._caught_up(revision, model, deadline)
            if held.vectors:
                vectors = np.stack(list(held.vectors.values()))
                require_comparable(vector, vectors.shape[1], revision.collection)
                found += zip((-(vectors @ vector)).tolist(), held.vectors, strict=True)
        return tuple(ref for _, ref in sorted(found)[:limit])

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        self._forget(collection, ())
        return await self.maintain(collection, deadline=deadline)

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        found = await self._graph.vectors(collection, deadline=deadline)
        self._forget(collection, found.whole)
        held = [await self._caught_up(found.reached, model, deadline) for model in found.whole]
        return replace(found.reached, revision=min(each.revision for each in held))

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        """See the port."""
        del deadline
        self._forget(collection, ())

    async def recover(self, *, deadline: Deadline) -> None:
        """See the port. Each process catches up by itself when it searches."""

    async def close(self) -> None:
        """See the port."""
        self._collections.clear()

    def _forget(self, collection: str, kept_models: Group[str]) -> None:
        for key in [key for key in self._collections if key[0] == collection and key[1] not in kept_models]:
            del self._collections[key]

    async def _caught_up(self, revision: CollectionRevision, model: str, deadline: Deadline) -> _Held:
        key = (revision.collection, model)
        held = self._collections.get(key)
        if held is None or held.uid != revision.collection_uid:
            held = self._collections[key] = _Held(revision.collection_uid)
        while held.revision < revision.revision:
            before = held.revision
            try:
                changes = await self._graph.vector_changes(
                    revision.collection, model=model, after_revision=before, limit=_PAGE, deadline=deadline
                )
            except CollectionNotFound:
                break
            if changes.collection_uid != held.uid:
                # Deleted meanwhile: nobody asks for the rest of it.
                break
            if held.revision != before:
                # Another search has applied them while this one waited.
                continue
            for ref in changes.removed:
                held.vectors.pop(ref, None)
            held.vectors.update(zip(changes.added, changes.vectors, strict=True))
            held.revision = changes.revision
        return held

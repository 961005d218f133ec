"""`opensearch+http(s)://`: vectors in OpenSearch's k-NN index, by the Lucene engine.

Vectors of a dimension are in a field of their own, `vector_{dimension}`. Lucene filters by collection while it walks the graph of neighbours, and compares
one by one where few vectors are left, so a small collection is searched exactly however many others there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.derived.keeping import IndexState, Keeping, VectorSource
from loremesh_agents.adapters.derived.opensearch import (
    OpenSearchConnection,
    OpenSearchIndex,
    OpenSearchServers,
    OpenSearchStore,
)
from loremesh_agents.adapters.vector.query import require_comparable
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore, VectorChanges

_FORMAT = 1
_PAGE = 2_000
_NEIGHBOURS = 16
_CONSTRUCTION = 128
_OVERSAMPLING = 2
_MOST_CANDIDATES = 10_000
"""The server refuses more."""


class _Vectors(OpenSearchStore[VectorChanges]):
    def entries(self, page: VectorChanges) -> Iterator[tuple[PassageRef, Mapping[str, Any]]]:
        if page.added:
            field = _field(page.vectors.shape[1])
            for ref, vector in zip(page.added, np.ascontiguousarray(page.vectors), strict=True):
                yield ref, {field: vector}

    def removed(self, page: VectorChanges) -> Sequence[PassageRef]:
        return page.removed

    async def widen(self, state: IndexState, page: VectorChanges, *, deadline: Deadline) -> IndexState:
        dimension = page.vectors.shape[1] if page.added else state.dimension
        if dimension != state.dimension:
            parameters = {"m": _NEIGHBOURS, "ef_construction": _CONSTRUCTION}
            field = {
                "type": "knn_vector",
                "dimension": dimension,
                # Of unit vectors it is the cosine; unlike that, it takes a vector of zeros.
                "space_type": "innerproduct",
                "method": {"name": "hnsw", "engine": "lucene", "parameters": parameters},
            }
            await self.add_property(_field(dimension), field, deadline=deadline)
        return replace(state, dimension=dimension)


class OpenSearchVectorIndex(Keeping[VectorChanges]):
    """See `ports.vectors.VectorIndex`.

    Args:
        graph: Where vectors come from.
        servers: Where OpenSearch is.
        prefix: The index is called `{prefix}-vectors`.
        settings: Of a new index: numbers of shards and replicas.
    """

    def __init__(
        self, graph: GraphStore, servers: OpenSearchServers, prefix: str, *, settings: Mapping[str, int] | None = None
    ) -> None:
        self._connection = OpenSearchConnection(servers)
        index = OpenSearchIndex(f"{prefix}-vectors", _FORMAT, {}, {"knn": True, **(settings or {})})
        self._vectors = _Vectors(self._connection, index)
        super().__init__(graph, VectorSource(graph), self._vectors, page=_PAGE)

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
        reached = await self.reached(revisions, model, deadline=deadline)
        shelves: list[str] = []
        for revision, state in reached:
            if state.dimension:
                require_comparable(vector, state.dimension, revision.collection)
                shelves.append(state.shelf)
        if not shelves:
            return ()
        asked = {
            "vector": vector.tolist(),
            "k": min(_OVERSAMPLING * limit, _MOST_CANDIDATES),
            "filter": {"terms": {"uid": shelves}},
        }
        return await self._vectors.search({"knn": {_field(len(vector)): asked}}, limit=limit, deadline=deadline)

    async def close(self) -> None:
        """See the port."""
        await self._connection.close()


def _field(dimension: int) -> str:
    return f"vector_{dimension}"

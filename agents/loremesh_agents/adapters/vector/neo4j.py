"""Vector candidates from the vector index of the Neo4j database that holds the graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.derived.embedded import EmbeddedIndex
from loremesh_agents.adapters.graph.neo4j import statements
from loremesh_agents.adapters.graph.neo4j.candidates import NewestState, there
from loremesh_agents.adapters.graph.neo4j.connection import Connection
from loremesh_agents.adapters.vector.query import require_comparable
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore

_WIDENED = 4
_MOST_PROPOSED = 5_000
_MOST_COMPARED = 20_000


class Neo4jVectorIndex(EmbeddedIndex):
    """See `ports.vectors.VectorIndex`. Never behind: the index changes in the transactions that change the graph.

    The index is one for all collections. Where too few of what it proposes belong to those asked, as with a small collection beside large ones,
    their vectors are compared one by one if they are no more than 20,000; else the index is asked for 5,000.

    Args:
        connection: Of the graph's engine, which closes it.
        graph: Whose passages these are.
        state: Of the graph store.
    """

    def __init__(self, connection: Connection, graph: GraphStore, state: NewestState) -> None:
        self._connection = connection
        super().__init__(graph)
        self._state = state

    async def search(
        self,
        vector: NDArray[np.float32],
        *,
        model: str,
        revisions: tuple[CollectionRevision, ...],
        limit: int,
        deadline: Deadline,
    ) -> tuple[PassageRef, ...]:
        """See the port.

        Raises:
            BackendUnavailable: The vector is none that can be compared with those of the collections.
        """
        del model  # It holds vectors of the collection's one model.
        if deadline.expired:
            raise BudgetExhausted("vector index", "search")
        held = [revision for revision in revisions if self._state.holds(revision)]
        if not held:
            return ()
        if vector.ndim != 1 or not np.isfinite(vector).all():
            await self._require_comparable(vector, held, deadline)
            return ()
        parameters = {"uids": [revision.collection_uid for revision in held], "vector": vector.tolist()}
        found = await self._near(parameters, limit, _WIDENED * limit, deadline)
        if len(found) < limit:
            found = await self._compared(parameters, limit, deadline)
        if not found:
            await self._require_comparable(vector, held, deadline)
        return found

    async def _near(
        self, parameters: Mapping[str, Any], limit: int, candidates: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        ((rows,),) = await self._connection.read(
            statements.NEAR, {**parameters, "candidates": candidates}, deadline=deadline
        )
        return there(rows, self._state, limit)

    async def _compared(self, parameters: Mapping[str, Any], limit: int, deadline: Deadline) -> tuple[PassageRef, ...]:
        most = min(_MOST_PROPOSED, _WIDENED * limit)
        ((compared, nearest),) = await self._connection.read(
            statements.COMPARED, {**parameters, "limit": most, "most": _MOST_COMPARED + 1}, deadline=deadline
        )
        if compared > _MOST_COMPARED:
            return await self._near(parameters, limit, _MOST_PROPOSED, deadline)
        return there(nearest, self._state, limit)

    async def _require_comparable(
        self, vector: NDArray[np.float32], revisions: Sequence[CollectionRevision], deadline: Deadline
    ) -> None:
        for revision in revisions:
            rows = await self._connection.read(
                statements.DIMENSION, {"uid": revision.collection_uid}, deadline=deadline
            )
            if rows:
                require_comparable(vector, rows[0][0], revision.collection)

"""Vector candidates from the vector index of the Neo4j database that holds the graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.derived.embedded import EmbeddedIndex
from loremesh_agents.adapters.graph.neo4j import statements
from loremesh_agents.adapters.graph.neo4j.candidates import NewestVectors, there
from loremesh_agents.adapters.graph.neo4j.connection import Connection
from loremesh_agents.adapters.vector.query import require_comparable
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore

_WIDENED = 4
_MOST_PROPOSED = 5_000
_MOST_COMPARED = 20_000


class Neo4jVectorIndex(EmbeddedIndex):
    """See `ports.vectors.VectorIndex`. Never behind: the index changes in the transactions that change the graph.

    The index is one for all collections, with two more for the vectors of later models (`statements.set_index`). Where too few of what it proposes belong to those asked, as with a small collection beside large ones,
    their vectors are compared one by one if they are no more than 20,000; else the index is asked for 5,000.

    Args:
        connection: Of the graph's engine, which closes it.
        graph: Whose passages these are.
        state: Of the graph store.
    """

    def __init__(self, connection: Connection, graph: GraphStore, state: NewestVectors) -> None:
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
            BackendUnavailable: The vector is none that can be compared with those of the collections, or these have none of the model.
        """
        if deadline.expired:
            raise BudgetExhausted("vector index", "search")
        asked = self._asked(revisions, model)
        if not asked:
            return ()
        if vector.ndim != 1 or not np.isfinite(vector).all():
            await self._require_comparable(vector, asked, deadline)
            return ()
        listed = vector.tolist()
        found = await self._near(asked, listed, limit, _WIDENED * limit, deadline)
        if len(found) < limit:
            found = await self._compared(asked, listed, limit, deadline)
        if not found:
            await self._require_comparable(vector, asked, deadline)
        return found

    def _asked(self, revisions: Sequence[CollectionRevision], model: str) -> list["_Asked"]:
        """Where the vectors of the collections are."""
        found: dict[int | None, _Asked] = {}
        for revision in revisions:
            if not self._state.holds(revision):
                continue
            places = self._state.vector_places(revision, model)
            if places is None:
                raise BackendUnavailable(f"vectors of {model} in {revision.collection}")
            for number in {None if places.own else places.number, places.number}:
                index = None if number is None else number % 2
                asked = found.setdefault(index, _Asked(index, [], []))
                asked.revisions.append(revision)
                asked.sets.append([revision.collection_uid, number])
        return list(found.values())

    async def _near(
        self, asked: Sequence["_Asked"], vector: Sequence[float], limit: int, candidates: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        rows: list[Sequence[Any]] = []
        for one in asked:
            parameters = {**one.parameters, "vector": vector, "candidates": candidates}
            ((more,),) = await self._connection.read(statements.near(one.index), parameters, deadline=deadline)
            rows += more
        return there(_best(rows, asked), self._state, limit)

    async def _compared(
        self, asked: Sequence["_Asked"], vector: Sequence[float], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        limits = {"limit": min(_MOST_PROPOSED, _WIDENED * limit), "most": _MOST_COMPARED + 1}
        rows: list[Sequence[Any]] = []
        for one in asked:
            parameters = {**one.parameters, "vector": vector, **limits}
            ((compared, nearest),) = await self._connection.read(
                statements.compared(one.index), parameters, deadline=deadline
            )
            if compared > _MOST_COMPARED:
                return await self._near(asked, vector, limit, _MOST_PROPOSED, deadline)
            rows += nearest
        return there(_best(rows, asked), self._state, limit)

    async def _require_comparable(
        self, vector: NDArray[np.float32], asked: Sequence["_Asked"], deadline: Deadline
    ) -> None:
        for one in asked:
            for revision, of_set in zip(one.revisions, one.sets, strict=True):
                parameters = {"uids": [revision.collection_uid], "sets": [of_set]}
                rows = await self._connection.read(statements.dimension(one.index), parameters, deadline=deadline)
                if rows:
                    require_comparable(vector, rows[0][0], revision.collection)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of one index.

    Attributes:
        index: None for that of the vectors that passages hold themselves; else 0 or 1 for that of the even or the odd sets.
        revisions: Collections.
        sets: Uid and number of the set of each.
    """

    index: int | None
    revisions: list[CollectionRevision]
    sets: list[list[Any]]

    @property
    def parameters(self) -> dict[str, Any]:
        """What the statement is told of them."""
        return {"uids": [revision.collection_uid for revision in self.revisions], "sets": self.sets}


def _best(rows: list[Sequence[Any]], asked: Sequence[_Asked]) -> Sequence[Sequence[Any]]:
    """The answers of several indexes, the nearest first; each comes in that order."""
    return sorted(rows, key=lambda row: (-row[2], row[0])) if len(asked) > 1 else rows

"""What the indexes inside a graph store have in common: they change with the graph, in its own transactions."""

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore


class EmbeddedIndex:
    """The part of `ports.derived.DerivedIndex` that there is nothing to do for.

    Args:
        graph: The store that the index is in.
    """

    def __init__(self, graph: GraphStore) -> None:
        self._store = graph

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        return await self._store.revision(collection, deadline=deadline)

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        return await self._store.revision(collection, deadline=deadline)

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        """See the port."""

    async def recover(self, *, deadline: Deadline) -> None:
        """See the port."""

    async def close(self) -> None:
        """See the port."""

"""The vector index: proposes passages whose vectors are near the question's."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision


class VectorIndex(Protocol):
    """Derived from the graph store. What it proposes is scored again from stored vectors, so it may be approximate."""

    async def search(
        self, vector: NDArray[np.float32], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """Passages near a unit vector of shape (dimension,), the nearest first.

        The index first catches up with the given states where it is behind. Passages that were deleted since may be among
        the results; the graph store drops them.
        """
        ...

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """Builds the collection's index again from the graph; gives the state reached. Only the knowledge agent calls it."""
        ...

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """Brings what is stored of the index up to date where that is worth it. Only the knowledge agent calls it, after writes."""
        ...

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        """Removes what is stored of a deleted collection's index. Only the knowledge agent calls it."""
        ...

    async def close(self) -> None:
        """Frees what the index holds."""
        ...

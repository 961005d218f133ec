"""An index that is derived from the graph store, whatever it is of."""

from typing import Protocol

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.revision import CollectionRevision


class DerivedIndex(Protocol):
    """Kept up by the knowledge agent alone: only it calls what is below.

    An index within the graph store, or one that each process makes for itself, has little to do here. Of one that others read, this is how it
    gets to the states that its readers ask for. Errors raised by all methods: `BackendUnavailable`, `StorageFull`, `BudgetExhausted`,
    and those of the graph store.
    """

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """Brings what is stored of the index up to date where that is worth it, after writes; gives the state reached."""
        ...

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """Builds the collection's index again from the graph; gives the state reached."""
        ...

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        """Removes what is stored of deleted collections of that name."""
        ...

    async def recover(self, *, deadline: Deadline) -> None:
        """What an earlier process has left undone: brings the index of every collection up to date, removes those of collections that are gone."""
        ...

    async def close(self) -> None:
        """Frees what the index holds."""
        ...

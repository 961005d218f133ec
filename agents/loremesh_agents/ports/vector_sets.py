"""The vectors of a collection beside those that count: made for another embedding model, or kept from the one before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Collection
from loremesh_agents.domain.retrieval import PassageRef


@dataclass(frozen=True, slots=True)
class Unembedded:
    """Passages without a vector, among some that were looked at.

    Attributes:
        texts: What to embed of each.
        last: The last passage that was looked at; None where there were none left.
    """

    texts: Mapping[PassageRef, str]
    last: PassageRef | None


class VectorSets(Protocol):
    """What a graph store offers that can hold vectors of two models of a collection.

    Each method is one transaction. Questions never see any of it but a switch, and that whole. Errors raised: `CollectionNotFound`,
    `WriteConflict`, `StorageFull`, `BackendUnavailable`, `BudgetExhausted` when the deadline passes.
    """

    async def begin(self, collection: str, model: str, *, deadline: Deadline) -> Collection:
        """Says that vectors of a model are to be made: from now on writers give them as well. May be repeated.

        Raises:
            ReembeddingRefused: It has vectors of a third model.
        """
        ...

    async def unembedded(
        self, collection: str, model: str, *, after: PassageRef, limit: int, deadline: Deadline
    ) -> Unembedded:
        """Looks at `limit` passages after one, in the order of their handles."""
        ...

    async def add(
        self, collection: str, model: str, vectors: Mapping[PassageRef, NDArray[np.float32]], *, deadline: Deadline
    ) -> Collection:
        """Stores vectors; those of passages that are gone, or have one, are left out, as are all where the model is not wanted any more."""
        ...

    async def switch(self, collection: str, model: str, *, deadline: Deadline) -> bool:
        """Lets the vectors of a model count, in one new revision, and keeps the others; gives False where some passages lack one."""
        ...

    async def drop(self, collection: str, *, after: PassageRef, limit: int, deadline: Deadline) -> PassageRef | None:
        """Removes the vectors that do not count, of `limit` passages after one; gives the last of these, None where all is done.

        A store may let go of all of them at once, and take away later what nobody sees any more.
        """
        ...

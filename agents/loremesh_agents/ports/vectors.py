"""The vector index: proposes passages whose vectors are near the question's."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.derived import DerivedIndex


class VectorIndex(DerivedIndex, Protocol):
    """Derived from the graph store. What it proposes is scored again from stored vectors, so it may be approximate."""

    async def search(
        self,
        vector: NDArray[np.float32],
        *,
        model: str,
        revisions: tuple[CollectionRevision, ...],
        limit: int,
        deadline: Deadline,
    ) -> tuple[PassageRef, ...]:
        """Passages near a unit vector of shape (dimension,) of a model, the nearest first.

        Compared are vectors of that model, which is the one that counted in the given states, though the collection may have switched since. An index that is behind the given states catches up first, or waits until it is kept up; of a collection that is gone it proposes
        nothing. Passages that were deleted since may be among the results; the graph store drops them.

        Raises:
            BackendUnavailable: It cannot be searched now, or holds vectors that this one cannot be compared with.
            BudgetExhausted: The deadline passed, or it did not reach the states in time.
        """
        ...

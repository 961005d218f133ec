"""The text index: proposes passages that share words with the question."""

from collections.abc import Mapping
from typing import Protocol

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.derived import DerivedIndex


class TextIndex(DerivedIndex, Protocol):
    """Derived from the graph store. What it proposes is scored again from stored term frequencies."""

    async def search(
        self, terms: Mapping[str, int], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """Passages that contain some of the terms, the best first.

        Args:
            terms: Search terms of the question with the number of passages that contain each. An index may leave out the commonest
                where the others suffice, so that its work is bounded.
            revisions: States that the results must include.
            limit: Most passages.
            deadline: When the answer is of no more use.

        Raises:
            BackendUnavailable: It cannot be searched now.
            BudgetExhausted: The deadline passed, or it did not reach the states in time.
        """
        ...
